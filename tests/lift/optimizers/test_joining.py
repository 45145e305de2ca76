"""Layers that are unfrozen in a loop of one's own, with an optimizer that was made of what trained at first."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import progc
from progc.errors import InputError
from progc.lift.optimizers import repoint


class Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Thawing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Linear(5, 8), nn.ModuleList(Unit() for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


FROZEN = ("blocks.0.", "blocks.1.")
PARTS = ("stem", "blocks", "head")


def captured(*frozen: str) -> progc.Program:
    torch.manual_seed(0)
    net = Thawing()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen or FROZEN))
    return progc.capture(net, (torch.randn(4, 5),))


def grouped(module: nn.Module, *, decay: bool, trains: bool = True) -> torch.optim.Optimizer:
    own = [p for p in module.parameters() if p.requires_grad or not trains]
    if not decay:
        return torch.optim.AdamW(own, lr=1e-3)
    sides = [[p for p in own if (p.dim() > 1) is matrix] for matrix in (True, False)]
    return torch.optim.AdamW([{"params": sides[0]}, {"params": sides[1], "weight_decay": 0.0}], lr=1e-3)


def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    module(torch.randn(4, 5)).square().mean().backward()
    optimizer.step()


def moved(module: nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    """Names of the parameters that a step changes."""
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    step(module, optimizer)
    return {name for name, p in module.named_parameters() if not torch.equal(before[name], p)}


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What progc logs as a warning."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler = Keep(logging.WARNING)
    logging.getLogger("progc").addHandler(handler)
    yield found
    logging.getLogger("progc").removeHandler(handler)


@pytest.mark.parametrize("decay", [False, True], ids=["one group", "two groups"])
def test_what_is_unfrozen_trains(decay: bool, logged: list[str]) -> None:
    """In the group of its kind, in the order of the program; state of the others is kept, and the log says it."""
    program = captured()
    module = program.module().train()
    optimizer = grouped(module, decay=decay)
    step(module, optimizer)
    thawed = progc.apply(program, "freeze{train=blocks,head,stem}", optimizer=optimizer).module().train()
    expected = grouped(thawed, decay=decay)
    assert [[id(p) for p in g["params"]] for g in optimizer.param_groups] == [
        [id(p) for p in g["params"]] for g in expected.param_groups
    ]
    assert optimizer.state[thawed.head.weight]["step"] == 1
    names = {name for name, _ in thawed.named_parameters()}
    assert moved(thawed, optimizer) == names
    assert len(logged) == (2 if decay else 1)
    assert "train now and were in no parameter group: they join group 0 of AdamW (lr 0.001, weight" in logged[0]


def test_layers_that_stages_unfreeze_train_too() -> None:
    """The optimizer is made of what trains in the first stage; what joins is among the notes of the stage."""
    torch.manual_seed(0)
    program = progc.capture(Thawing(), (torch.randn(4, 5),))
    schedule = progc.plan(program, stages=2, total=4, unit="steps", unfreeze="prefix:2")
    seen = []
    for stage in progc.stages(program, schedule, optimizer=lambda module: grouped(module, decay=True)):
        trains = {name for name, p in stage.module.named_parameters() if p.requires_grad}
        for _ in stage.steps:
            assert moved(stage.module, stage.optimizer) == trains
        seen.append([note for note in stage.notes if "join group" in note])
    assert [len(notes) for notes in seen] == [0, 2]


def test_a_frozen_block_that_was_copied_joins_with_its_source() -> None:
    program = captured()
    module = program.module().train()
    optimizer = grouped(module, decay=False)
    deeper = progc.apply(program, "grow-depth{to=8}", optimizer=optimizer)
    thawed = progc.apply(deeper, "freeze{train=blocks,head,stem}", optimizer=optimizer).module()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert [name for name, p in thawed.named_parameters() if p.requires_grad and id(p) not in held] == []


def test_what_trained_and_was_left_out_stays_out() -> None:
    """Another optimizer trains it, or nothing does: that was the user's choice."""
    program = captured("head.")
    module = program.module().train()
    own = [p for name, p in module.named_parameters() if p.requires_grad and not name.startswith("stem.")]
    optimizer = torch.optim.AdamW(own)
    progc.apply(program, "freeze", optimizer=optimizer)
    after = progc.apply(program, "freeze{train=blocks,head,stem}", optimizer=copy.copy(optimizer)).module()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left = {name for name, p in after.named_parameters() if id(p) not in held}
    assert left == {"stem.weight", "stem.bias"}


def test_groups_that_say_nothing_about_a_parameter_are_refused() -> None:
    """Nothing is changed then."""
    program = captured("head.")
    module = program.module().train()
    halves = [[p for k in half for p in module.get_submodule(f"blocks.{k}").parameters()] for half in ((0, 1), (2, 3))]
    optimizer = torch.optim.AdamW([{"params": halves[0]}, {"params": halves[1], "lr": 1e-4}])
    before = [list(group["params"]) for group in optimizer.param_groups]
    frozen = progc.apply(program, "freeze{train=blocks,head}")
    with pytest.raises(InputError, match=r"head\.weight trains now and is in none of the 2 parameter groups .*; make"):
        repoint(optimizer, program, frozen, [])
    now = [group["params"] for group in optimizer.param_groups]
    assert [[id(p) for p in group] for group in before] == [[id(p) for p in group] for group in now]


def test_a_block_joins_the_group_of_its_siblings() -> None:
    """Groups by layer: stem and head at other rates than blocks."""
    program = captured()
    module = program.module().train()
    parts = [[p for p in module.get_submodule(name).parameters() if p.requires_grad] for name in PARTS]
    optimizer = torch.optim.SGD([{"params": part, "lr": 0.1**k} for k, part in enumerate(parts)])
    thawed = progc.apply(program, "freeze{train=blocks,head,stem}", optimizer=optimizer).module()
    groups = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
    assert groups == [{id(p) for p in thawed.get_submodule(n).parameters()} for n in PARTS]
