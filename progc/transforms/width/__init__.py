"""Width: from sizes to a plan for every axis, the edits of graph and literals, and the factors that are owed.

May import what `transforms` may.
"""
