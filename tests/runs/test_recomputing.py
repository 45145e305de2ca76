"""What a step keeps where blocks are computed again: the number from shapes beside that of a real step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import progc
from progc.analysis.costs.counting import count
from progc.emit import emit
from progc.ir.program import Program
from progc.runs.recomputing import kept
from tests.train.running import program


class Live(TorchDispatchMode):
    """Storages that operations made, as long as somebody holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def bytes(self, *apart: torch.Tensor) -> int:
        """Of all that is alive, but for the storages of some tensors."""
        left_out = {tensor.untyped_storage()._cdata for tensor in apart}
        return sum(size for key, (ref, size) in self.made.items() if key not in left_out and not ref.expired())


def kept_in_a_step(program: Program, batch: int, recompute: bool) -> int:
    """Bytes that are there between forward and backward, besides what was there before."""
    module = emit(program, "eager", recompute=recompute).train()
    images = torch.randn(batch, 1, 8, 8)
    own = [*module.parameters(), *module.buffers(), images]
    with Live() as live:
        loss = module(images).sum()
        found = live.bytes(loss, *own)
    loss.backward()
    return found


@pytest.mark.parametrize("setting", ["", "freeze{level=1 of=2}", "freeze{prefix=2 stem=true}"])
def test_the_forward_keeps_what_was_predicted(setting: str) -> None:
    """The images that a stem saves are there before the step, and so counted by the prediction alone."""
    net = progc.apply(program(), setting) if setting else program()
    stem = 0 if "stem" in setting else 6 * 64 * 4
    predicted = kept(net, 6)
    real = kept_in_a_step(net, 6, True)
    assert predicted.forward - stem == pytest.approx(real, rel=0.02)
    whole = count(net, batch=6).activation_bytes
    assert whole - stem == pytest.approx(kept_in_a_step(net, 6, False), rel=0.02)
    assert predicted.forward < predicted.total < whole
