"""Which parameters take a row over, and why others do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import progc
from progc.errors import NotLosslessError
from progc.ir.check import compare
from progc.transforms.sid.sites import choose_site
from tests import zoo
from tests.transforms.sid import nets

EXACT = 1e-12


class Walk(nn.Module):
    """One path from parameters to a value, by name."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.linear, self.bare, self.head = nn.Linear(6, 8), nn.Linear(6, 8, bias=False), nn.Linear(8, 3)
        self.token, self.table = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(5, 8))
        self.norm, self.root = nn.LayerNorm(8), nn.RMSNorm(8)
        self.conv, self.groups = nn.Conv2d(2, 8, 3), nn.GroupNorm(2, 8)
        self.register_buffer("fixed", torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = getattr(self, "make_" + self.kind)(x)
        return self.head(torch.tanh(y))

    def make_bias(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def make_table(self, x: Tensor) -> Tensor:
        return self.bare(x) + self.table

    def make_norm(self, x: Tensor) -> Tensor:
        return self.norm(self.bare(x))

    def make_moved(self, x: Tensor) -> Tensor:
        return self.linear(x).transpose(1, 2).unsqueeze(2).reshape(-1, 8, 5).permute(0, 2, 1).contiguous()

    def make_cat(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(x.shape[0], -1, -1), self.linear(x)], 1)

    def make_image(self, x: Tensor) -> Tensor:
        return self.groups(self.conv(x.reshape(-1, 2, 3, 5))).flatten(2).transpose(1, 2)

    def make_difference(self, x: Tensor) -> Tensor:
        return self.linear(x) - self.table

    # refused

    def make_fixed(self, x: Tensor) -> Tensor:
        return self.bare(x) + self.fixed

    def make_root(self, x: Tensor) -> Tensor:
        return self.root(self.linear(x))

    def make_scaled(self, x: Tensor) -> Tensor:
        return 2 * self.linear(x)

    def make_half_cat(self, x: Tensor) -> Tensor:
        return torch.cat([self.linear(x), self.bare(x)], 1)

    def make_side_by_side(self, x: Tensor) -> Tensor:
        return torch.cat([self.linear(x)[..., :4], self.norm(self.bare(x))[..., 4:]], -1)

    def make_alpha(self, x: Tensor) -> Tensor:
        return torch.add(torch.relu(self.bare(x)), self.table, alpha=2)

    def make_subtracted(self, x: Tensor) -> Tensor:
        return torch.relu(self.bare(x)) - self.table

    def make_read_again(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return torch.relu(y) + y.mean(1, keepdim=True)

    def make_twice(self, x: Tensor) -> Tensor:
        return torch.relu(self.bare(x)) + self.table + torch.tanh(self.table)

    def make_itself(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y + y


def site_of(kind: str) -> tuple[progc.Program, str]:
    """The program in float64 and the name of the value that the head's activation reads."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = zoo.perturb(Walk(kind)).double()
    program = progc.capture(model, (torch.randn(2, 5, 6, dtype=torch.float64),))
    last = [node for node in program.graphs["eval"].nodes if str(node.target) == "aten.tanh.default"][-1]
    return program, last.args[0].name  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("bias", {"linear.bias"}),
        ("table", {"table"}),
        ("norm", {"norm.bias"}),
        ("moved", {"linear.bias"}),
        ("cat", {"token", "linear.bias"}),
        ("image", {"groups.bias"}),
        ("difference", {"linear.bias"}),
    ],
)
def test_a_row_is_folded(kind: str, targets: set[str]) -> None:
    program, site = site_of(kind)
    assert {name for name, _ in choose_site(program, site).fold.targets} == targets
    staged = progc.apply(program, f"inject-sid{{site={site} stages=2 stage=1 init=normal}}")
    assert compare(program, staged, seed=0).max_rel > 1e-3
    assert compare(staged, progc.apply(staged, "remove-sid"), seed=0).max_rel < EXACT


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("fixed", "has no bias"),
        ("root", "has no bias"),
        ("scaled", "does not preserve a constant"),
        ("half_cat", "has no bias"),
        ("side_by_side", "concatenates channels"),
        ("alpha", "does not preserve a constant"),
        ("subtracted", "does not preserve a constant"),
        ("read_again", "does not preserve a constant"),
        ("twice", "table would take the row, and is also read elsewhere"),
        ("itself", "also read elsewhere"),
    ],
)
def test_a_row_that_no_parameter_takes_is_refused(kind: str, reason: str) -> None:
    program, site = site_of(kind)
    fold = choose_site(program, site).fold
    assert not fold.targets and reason in fold.reason
    staged = progc.apply(program, f"inject-sid{{site={site} stages=2 stage=1}}")
    with pytest.raises(NotLosslessError, match="no parameter can absorb"):
        progc.apply(staged, "remove-sid")


def test_a_layer_that_is_used_twice_keeps_its_bias() -> None:
    program = progc.capture(zoo.perturb(nets.Shared()), (torch.randn(2, 6),))
    assert "read elsewhere" in choose_site(program, "linear_2").fold.reason


def test_a_constant_does_not_pass_dropout_in_training() -> None:
    """In eval mode it would; the site found by analysis lies before it."""
    program = progc.capture(zoo.perturb(nets.Dropped()), (torch.randn(2, 5, 6),))
    assert "does not preserve a constant" in choose_site(program, "dropout").fold.reason
    assert choose_site(program, "auto").fold.targets
