"""Schedules: stages as data, the space they are chosen from, and the strategies that choose."""

from progc.analysis.costs.cost import StageCost
from progc.data.regularisation import Regularisation
from progc.schedule.decision import Candidate, Decision
from progc.schedule.point import Point
from progc.schedule.schedule import ModelRef, Schedule
from progc.schedule.space import Index, Space
from progc.schedule.stage import Stage
from progc.schedule.unfreeze import Unfreeze

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
