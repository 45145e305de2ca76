"""Scale demands: the parameters found do what was asked, numerically, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import progc
from progc.analysis.demand import Demand, DemandRefused, solve
from progc.analysis.demand.factors import expanded
from progc.ir.program import MODES, Program


class Wrap(nn.Module):
    """A network given by a function of the module and its inputs; modules and parameters by keyword.

    The function returns the demanded value first, then values that must not change.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.function(self, *inputs)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def captured(module: nn.Module, *inputs: Tensor) -> Program:
    for tensor in [*module.parameters()]:
        tensor.data.add_(0.3 * torch.randn_like(tensor))
    return progc.capture(module.double(), tuple(x.double() if x.is_floating_point() else x for x in inputs))


def first_output(program: Program) -> dict[str, str]:
    names = {}
    for mode, graph in program.graphs.items():
        (output,) = (node for node in graph.nodes if node.op == "output")
        names[mode] = output.args[0][0].name
    return names


def scaled(program: Program, factor: float, mask: Tensor | None = None) -> dict[str, Tensor]:
    """The program's tensors with the solution of the demand on its first output applied."""
    tensors = dict(program.tensors)
    for name, scale in solve(program, [Demand(first_output(program), factor, mask)]):
        tensor = tensors[name].detach()
        tensors[name] = nn.Parameter(tensor * expanded(scale.dim, scale.values, tensor.shape))
    return tensors


def check(program: Program, factor: float, mask: Tensor | None = None) -> set[str]:
    """Solves, applies, runs both modes; returns the names of the changed parameters."""
    tensors = scaled(program, factor, mask)
    for training in (False, True):
        results = []
        for state in (program.tensors, tensors):
            torch.manual_seed(1)
            module = program.replace(tensors={name: tensor.clone() for name, tensor in state.items()}).module()
            results.append(module.train(training)(*program.example[0]))
        (before, *kept), (after, *still) = results
        wanted = before * factor if mask is None else torch.where(mask, before * factor, before)
        assert torch.allclose(after, wanted, rtol=1e-12, atol=1e-12)
        assert all(torch.equal(a, b) for a, b in zip(kept, still, strict=True))
    return {name for name in tensors if not torch.equal(tensors[name], program.tensors[name])}


def added_after(y: Tensor) -> Tensor:
    return y * 2 + y.mul_(3.0)


def with_part(y: Tensor, part: Tensor | float) -> Tensor:
    y[:, 0] = part
    return y


def part_doubled(y: Tensor) -> Tensor:
    y[:, 0] *= 2
    return y


def seen_through_a_view(y: Tensor, change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """A view from before the change, and what is returned by the change."""
    view = y.view(2, 2, -1)
    changed = change(y)
    return view * 1, changed


CASES: dict[
    str, tuple[Callable[..., tuple[Tensor, ...]], dict[str, nn.Module | nn.Parameter], tuple[int, ...], set[str]]
]
CASES = {
    "linear": (lambda m, x: (m.a(x).neg() / 3, x), {"a": nn.Linear(4, 6)}, (2, 3, 4), {"a.weight", "a.bias"}),
    "no bias": (lambda m, x: (m.a(x), x), {"a": nn.Linear(4, 6, bias=False)}, (2, 4), {"a.weight"}),
    "layer scale": (
        lambda m, x: (F.dropout(m.a(x), 0.5, m.training) * m.g,),
        {"a": nn.Linear(4, 6), "g": parameter(6)}, (2, 3, 4), {"g"},
    ),
    "scalar gate": (lambda m, x: (m.g * m.a(x),), {"a": nn.Linear(4, 4), "g": parameter()}, (2, 4), {"g"}),
    "adaptive gate": (
        lambda m, x: (m.a(x) * m.c(F.silu(x.mean(1))).chunk(3, -1)[2].unsqueeze(1), m.c(F.silu(x.mean(1)))[:, :8]),
        {"a": nn.Linear(4, 4), "c": nn.Linear(4, 12)}, (2, 5, 4), {"c.weight", "c.bias"},
    ),
    "squeeze excite": (
        lambda m, x: (m.b(m.a(x) * torch.sigmoid(m.a(x).mean((2, 3), keepdim=True))),),
        {"a": nn.Conv2d(4, 4, 3), "b": nn.BatchNorm2d(4)}, (2, 4, 6, 6), {"b.weight", "b.bias"},
    ),
    "conv": (lambda m, x: (m.a(x),), {"a": nn.Conv2d(4, 6, 3, groups=2)}, (2, 4, 6, 6), {"a.weight", "a.bias"}),
    "transposed": (
        lambda m, x: (m.a(x),), {"a": nn.ConvTranspose1d(4, 6, 3)}, (2, 4, 6), {"a.weight", "a.bias"}
    ),
    "pooled": (
        lambda m, x: (F.avg_pool2d(m.a(x), 2) + F.interpolate(m.b(x), scale_factor=0.5),),
        {"a": nn.Conv2d(4, 6, 1), "b": nn.Conv2d(4, 6, 1)}, (2, 4, 6, 6), {"a.weight", "a.bias", "b.weight", "b.bias"},
    ),
    "packed value": (
        lambda m, x: ((m.a(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0))[2],)
        + tuple(m.a(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0))[:2],
        {"a": nn.Linear(4, 24)}, (2, 5, 4), {"a.weight", "a.bias"},
    ),
    "attention value": (
        lambda m, x: (F.scaled_dot_product_attention(m.q(x), m.q(x), m.v(x)), m.q(x)),
        {"q": nn.Linear(4, 4), "v": nn.Linear(4, 6)}, (2, 1, 5, 4), {"v.weight", "v.bias"},
    ),
    "grouped heads": (
        lambda m, x: (
            torch.einsum(
                "bhqk,bkhd->bqhd",
                torch.softmax(torch.einsum("bqhd,bkhd->bhqk", *[m.q(x).unflatten(-1, (4, 3))] * 2), -1),
                m.v(x).unflatten(-1, (2, 3)).repeat_interleave(2, 2),
            ),
        ),
        {"q": nn.Linear(6, 12), "v": nn.Linear(6, 6)}, (2, 5, 6), {"v.weight", "v.bias"},
    ),
    "einsum parameter": (
        lambda m, x: (torch.einsum("...i,hdi->...hd", x, m.w).flatten(-2),), {"w": parameter(2, 3, 4)}, (2, 5, 4), {"w"}
    ),
    "addmm": (lambda m, x: (torch.addmm(m.b, x, m.w),), {"b": parameter(6), "w": parameter(4, 6)}, (3, 4), {"b", "w"}),
    "last of two": (
        lambda m, x: (m.a(F.gelu(m.b(x))),),
        {"a": nn.Linear(6, 4, bias=False), "b": nn.Linear(4, 6)}, (2, 4), {"a.weight"},
    ),
    "shuffled": (
        lambda m, x: (F.pad(F.pixel_shuffle(m.a(x), 2).roll(1, 2).flip(3), (1, 1)),),
        {"a": nn.Conv2d(4, 8, 1)}, (2, 4, 3, 3), {"a.weight", "a.bias"},
    ),
    "normed by hand": (
        lambda m, x: (m.g * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)),),
        {"g": parameter(4)}, (2, 4), {"g"},
    ),
    "layer norm": (lambda m, x: (m.n(x), x), {"n": nn.LayerNorm(4)}, (2, 3, 4), {"n.weight", "n.bias"}),
    "group norm": (lambda m, x: (m.n(x),), {"n": nn.GroupNorm(2, 4)}, (2, 4, 3), {"n.weight", "n.bias"}),
    "sum of a list": (
        lambda m, x: (sum([m.a(x), m.b(x)]),),  # starts at the number 0
        {"a": nn.Linear(4, 6), "b": nn.Linear(4, 6)}, (2, 4), {"a.weight", "a.bias", "b.weight", "b.bias"},
    ),
    "read before it is changed in place": (
        lambda m, x: (added_after(m.a(x)),), {"a": nn.Linear(4, 6)}, (2, 4), {"a.weight", "a.bias"}
    ),
    "zeros written to a part": (
        lambda m, x: (with_part(m.a(x), 0),), {"a": nn.Linear(4, 6)}, (2, 4), {"a.weight", "a.bias"}
    ),
    "part doubled in place": (
        lambda m, x: (part_doubled(m.a(x)),), {"a": nn.Linear(4, 6)}, (2, 4), {"a.weight", "a.bias"}
    ),
    "concatenated": (
        lambda m, x: (torch.cat([m.a(x), m.p.expand(2, -1, -1)], 1),),
        {"a": nn.Linear(4, 4), "p": parameter(1, 2, 4)}, (2, 3, 4), {"a.weight", "a.bias", "p"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("factor", [0.0, 0.5])
@pytest.mark.parametrize("case", CASES)
def test_meets_the_demand_and_changes_nothing_else(case: str, factor: float) -> None:
    function, parts, shape, expected = CASES[case]
    assert check(captured(Wrap(function, **parts), torch.randn(shape)), factor) == expected


def test_embedding_table() -> None:
    program = captured(Wrap(lambda m, i: (m.e(i), i * 2), e=nn.Embedding(7, 4)), torch.tensor([[1, 2], [3, 6]]))
    assert check(program, 0.5) == {"e.weight"}


def test_drop_path_is_no_place_for_a_factor() -> None:
    def drop_path(m: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        y = m.a(x)
        if m.training:
            y = y * y.new_empty(2, 1, 1).bernoulli_(0.5).div_(0.5)
        return (y,)

    program = captured(Wrap(drop_path, a=nn.Linear(4, 4)), torch.randn(2, 3, 4))
    assert check(program, 0.0) == {"a.weight", "a.bias"}


def test_mask_selects_rows() -> None:
    program = captured(Wrap(lambda m, x: (m.a(x).view(2, 3, 2, 3),), a=nn.Linear(4, 6)), torch.randn(2, 3, 4))
    mask = torch.zeros(2, 3, 2, 3, dtype=torch.bool)
    mask[:, :, 1] = True
    assert check(program, 0.25, mask) == {"a.weight", "a.bias"}


def test_mask_over_tokens_is_refused() -> None:
    program = captured(Wrap(lambda m, x: (m.a(x),), a=nn.Linear(4, 6)), torch.randn(2, 3, 4))
    mask = torch.zeros(2, 3, 6, dtype=torch.bool)
    mask[:, 1] = True
    with pytest.raises(DemandRefused, match="would not be multiplied by exactly 0.25"):
        scaled(program, 0.25, mask)


@pytest.mark.parametrize("added", [(), (6,), (1, 6)], ids=str)
def test_masks_over_all_tokens_are_met_together(added: tuple[int, ...]) -> None:
    """Steps of a scan: each asks for its own token, and one weight serves them all; so does what is broadcast."""
    parts = {"a": nn.Linear(4, 6), **({"p": parameter(*added)} if added else {})}
    program = captured(
        Wrap(lambda m, x: tuple((m.a(x) + m.p if added else m.a(x)).unbind(1)), **parts), torch.randn(2, 3, 4)
    )
    steps = [node.name for node in program.graphs["eval"].nodes if node.name.startswith("getitem")]
    demands = [Demand(dict.fromkeys(MODES, name), 0.25) for name in steps]
    assert {name for name, _ in solve(program, demands)} == {"a.weight", "a.bias", *(["p"] if added else [])}
    with pytest.raises(DemandRefused):
        solve(program, demands[:2])


def test_silences_through_an_activation_with_a_slope_at_zero() -> None:
    program = captured(Wrap(lambda m, x: (F.silu(m.n(x)),), n=nn.BatchNorm1d(4)), torch.randn(3, 4))
    assert check(program, 0.0) == {"n.weight", "n.bias"}
    with pytest.raises(DemandRefused, match="silu"):
        scaled(program, 0.5)


def test_zero_wins_over_a_gate_that_changes_too() -> None:
    """Squeeze and excite at the end of a branch: the gate of a silent value is another one, and does not matter."""

    def excited(m: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        y = m.n(x)
        return (y * torch.sigmoid(m.a(y)),)

    program = captured(Wrap(excited, n=nn.BatchNorm1d(4), a=nn.Linear(4, 4)), torch.randn(3, 4))
    assert check(program, 0.0) == {"n.weight", "n.bias"}
    with pytest.raises(DemandRefused, match="bias|sigmoid"):
        scaled(program, 0.5)


def test_side_that_is_zero_already_wins() -> None:
    """Otherwise both factors of a product would be zero and neither would ever get a gradient."""
    program = captured(Wrap(lambda m, x: (m.a(x) * m.g,), a=nn.Linear(4, 6), g=parameter(6)), torch.randn(2, 4))
    for name in ("a.weight", "a.bias"):
        program.tensors[name].data.zero_()
    names = {name for name, _ in solve(program, [Demand(first_output(program), 0.0)])}
    assert names == {"a.weight", "a.bias"}


def test_tied_blocks_hold_together_or_not_at_all() -> None:
    """One projection writes both branches: neither can be silenced alone, both can."""

    def twice(m: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        return m.a(x), m.a(torch.tanh(x))

    program = captured(Wrap(twice, a=nn.Linear(4, 4)), torch.randn(2, 4))
    one, two = [], []
    for mode in ("train", "eval"):
        (output,) = (node for node in program.graphs[mode].nodes if node.op == "output")
        one.append(output.args[0][0].name)
        two.append(output.args[0][1].name)
    both = [Demand(dict(zip(("train", "eval"), names, strict=True)), 0.5) for names in (one, two)]
    with pytest.raises(DemandRefused, match="output"):
        solve(program, both[:1])
    assert {name for name, _ in solve(program, both)} == {"a.weight", "a.bias"}


def test_a_constant_added_in_train_mode_is_found_in_the_proof() -> None:
    """The search goes through the eval graph, the proof through both."""

    def shifted(m: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        return (m.a(x) + 1.0 if m.training else m.a(x),)

    program = captured(Wrap(shifted, a=nn.Linear(4, 4)), torch.randn(2, 4))
    with pytest.raises(DemandRefused, match="add.*adds values with different factors"):
        scaled(program, 0.5)


REFUSED: dict[str, tuple[Callable[..., tuple[Tensor, ...]], dict[str, nn.Module | nn.Parameter], str]] = {
    "softmax": (lambda m, x: (torch.softmax(m.a(x), -1),), {"a": nn.Linear(4, 4)}, r"aten.softmax.int \(softmax"),
    "relu": (lambda m, x: (F.relu(m.a(x)),), {"a": nn.Linear(4, 4)}, "never train"),
    "plain norm": (lambda m, x: (F.layer_norm(m.a(x), (4,)),), {"a": nn.Linear(4, 4)}, "has no weight to scale"),
    "skip": (lambda m, x: (x + m.a(x),), {"a": nn.Linear(4, 4)}, "input of the network"),
    "rounded": (lambda m, x: (torch.div(m.a(x), 2.0, rounding_mode="floor"),), {"a": nn.Linear(4, 4)}, "not linear"),
    "constant": (lambda m, x: (m.a(x) + 1.0,), {"a": nn.Linear(4, 4)}, "adds a constant"),
    "used twice": (lambda m, x: (m.a(x), m.a.weight * 2), {"a": nn.Linear(4, 4)}, "output of the network"),
    "row written in place": (
        lambda m, x: (with_part(m.a(x), m.p),), {"a": nn.Linear(4, 4), "p": parameter()}, "select.* in place"
    ),
    "number written in place": (lambda m, x: (with_part(m.a(x), 2.0),), {"a": nn.Linear(4, 4)}, "select.* in place"),
    "added to under a view": (
        lambda m, x: seen_through_a_view(m.a(x), lambda y: y.add_(x))[:1], {"a": nn.Linear(4, 4)}, "linear in place",
    ),
    "scaled under a view": (
        lambda m, x: seen_through_a_view(m.a(x), lambda y: y.mul_(m.g))[::-1],
        {"a": nn.Linear(4, 4), "g": parameter(4)}, "linear in place",
    ),
    "buffer": (lambda m, x: (x.sign() * m.n.running_var + 0 * m.n(x),), {"n": nn.BatchNorm1d(4)}, "no parameter|input"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_a_reason(case: str) -> None:
    function, parts, reason = REFUSED[case]
    program = captured(Wrap(function, **parts), torch.randn(2, 4))
    with pytest.raises(DemandRefused, match=reason):
        scaled(program, 0.0)
