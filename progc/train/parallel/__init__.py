"""How one stage trains on one or many processes: what the trainer asks for is `Parallel`, whatever is behind it."""

from progc.train.parallel.base import Parallel, Single

__all__ = ["Parallel", "Single"]
