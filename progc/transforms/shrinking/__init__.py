"""Sub-networks: which blocks and units stay, and how their tensors relate to those of the full program.

Imports only floors below the transforms, and the transforms of depth and width.
"""

from progc.lift.revert import kept, written_back

__all__ = ["kept", "written_back"]
