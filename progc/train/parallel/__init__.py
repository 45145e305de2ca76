"""Training on one or several processes (DDP, FSDP); the trainer uses the interface `Parallel` only."""

from progc.train.parallel.base import Parallel, Single

__all__ = ["Parallel", "Single"]
