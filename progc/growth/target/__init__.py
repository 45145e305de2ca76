"""Target models: aligns another program with the source, and adopts its constants, outputs and ties.

May import what `growth` may.
"""
