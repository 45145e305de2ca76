"""Sub-networks: which blocks and units stay, and how their tensors belong to those of the full program."""

from progc.lift.revert import kept, written_back

__all__ = ["kept", "written_back"]
