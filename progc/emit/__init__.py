"""Stage modules for training: an outer graph calls one compiled region per block, shared by all equal blocks.

May import `transforms` and the floors below them, but no schedule.
"""

from progc.emit.stage_module import HOWS, StageModule, emit, regions, unit_paths

__all__ = ["HOWS", "StageModule", "emit", "regions", "unit_paths"]
