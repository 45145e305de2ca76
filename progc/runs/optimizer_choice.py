"""The optimizer that a configuration names: those of torch that everybody uses, else a model library's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from progc.errors import InputError
from progc.files.suggestions import did_you_mean
from progc.runs.config import OptimizerSection

Maker = Callable[[nn.Module], Optimizer]
OWN: Mapping[str, Callable[..., Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def chosen(section: OptimizerSection, lr: float) -> Maker:
    """A function from a module to its optimizer.

    Parameters of one dim (biases, norms' scales) are a group of their own without weight decay, unless
    `decay_vectors`. The rate of both is `lr`; the trainer multiplies it.

    Raises:
        InputError: there is no such optimizer, or it does not take an option; found out on a small module.
    """

    def make(module: nn.Module) -> Optimizer:
        return _made(section, lr, module)

    make(nn.Linear(2, 2))
    return make


def slots(maker: Maker) -> int:
    """Tensors that the optimizer keeps for each parameter, such as 2 of Adam; of the parameter's size."""
    module = nn.Linear(4, 6)
    optimizer = maker(module)
    module(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    state = optimizer.state[module.weight]
    return sum(isinstance(value, torch.Tensor) and value.shape == module.weight.shape for value in state.values())


def _made(section: OptimizerSection, lr: float, module: nn.Module) -> Optimizer:
    parameters = list(module.parameters())
    matrices = [parameter for parameter in parameters if section.decay_vectors or parameter.dim() > 1]
    vectors = [parameter for parameter in parameters if not section.decay_vectors and parameter.dim() <= 1]
    groups = [
        {"params": held, "weight_decay": decay}
        for held, decay in ((matrices, section.weight_decay), (vectors, 0.0))
        if held
    ]
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in section.options.items()}
    name = section.name.lower()
    try:
        if name in OWN:
            defaults = {"momentum": 0.9} if name == "sgd" else {}
            return OWN[name](groups, lr=lr, **{**defaults, **options})
        library = _library()
        if library is not None and name in library.names():
            made: Optimizer = library.make(name, groups, lr=lr, options=options)
            return made
    except (TypeError, ValueError) as error:
        text = str(error).replace("\n", " ")
        raise InputError(f"optimizer {name} cannot be made: {text}; mend [optimizer] in the config") from error
    known = [*OWN, *(library.names() if library is not None else ())]
    more = f" or one of timm.optim ({len(known) - len(OWN)} names)" if library is not None else ""
    meant = did_you_mean(name, known)
    raise InputError(f"there is no optimizer `{section.name}`{meant or ';'} expected {', '.join(OWN)}{more}")


def _library() -> Any:
    try:
        return importlib.import_module("progc.models.optimizers")
    except ImportError:
        return None
