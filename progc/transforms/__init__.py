"""Transforms: how graphs change. Passes are thin layers over these packages.

Depth, width, resolution, shrinking, freezing, dropping and the stage identifier. May import `analysis`, `pipeline` and
below; no transform imports a pass.
"""
