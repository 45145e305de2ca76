"""Growth to a target: from a size or another model to the passes that get there, and why a size is out of reach.

May import `passes`, `transforms` and below; never a schedule.
"""
