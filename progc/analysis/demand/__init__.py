"""Scale demands: which parameters to scale so that a value is multiplied by a factor and nothing else changes.

Identity blocks (factor 0 on every residual branch) and attention rescaling (1/sqrt(r) on the queries) are built on
`solve`, which searches backwards from the value and proves each answer forwards. May import `lift`, `ir` and below.
"""

from __future__ import annotations

from progc.analysis.demand.solver import Demand, solve
from progc.ir.operations import DemandRefused

__all__ = ["Demand", "DemandRefused", "solve"]
