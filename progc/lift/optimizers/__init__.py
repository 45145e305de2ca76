"""Optimizers across growth: parameter groups, options and state follow the parameters, by name.

May import the rest of `lift`, and below.
"""

from progc.lift.optimizers.correcting import apply_corrections
from progc.lift.optimizers.holdings import Optimizers
from progc.lift.optimizers.ramp import Ramp
from progc.lift.optimizers.repointing import repoint
from progc.lift.optimizers.saved import load_optimizer, load_optimizer_state, optimizer_state, save_optimizer

__all__ = [
    "Optimizers",
    "Ramp",
    "apply_corrections",
    "load_optimizer",
    "load_optimizer_state",
    "optimizer_state",
    "repoint",
    "save_optimizer",
]
