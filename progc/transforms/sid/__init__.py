"""The stage identifier: a learned row per stage that tells a network which stage of its training it is in.

`sites.py` finds the sites, `edit.py` writes the row into both graphs, and `folding.py` folds it into the network's own
parameters at the end. Two functions are for use without the passes: `guided` (classifier-free guidance) and
`progc.transforms.sid.prompt` (identifiers in the text of a prompt). Imports only floors below the transforms.
"""

from progc.ir.program import StageIdentifier
from progc.transforms.sid.prompt import guided

__all__ = ["StageIdentifier", "guided"]
