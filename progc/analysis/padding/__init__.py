"""Padding: how an axis that is normalised grows to a size that is no whole multiple (docs/growth.md 1.1).

Old units are multiplied by `s = sqrt(new / old)`, new units hold zero, or the mean of the old ones, wherever statistics
are taken: mean square and variance then come out as they were, with the epsilon that they had. `padding_of` searches
backwards from the statistics to the tensors that have to be scaled and filled (search.py), and proves forwards, in both
graphs, that nothing else changes (proof.py, transfer.py).
"""

from __future__ import annotations

from progc.analysis.padding.find import Padding, can_pad, padding_of
from progc.analysis.padding.states import PaddingRefused, PadState

__all__ = ["Padding", "PaddingRefused", "PadState", "can_pad", "padding_of"]
