"""Files: reads and writes JSON, weights and output folders safely, and imports a user's Python file.

Every write is atomic, and every read is bounded and checked. Nothing here knows programs. May import `errors` only.
"""
