"""Padding: growth of a normalised axis to a size that is not a multiple of the old one (docs/growth.md, section 1.1).

Where statistics are taken, old units are multiplied by `s = sqrt(new / old)`, and new units are zero or the mean of the
old ones. Mean square and variance then stay the same, with the same epsilon. `padding_of` searches backwards from the
statistics for the tensors to scale and fill (search.py), and proves forwards, in both graphs, that nothing else changes
(proof.py, transfer.py). May import `analysis.axes`, `analysis.demand` and `ir`.
"""

from __future__ import annotations

from progc.analysis.padding.search import Padding, can_pad, padding_of
from progc.analysis.padding.states import PaddingRefused, PadState

__all__ = ["Padding", "PaddingRefused", "PadState", "can_pad", "padding_of"]
