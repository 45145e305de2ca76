"""Targets of growth: another program is aligned with the source, and its constants, outputs and ties are followed.

May import what `growth` may.
"""
