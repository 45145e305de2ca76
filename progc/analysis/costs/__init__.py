"""What training steps cost: counted from the graph, predicted from what was counted, and measured.

Counting and predicting run nothing: no memory is taken, and parameters may be deferred (docs/adr/0015-costs.md).
"""

from progc.analysis.costs.counting import NotCounted, Step, count, step_of
from progc.analysis.costs.machine import Machine, Rate, default_machine
from progc.schedule.calibration import calibrate
from progc.schedule.costing import counted_stages, predicted_seconds, token_linear
from progc.schedule.shares import time_shares
from progc.schedule.timing import step_time, step_times

__all__ = [
    "Machine",
    "NotCounted",
    "Rate",
    "Step",
    "calibrate",
    "count",
    "counted_stages",
    "default_machine",
    "predicted_seconds",
    "step_of",
    "step_time",
    "step_times",
    "time_shares",
    "token_linear",
]
