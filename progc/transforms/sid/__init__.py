"""The stage identifier: a learned row per stage that tells a network which stage of its training it is in.

Sites are found (`sites.py`), the row is written into both graphs (`edit.py`), and folded into the network's own
parameters in the end (`folding.py`). For use beside the passes: `guided` (classifier-free guidance) and
`progc.transforms.sid.prompt` (identifiers in the text of a prompt).
"""

from progc.ir.program import StageIdentifier
from progc.transforms.sid.prompt import guided

__all__ = ["StageIdentifier", "guided"]
