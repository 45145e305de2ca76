"""Sub-networks: which blocks and units stay, and how their tensors belong to those of the full program."""

from progc.shrinking.places import kept, written_back

__all__ = ["kept", "written_back"]
