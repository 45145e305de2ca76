"""What changed between two programs: `progc.diff` and `progc diff`."""

from progc.diffing.compare import diff
from progc.diffing.result import ProgramDiff

__all__ = ["ProgramDiff", "diff"]
