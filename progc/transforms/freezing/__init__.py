"""The trainable set of a program: selects the parameters that train, and makes the program in which they do.

The trainable set *is* `requires_grad` of the parameters, nothing else (docs/adr/0011-freeze.md). Imports only floors
below the transforms.
"""

from progc.transforms.freezing.select import Selection, select
from progc.transforms.freezing.setting import set_trainable, trainable

__all__ = ["Selection", "select", "set_trainable", "trainable"]
