"""The passes, one file each. Looking at their names imports none of them, hence no torch.

Packages outside add passes through the entry point group `progc.passes` (`name = "module:Class"`). May import
`transforms` and below; never a schedule.
"""

from progc.pipeline.registry import PASSES, load_pass, names

__all__ = ["PASSES", "load_pass", "names"]
