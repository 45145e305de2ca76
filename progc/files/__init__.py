"""Files: reading and writing JSON, tensors and folders safely, running a user's Python file, and tables of text.

Every write is atomic and every read is bounded and checked; nothing here knows a program. May import `errors` only.
"""
