"""Depth growth: inserts copies of blocks into chains, renames blocks by position, makes copies the identity.

Imports only floors below the transforms: analysis, lift, ir and the modules they use.
"""
