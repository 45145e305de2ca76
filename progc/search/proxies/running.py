"""How proxies run a program: node by node over its tensors, which are read and never written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from progc.data.task import Task
from progc.ir.binding import InputBinding
from progc.ir.program import Mode, Program
from progc.ir.running import GraphRun


class ProxyRun(GraphRun):
    """Runs a program's graph; buffers are cloned when they are read, since counters and statistics are written to."""

    def __init__(self, program: Program, tensors: Mapping[str, torch.Tensor], mode: Mode = "train") -> None:
        super().__init__(program.graphs[mode], tensors)
        self._buffers = {name for name, spec in program.specs.items() if spec.kind == "buffer"}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> torch.Tensor:
        """A tensor by name."""
        value = super().get_attr(target, args, kwargs)
        return value.detach().clone() if target in self._buffers else value


class Network:
    """A program with its task, as proxies call it.

    Raises:
        InputError: the program was captured for its shapes only.
    """

    def __init__(self, program: Program, task: Task, stage: int | None = None) -> None:
        self.program, self.task, self.stage = program.complete(), task, stage
        self._binding = InputBinding(self.program)

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """All tensors by name."""
        return self.program.tensors

    @property
    def trainable(self) -> dict[str, torch.Tensor]:
        """Parameters that train, by canonical name."""
        return {name: tensor for name, tensor in self.program.parameters() if tensor.requires_grad}

    def fitted(self, batches: Any) -> list[Any]:
        """Batches at the program's image size."""
        return [self.task.fitted(batch, self.program) for batch in batches]

    def inputs(self, batch: Any) -> list[Any]:
        """Flat inputs of the graphs for a batch.

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
        """Flat outputs of a graph in the structure that the user's class returns."""
        return pytree.tree_unflatten(flat, self.program.signature.out_specs[mode])

    def outputs(self, batch: Any, tensors: Mapping[str, torch.Tensor] | None = None) -> Any:
        """Outputs of the train graph for a batch."""
        run = ProxyRun(self.program, self.tensors if tensors is None else tensors)
        return self.structured(run.run(*self.inputs(batch), enable_io_processing=False))


@contextlib.contextmanager
def undisturbed(program: Program, seed: int) -> Iterator[None]:
    """Gradients on, random generators seeded inside and put back after: masks are drawn from the global ones."""
    tensors = program.tensors.values()
    devices = sorted({tensor.device.index or 0 for tensor in tensors if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed devices that are not put back
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield
