"""Transforms change the graphs of a program: depth, width, resolution, shrinking, freezing, dropping, stage identifier.

Passes are thin layers over these packages. A transform may import `analysis`, `pipeline` and the floors below them, but
no pass.
"""
