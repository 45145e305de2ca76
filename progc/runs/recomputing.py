"""Counts the activations that a training step keeps when blocks are recomputed in the backward, from shapes only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from progc.analysis.costs.counting import empty
from progc.emit.pieces import cut
from progc.emit.stage_module import blocks_of
from progc.ir.check import GraphRun
from progc.ir.program import Program


@dataclasses.dataclass(frozen=True)
class KeptTensors:
    """Bytes of distinct storages, without parameters and buffers.

    Attributes:
        forward: bytes kept by the forward: inputs of blocks, and what is saved between blocks.
        block: bytes that the block that saves most adds while its backward runs.
    """

    forward: int
    block: int

    @property
    def total(self) -> int:
        """Peak bytes."""
        return self.forward + self.block


def kept(program: Program, batch: int) -> KeptTensors:
    """Returns what a step of `batch` samples keeps.

    Args:
        program: a program whose train graph runs on shapes (see `progc.analysis.costs.counting.count`); its parameters
            may be deferred.
        batch: number of samples.
    """
    pieces = cut(program, "train")
    blocks = set(blocks_of(program, pieces))
    label = {node: piece.label for piece in pieces if piece.label in blocks for node in piece.nodes}
    with FakeTensorMode():
        tensors, inputs = empty(program, batch)
        own = {tensor.untyped_storage()._cdata for tensor in tensors.values()}
        run = _RecomputedRun(program.graphs["train"], tensors, label, own)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(run.pack, lambda tensor: tensor):
            run.run(*inputs, enable_io_processing=False)
        for node, block in label.items():
            if block in run.saved:  # blocks before everything that trains are not recomputed
                for source in node.all_input_nodes:
                    if label.get(source) != block:
                        run.keep(None, run.env[source])
        saved = run.saved
        forward = saved.pop(None, {})
        sizes = [
            sum(storage.nbytes() for key, storage in found.items() if key not in forward) for found in saved.values()
        ]
        return KeptTensors(sum(storage.nbytes() for storage in forward.values()), max(sizes, default=0))


class _RecomputedRun(GraphRun):
    """Records in which block each tensor is saved; None means between blocks."""

    def __init__(
        self, graph: fx.Graph, tensors: dict[str, torch.Tensor], label: Mapping[fx.Node, str | None], own: set[int]
    ) -> None:
        super().__init__(graph, tensors, keep=True)
        self._label, self._own = label, own
        self._now: str | None = None
        self.saved: dict[str | None, dict[int, torch.UntypedStorage]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node, and remembers its block."""
        self._now = self._label.get(n)
        return super().run_node(n)

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Called by autograd for each tensor that it saves."""
        self.keep(self._now, tensor)
        return tensor

    def keep(self, block: str | None, value: Any) -> None:
        """Records the storages of a value; holding them keeps their addresses from being reused."""
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in self._own:
                storage = leaf.untyped_storage()
                self.saved.setdefault(block, {})[storage._cdata] = storage
