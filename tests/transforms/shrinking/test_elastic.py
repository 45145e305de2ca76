"""Elastic supernets: sub-networks that share the storage of the full program train its entries, and no others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from progc.ir.program import Program
from progc.pipeline.base import PassResult
from progc.pipeline.manager import run
from progc.transforms.shrinking import kept, written_back
from tests import zoo
from tests.transforms.shrinking.small import captured, shared, shrunk

Optimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "SGD": lambda tensors: torch.optim.SGD(tensors, lr=0.1, momentum=0.9, weight_decay=0.01),
    "SGD, foreach": lambda tensors: torch.optim.SGD(tensors, lr=0.1, momentum=0.9, foreach=True),
    "AdamW": lambda tensors: torch.optim.AdamW(tensors, lr=0.01),
    "AdamW, foreach": lambda tensors: torch.optim.AdamW(tensors, lr=0.01, foreach=True),
}


def train(program: Program, optimizer: Optimizer, steps: int = 3) -> None:
    module = program.module().train()
    chosen = optimizer(module.parameters())
    args, kwargs = program.example
    for step in range(steps):
        torch.manual_seed(step)
        output = module(*args, **kwargs)
        loss = (output * torch.randn(output.shape)).square().mean() + output.mean()
        chosen.zero_grad()
        loss.backward()
        chosen.step()


def places(result: PassResult, name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """The full tensor that a small one comes from, and which of its entries it holds, as a mask."""
    assert result.lift is not None
    source, dims = kept(result.lift, name)
    mask = torch.zeros(tensor.shape, dtype=torch.bool)
    index = [torch.arange(size) if own is None else own for size, own in zip(
        tensor.shape, dims or (None,) * tensor.dim(), strict=True)]  # fmt: skip
    mask[torch.meshgrid(*index, indexing="ij") if index else ()] = True
    return source, mask


def held(full: Program, result: PassResult) -> dict[str, Tensor]:
    """Per full tensor the entries that the sub-network holds."""
    assert result.lift is not None
    masks = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in full.tensors.items()}
    for name in result.program.tensors:
        source = kept(result.lift, name)[0]
        masks[source] |= places(result, name, full.tensors[source])[1]
    return masks


def own_copy(program: Program) -> Program:
    """The program over tensors of its own: tests train it."""
    made = {id(tensor): copy.deepcopy(tensor) for tensor in program.tensors.values()}
    return program.replace(tensors={name: made[id(tensor)] for name, tensor in program.tensors.items()})


TRAINED = [
    ("own:flat", "depth=0.5 width=*0.5"),
    ("own:flat", "depth=3 width=7 units=leading rule=last"),
    ("own:conv", "width=*0.5"),
    ("own:tied", "width=4"),
]


# Every optimizer on one network and every network with one optimizer for each commit.
@pytest.mark.parametrize(
    ("name", "text", "optimizer"),
    [
        pytest.param(*case, optimizer, marks=[pytest.mark.slow] if column and row else [])
        for row, case in enumerate(TRAINED)
        for column, optimizer in enumerate(OPTIMIZERS)
    ],
)
def test_training_the_sub_network_trains_its_entries_of_the_full_one(name: str, text: str, optimizer: str) -> None:
    full = own_copy(zoo.captured(name)[1])
    result = shrunk(full, text)
    assert result.lift is not None
    origin = {new: kept(result.lift, new)[0] for new in result.program.tensors}
    assert all(shared(tensor, full.tensors[origin[new]]) for new, tensor in result.program.tensors.items())
    assert not any("cannot share" in note for note in result.notes)
    before = {name: tensor.detach().clone() for name, tensor in full.tensors.items()}
    train(result.program, OPTIMIZERS[optimizer])
    changed = set()
    for name, mask in held(full, result).items():
        now = full.tensors[name].detach()
        assert torch.equal(now[~mask], before[name][~mask]), name
        if not torch.equal(now[mask], before[name][mask]):
            changed.add(name)
    trained = {origin[new] for new, spec in result.program.specs.items() if spec.kind == "parameter"}
    assert trained - changed <= {"grouped.bias"}  # in front of a BatchNorm: without weight decay nothing moves it


def test_statistics_of_a_view_reach_the_full_program() -> None:
    full = own_copy(zoo.captured("own:conv")[1])
    result = shrunk(full, "width=*0.5")
    before = full.tensors["stem_norm.running_mean"].clone()
    train(result.program, OPTIMIZERS["SGD"], steps=1)
    after = full.tensors["stem_norm.running_mean"]
    assert torch.equal(after[1::2], before[1::2]) and not (after[::2] == before[::2]).any()


def test_sub_networks_alternate_on_one_storage() -> None:
    """Each step of one is seen by the others where they overlap, and nowhere else."""
    full = own_copy(zoo.captured("own:flat")[1])
    texts = ("depth=0.5", "depth=0.5 width=*0.5", "depth=3 width=*0.5 rule=first", "width=9 units=leading")
    results = [shrunk(full, text) for text in texts]
    masks = [held(full, result) for result in results]
    modules = [result.program.module().train() for result in results]
    optimizers = [torch.optim.AdamW(module.parameters(), lr=0.01) for module in modules]
    args, _ = full.example
    for step in range(8):
        chosen = step % len(results)
        before = {name: tensor.detach().clone() for name, tensor in full.tensors.items()}
        modules[chosen](*args).square().mean().backward()
        optimizers[chosen].step()
        optimizers[chosen].zero_grad()
        for name, mask in masks[chosen].items():
            assert torch.equal(full.tensors[name].detach()[~mask], before[name][~mask])
        moved = full.tensors["head_w"].detach() != before["head_w"]
        assert torch.equal(moved, masks[chosen]["head_w"])
        # What any sub-network answers is what one cut from the full program now would answer.
        for module, text in zip(modules, texts, strict=True):
            again = shrunk(full, text).program.module().train()
            assert torch.equal(module(*args), again(*args))


def test_the_full_program_sees_writes_to_its_views() -> None:
    """A backward pass of the full network that was begun before a step of a sub-network is refused by autograd."""
    full = own_copy(zoo.captured("own:flat")[1])
    small = shrunk(full, "width=*0.5").program
    loss = full.module().train()(*full.example[0]).square().mean()
    train(small, OPTIMIZERS["SGD"], steps=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Table(nn.Module):
    """Reads a table through a view of another shape, which needs its entries side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 6))
        self.body, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x) + self.table.view(2, 2, 6).sum(1)))


def test_what_cannot_be_a_view_is_copied_and_put_back() -> None:
    """Packed projections whose heads shrink: the units are no view. They train apart, and written_back puts them in."""
    full = own_copy(zoo.captured("own:einsum")[1])
    result = shrunk(full, "depth=2 width=12")
    assert result.lift is not None and any("cannot share storage" in note for note in result.notes)
    apart = [name for name, tensor in result.program.tensors.items()
             if not shared(tensor, full.tensors[kept(result.lift, name)[0]])]  # fmt: skip
    assert "layers.0.attention.qkv" in apart and "layers.0.up.weight" not in apart
    before = {name: tensor.detach().clone() for name, tensor in full.tensors.items()}
    assert all(written_back(result.lift, result.program.tensors, full.tensors)[name] is tensor
               for name, tensor in full.tensors.items())  # fmt: skip
    train(result.program, OPTIMIZERS["AdamW"])
    assert torch.equal(full.tensors["layers.0.attention.qkv"], before["layers.0.attention.qkv"])
    back = written_back(result.lift, result.program.tensors, full.tensors)
    assert list(back) == list(full.tensors)
    again = result.lift.apply(back)
    assert all(torch.equal(again[name], tensor) for name, tensor in result.program.tensors.items())
    for name, mask in held(full, result).items():
        assert torch.equal(back[name].detach()[~mask], before[name][~mask])
        assert not mask.any() or not torch.equal(back[name], before[name]) or not before[name].is_floating_point()
    assert isinstance(back["layers.0.attention.qkv"], nn.Parameter)


def test_heads_that_stay_let_a_packed_projection_be_shared() -> None:
    full = own_copy(zoo.captured("own:einsum")[1])
    result = shrunk(full, "width=*0.5 heads=3")
    assert not any("cannot share" in note for note in result.notes)
    assert shared(result.program.tensors["layers.1.attention.qkv"], full.tensors["layers.1.attention.qkv"])


def test_a_tensor_that_is_viewed_in_another_shape_is_copied() -> None:
    full = captured(Table(), torch.randn(2, 3))
    result = shrunk(full, "axes=body:3")
    assert any("table" in note and "cannot share storage" in note for note in result.notes)
    assert shared(result.program.tensors["body.weight"], full.tensors["body.weight"])
    assert not shared(result.program.tensors["table"], full.tensors["table"])


def test_copies_share_nothing() -> None:
    for name, text in (("own:flat", "depth=0.5"), ("own:conv", "width=*0.5"), ("own:tied", "width=4")):
        full = zoo.captured(name)[1]
        result = shrunk(full, f"{text} storage=copy")
        storages = {tensor.untyped_storage().data_ptr() for tensor in full.tensors.values()}
        assert all(t.untyped_storage().data_ptr() not in storages for t in result.program.tensors.values())


def test_a_frozen_tensor_stays_frozen() -> None:
    full = own_copy(zoo.captured("own:flat")[1])
    for name in ("stem_w", "w1_2"):
        full.tensors[name].requires_grad_(False)
    for storage in ("share", "copy"):
        small, _ = run(full, f"shrink{{depth=0.5 width=*0.5 storage={storage}}}")
        frozen = [name for name, tensor in small.parameters() if not tensor.requires_grad]
        assert frozen == ["stem_w", "w1_1"]


def test_a_lift_shrinks_averages_too() -> None:
    full = zoo.captured("own:conv")[1]
    result = shrunk(full, "width=*0.5")
    assert result.lift is not None
    average = {name: tensor.detach() + 1 for name, tensor in full.tensors.items() if tensor.is_floating_point()}
    average |= {name: tensor for name, tensor in full.tensors.items() if name not in average}
    small = result.lift.apply(average)
    expected = {name: tensor + 1 for name, tensor in result.program.tensors.items() if tensor.is_floating_point()}
    assert all(torch.equal(small[name], tensor) for name, tensor in expected.items())
    assert shared(small["stem.weight"], average["stem.weight"])
