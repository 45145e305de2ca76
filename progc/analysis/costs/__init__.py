"""The cost of a training step: counted from the graph, and predicted in seconds from the counts.

Neither runs the network: no memory is allocated, and parameters may be deferred (docs/adr/0015-costs.md). May import
`ir` and below.
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
