"""Drop-path and dropout of a train graph: found by analysis, set to other rates, put where a block lacks it."""

from progc.transforms.dropping.find import Drop, find_drops
from progc.transforms.dropping.ramp import is_linear
from progc.transforms.dropping.setting import set_drops

__all__ = ["Drop", "find_drops", "is_linear", "set_drops"]
