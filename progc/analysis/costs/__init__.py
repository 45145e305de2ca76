"""What training steps cost: counted from the graph, predicted from what was counted, and measured.

Counting and predicting run nothing: no memory is taken, and parameters may be deferred (docs/adr/0015-costs.md).
"""

from progc.analysis.costs.counting import NotCounted, Step, count, step_of
from progc.analysis.costs.machine import Machine, Rate, default_machine

__all__ = [
    "Machine",
    "NotCounted",
    "Rate",
    "Step",
    "count",
    "default_machine",
    "step_of",
]
