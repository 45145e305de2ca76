"""Scale demands: which parameters make a value come out multiplied by a factor, and change nothing else.

`solve` is what identity blocks (factor 0 on every residual branch) and attention rescaling (1/sqrt(r) on the
queries) are built on. It searches backwards from the value and proves each answer forwards.
"""

from __future__ import annotations

from progc.analysis.demand.solver import Demand, solve
from progc.ir.operations import DemandRefused

__all__ = ["Demand", "DemandRefused", "solve"]
