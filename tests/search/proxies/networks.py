"""Networks with batches and tasks for the proxies' tests, and what they compute, written as plain loops.

The loops use the user's own module, not the program: nothing of progc is in them.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import progc
from progc.data.task import Task
from progc.ir.program import Program
from tests import zoo

Case = tuple[nn.Module, Program, Any]


def _dropped() -> zoo.Built:
    """A vision transformer with dropout in several places and stochastic depth."""
    import timm

    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=5,
        drop_rate=0.1, pos_drop_rate=0.1, proj_drop_rate=0.1, drop_path_rate=0.3, init_values=0.5,
    )  # fmt: skip
    return model, (zoo.image(32),), {}


@functools.cache
def _captured(name: str, dtype: torch.dtype) -> tuple[nn.Module, Program, Any]:
    """Module, program and example."""
    if name == "dropped":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, args, kwargs = _dropped()
        zoo.perturb(model)
    else:
        model, args, kwargs = zoo.build(name)
    model = model.to(dtype)
    example = pytree.tree_map(lambda leaf: leaf.to(dtype) if torch.is_floating_point(leaf) else leaf, (args, kwargs))
    program = progc.capture(model, *example)
    return model.train(), program, example


def case(name: str, dtype: torch.dtype = torch.float32, samples: int = 4) -> Case:
    """The module in train mode, its program, and a batch `(args, kwargs)`; shared, change none."""
    model, program, example = _captured(name, dtype)
    return model, program, batch_of(example, samples)


def batch_of(example: Any, samples: int) -> Any:
    """As many samples of the example's kind, all of them different."""
    generator = torch.Generator().manual_seed(7)

    def more(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        rows = leaf[torch.arange(samples) % len(leaf)]
        if leaf.is_floating_point():
            return rows + torch.randn(rows.shape, generator=generator, dtype=leaf.dtype)
        return torch.randint(int(leaf.max()) + 1, rows.shape, generator=generator)

    return pytree.tree_map(more, example)


def leaves(outputs: Any) -> list[Tensor]:
    """Floating tensors of the outputs."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def loss(outputs: Any, batch: Any) -> Tensor:
    """A mean over the samples that depends on every output element."""
    return torch.stack([(leaf.flatten(1) ** 2 + leaf.flatten(1).sin()).mean() for leaf in leaves(outputs)]).sum()


def task() -> Task:
    """A task of such batches: `(args, kwargs)` is the call."""
    return Task(samples=[], loss=loss, inputs=lambda batch: batch)


def outputs_of(model: nn.Module, batch: Any, seed: int) -> Any:
    """Outputs of a copy of the module under one seed, with the copy."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        args, kwargs = batch
        return model(*args, **kwargs)


def naive_kernel(model: nn.Module, batch: Any, wanted: Collection[str], of: str, seed: int) -> Tensor:
    """K = J J^T by a backward per sample through the forward of the whole batch, in float64."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted)
    outputs = outputs_of(model, batch, seed)
    rows = []
    for sample in range(len(leaves(outputs)[0])):
        own = pytree.tree_map(lambda leaf, at=sample: leaf[at : at + 1], outputs)
        number = loss(own, None) if of == "loss" else torch.stack([leaf.sum() for leaf in leaves(own)]).sum()
        model.zero_grad()
        number.backward(retain_graph=True)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]).double())
    stacked = torch.stack(rows)
    return stacked @ stacked.T


def naive_gradients(model: nn.Module, batches: list[Any], wanted: Collection[str], seed: int) -> dict[str, Tensor]:
    """Gradients of the loss, all kept: `[batches, *shape]` in float64."""
    found: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for place, batch in enumerate(batches):
        own = copy.deepcopy(model)
        for name, parameter in own.named_parameters():
            parameter.requires_grad_(name in wanted)
        loss(outputs_of(own, batch, seed + place), batch).backward()
        for name in wanted:
            gradient = own.get_parameter(name).grad
            assert gradient is not None
            found[name].append(gradient.double())
    return {name: torch.stack(rows) for name, rows in found.items()}


def trainable(program: Program) -> set[str]:
    """Names of what trains."""
    return {name for name, tensor in program.parameters() if tensor.requires_grad}


def frozen(program: Program, pipeline: str) -> Program:
    """The program with another trainable set."""
    return progc.apply(program, pipeline)
