"""How proxies run a program, node by node, without changing its tensors; and the number per sample they differentiate.

The number of a sample is its loss, or the sum of its outputs, computed in a forward pass of the whole batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from progc.data.task import Task
from progc.errors import InputError
from progc.ir.binding import InputBinding
from progc.ir.check import GraphRun
from progc.ir.program import Mode, Program
from progc.ir.random_state import seeded
from progc.search.proxies import samples as batches
from progc.search.proxies.sample_dims import SamplePlace


class ProxyRun(GraphRun):
    """Runs a program's graph on copies of its buffers, because counters and running statistics are written to."""

    def __init__(self, program: Program, tensors: Mapping[str, torch.Tensor], mode: Mode = "train") -> None:
        super().__init__(program.graphs[mode], tensors)
        self._buffers = {name for name, spec in program.specs.items() if spec.kind == "buffer"}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> torch.Tensor:
        """Returns a tensor by name; a copy if it is a buffer."""
        value = super().get_attr(target, args, kwargs)
        return value.detach().clone() if target in self._buffers else value


class Network:
    """A program with its task, as proxies run it.

    Raises:
        InputError: the program has shapes only.
    """

    def __init__(self, program: Program, task: Task, stage: int | None = None) -> None:
        self.program, self.task, self.stage = program.complete(), task, stage
        self._binding = InputBinding(self.program)

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """All tensors, by name."""
        return self.program.tensors

    @property
    def trainable(self) -> dict[str, torch.Tensor]:
        """The trainable parameters, by canonical name."""
        return {name: tensor for name, tensor in self.program.parameters() if tensor.requires_grad}

    def fitted(self, batches: Any) -> list[Any]:
        """Returns the batches at the program's image size."""
        return [self.task.fitted(batch, self.program) for batch in batches]

    def inputs(self, batch: Any) -> list[Any]:
        """Returns the flat inputs of the graphs for a batch.

        Raises:
            InputError: they do not fit the program.
        """
        args, kwargs = self.task.inputs(batch)
        sid = self.program.sid
        if sid is not None and sid.input is not None:
            first = next(leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
            row = sid.null if self.stage is None else self.stage
            kwargs = {**kwargs, sid.input: torch.full(first.shape[:1], row, device=first.device)}
        return self._binding.flatten(args, kwargs)

    def structured(self, flat: Any, mode: Mode = "train") -> Any:
        """Returns flat outputs of a graph in the structure that the user's class returns."""
        return pytree.tree_unflatten(flat, self.program.signature.out_specs[mode])

    def outputs(self, batch: Any, tensors: Mapping[str, torch.Tensor] | None = None) -> Any:
        """Returns the outputs of the train graph for a batch."""
        run = ProxyRun(self.program, self.tensors if tensors is None else tensors)
        return self.structured(run.run(*self.inputs(batch), enable_io_processing=False))


@contextlib.contextmanager
def undisturbed(program: Program, seed: int) -> Iterator[None]:
    """Enables gradients, and seeds the global random generators; their states are restored afterwards."""
    with seeded(seed), torch.enable_grad():
        yield


OBJECTIVES = ("loss", "outputs")
"""What can be differentiated for each sample."""


def output_places(network: Network, dims: Any) -> list[SamplePlace | None]:
    """Returns where the samples are in every flat output of the train graph; None for an output without samples.

    Args:
        dims: `dims` of `sample_dims.Samples`; None takes dim 0.
    """
    (output,) = [node for node in network.program.graphs["train"].nodes if node.op == "output"]
    leaves = output.args[0]
    flat: Sequence[Any] = leaves if isinstance(leaves, (list, tuple)) else [leaves]
    if dims is None:
        return [SamplePlace(0, 1) if isinstance(leaf, fx.Node) else None for leaf in flat]
    return [dims.get(leaf) if isinstance(leaf, fx.Node) else None for leaf in flat]


def by_sample(
    network: Network, of: str, flat: Sequence[Any], places: Sequence[SamplePlace | None], batch: Any, count: int
) -> Tensor:
    """Returns the loss of each sample alone, or the sum of all its output elements: `[count]`.

    Args:
        of: `loss` or `outputs`.
        flat: the flat outputs of the train graph.
        places: what `output_places` returned.
        batch: the batch, for the loss.
        count: number of samples.

    Raises:
        InputError: the loss is not a scalar, or no output is a floating-point tensor of samples.
    """
    if of == "outputs":
        sums = [
            place.split(leaf, count).flatten(1).sum(1)
            for leaf, place in zip(flat, places, strict=True)
            if place is not None and _holds(leaf, place, count) and leaf.is_floating_point()
        ]
        if not sums:
            raise InputError(
                f"{network.program.class_name}: expected an output that is a floating-point tensor [samples, ...], got "
                "none; use the loss instead"
            )
        return torch.stack(sums).sum(0)
    losses = []
    for sample in range(count):
        own = [
            place.split(leaf, count)[sample] if place is not None and _holds(leaf, place, count) else leaf
            for leaf, place in zip(flat, places, strict=True)
        ]
        losses.append(loss_of(network, own, batches.part(batch, sample, sample + 1)))
    return torch.stack(losses)


def loss_of(network: Network, flat: Sequence[Any], batch: Any) -> Tensor:
    """Returns the task's loss of flat outputs of the train graph, a scalar tensor.

    Raises:
        InputError: the loss is not a single number.
    """
    loss = network.task.loss(network.structured(list(flat)), batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise InputError(
            f"loss(outputs, batch): expected a scalar tensor, got {given}; return the mean loss over the samples"
        )
    return loss.reshape(())


def _holds(leaf: Any, place: SamplePlace, count: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > place.dim and leaf.shape[place.dim] == place.each * count
