"""Drop-path and dropout of a train graph: finds them, sets other rates, and inserts drop-path where a block has none.

Imports only floors below the transforms.
"""

from progc.transforms.dropping.find import Drop, find_drops, without_drops
from progc.transforms.dropping.ramp import is_linear
from progc.transforms.dropping.setting import set_drops

__all__ = ["Drop", "find_drops", "is_linear", "set_drops", "without_drops"]
