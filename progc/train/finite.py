"""Names the tensor that is not finite in a network whose outputs are not finite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from progc.data.finite import NotFiniteError
from progc.errors import CheckError

ADVICE = "lower the learning rate, look for samples that are not finite, and resume from an earlier checkpoint"


@contextlib.contextmanager
def blaming(module: nn.Module, which: str) -> Iterator[None]:
    """Turns outputs that are not finite into an error that names the first tensor of the module that is not.

    Args:
        module: the network, with the tensors that it computes with.
        which: whose outputs they are, such as `the averaged weights 0.999`.

    Raises:
        CheckError: outputs were not finite inside.
    """
    try:
        yield
    except NotFiniteError as odd:
        name = first_not_finite(module)
        why = f", and so is {name}" if name is not None else ""
        raise CheckError(f"outputs of {which} in eval mode are not finite ({odd}){why}; {ADVICE}") from odd


def first_not_finite(module: nn.Module) -> str | None:
    """Returns the name of the first parameter or buffer with a value that is not finite; None if all are finite.

    Of sharded tensors it looks at the rows of this rank.
    """
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        local: Callable[[], torch.Tensor] | None = getattr(tensor, "to_local", None)
        own = tensor.detach() if local is None else local()
        if own.is_floating_point() and not bool(torch.isfinite(own).all()):
            return name
    return None
