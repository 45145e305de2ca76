"""Files: reading and writing JSON, tensors and folders safely, and running a user's Python file.

Every write is atomic and every read is bounded and checked; nothing here knows a program. May import `errors` only.
"""
