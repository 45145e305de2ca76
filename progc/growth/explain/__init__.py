"""Explanations: why an axis grows exactly or does not, one reason a line (`progc grow --explain`).

May import what `growth` may.
"""
