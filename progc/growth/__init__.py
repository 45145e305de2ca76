"""Growth to a target: turns a size or another model into passes, and explains why a size is out of reach.

May import `passes`, `transforms` and the floors below them, but no schedule.
"""
