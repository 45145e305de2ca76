"""Stage modules: programs as an outer graph that calls one region per block, each shared by all blocks alike."""

from progc.emit.stage_module import HOWS, StageModule, emit, regions, unit_paths

__all__ = ["HOWS", "StageModule", "emit", "regions", "unit_paths"]
