"""A source with a tied tensor and a target without the tie: two copies compute the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import progc
from progc.errors import TargetError
from progc.growth.grow import grow_with_report
from progc.growth.target.untie import untie
from tests import zoo
from tests.grown import assert_loads


class Words(nn.Module):
    """Embedding, a block, a norm, a head, tied or not."""

    def __init__(self, dim: int, tied: bool, depth: int = 2) -> None:
        super().__init__()
        self.table = nn.Embedding(11, dim)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(dim, dim), nn.Tanh()) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 11, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x))


EXAMPLE = (torch.tensor([[1, 2, 3], [4, 0, 10]]),)


def captured(dim: int, tied: bool, depth: int = 2) -> tuple[nn.Module, progc.Program]:
    torch.manual_seed(dim)
    model = zoo.perturb(Words(dim, tied, depth)).eval()
    return model, progc.capture(model, EXAMPLE)


@pytest.mark.parametrize(("dim", "depth"), [(6, 4), (12, 2), (18, 3)])
def test_an_untied_target_is_reached(dim: int, depth: int) -> None:
    module, program = captured(6, tied=True)
    reference, target = captured(dim, False, depth)
    growth = grow_with_report(program, target)
    assert growth.report["lossless"] is True
    assert any("head.weight becomes a copy of table.weight" in note for note in growth.plan.notes) is True
    assert not growth.program.tied
    assert_loads(reference, growth.program.state_dict(), module, EXAMPLE, {})
    grown = growth.plan.apply(program.tensors)
    assert all(torch.equal(grown[name], tensor) for name, tensor in growth.program.state_dict().items())


def test_only_copies_are_made_and_each_read_finds_its_own() -> None:
    _, program = captured(6, tied=True)
    result = untie(program, captured(6, tied=False)[1])
    assert result.changed and result.lift is not None and result.lossless is True
    free = result.program
    assert free.tensors["head.weight"] is not free.tensors["table.weight"]
    assert torch.equal(free.tensors["head.weight"], free.tensors["table.weight"])
    assert program.tied and program.tensors["head.weight"] is program.tensors["table.weight"]
    for graph in free.graphs.values():
        reads = {str(node.target): next(iter(node.users)) for node in graph.nodes if node.op == "get_attr"}
        assert "embedding" in str(reads["table.weight"].target) and "linear" in str(reads["head.weight"].target)


def test_moments_of_the_copy_start_at_zero() -> None:
    _, program = captured(6, tied=True)
    growth = grow_with_report(program, captured(6, tied=False)[1])
    ones = torch.ones_like(program.tensors["table.weight"])
    state = {"table.weight": {"step": torch.tensor(3.0), "exp_avg": ones, "exp_avg_sq": ones}}
    grown = growth.plan.moments(state)
    assert torch.equal(grown["table.weight"]["exp_avg"], ones)
    assert not grown["head.weight"]["exp_avg"].any()


def test_where_no_tie_is_too_many_nothing_happens() -> None:
    for tied in (True, False):
        _, program = captured(6, tied)
        assert untie(program, captured(12, tied)[1]).program is program


def test_two_tensors_do_not_become_one() -> None:
    with pytest.raises(
        TargetError, match=r"ties head\.weight to table\.weight, and they are two tensors in the source"
    ):
        progc.grow(captured(6, tied=False)[1], captured(12, tied=True)[1])
