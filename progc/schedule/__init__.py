"""Schedules: stages as data, the growth space they are chosen from, their costs, and the programs they train.

May import `growth` and below. Searches that choose the stages are in `progc.search`.
"""

from progc.analysis.costs.cost import StageCost
from progc.data.regularisation import Regularisation
from progc.schedule.point import Point, Unfreeze
from progc.schedule.schedule import Candidate, Decision, ModelRef, Schedule
from progc.schedule.space import Index, Space
from progc.schedule.stage import Stage

__all__ = [
    "Candidate",
    "Decision",
    "Index",
    "ModelRef",
    "Point",
    "Regularisation",
    "Schedule",
    "Space",
    "Stage",
    "StageCost",
    "Unfreeze",
]
