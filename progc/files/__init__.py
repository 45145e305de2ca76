"""Files: reads and writes JSON, weights and output folders safely, imports a user's Python file, aligns tables of text.

Every write is atomic, and every read is bounded and checked. Nothing here knows programs. May import `errors` only.
"""
