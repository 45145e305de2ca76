"""Explanations of why an axis grows exactly or not, one reason per line (`progc grow --explain`).

May import what `growth` may.
"""
