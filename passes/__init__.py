"""The passes, one file each. Listing their names imports none of them, and so no torch.

Other packages add passes through the entry point group `progc.passes` (`name = "module:Class"`). May import
`transforms` and the floors below them, but no schedule.
"""

from progc.pipeline.registry import PASSES, load_pass, names

__all__ = ["PASSES", "load_pass", "names"]
