"""Compares two programs or output folders: `progc.diff` and `progc diff`. May import `analysis` and below."""

from progc.diffing.compare import diff
from progc.diffing.result import ProgramDiff

__all__ = ["ProgramDiff", "diff"]
