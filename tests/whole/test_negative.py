"""What must not be grown the easy way: each is refused with its reason or made exact, and none is silently wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import progc
from progc.analysis.axes import registry
from progc.analysis.axes.records import Value
from progc.errors import CheckError, NotLosslessError, TargetError, VerifyError
from progc.growth.grow import grow_with_report
from progc.ir.check import compare
from progc.models.sizes import parse_sizes
from progc.passes.grow_width import GrowWidth
from progc.transforms.width import widening
from tests.analysis.axes.growth import attempt, difference, program_of, sound, widen


class Tokens(nn.Module):
    """f64[2, 5, 6] through a linear layer to width 8, an op, and a linear layer."""

    def __init__(self, op: Callable[..., Tensor], out: int = 8, **parts: Any) -> None:
        super().__init__()
        self.op, self.into, self.out = op, nn.Linear(6, 8), nn.Linear(out, 3)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.op(self, self.into(x)))


def tokens(op: Callable[..., Tensor], out: int = 8, **parts: Any) -> progc.Program:
    return program_of(Tokens(op, out, **parts), torch.randn(2, 5, 6))


def table(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def axis_names(program: progc.Program) -> list[str]:
    return [axis.name for axis in program.axes.growable]


# -- normalisations ------------------------------------------------------------------------------------------


def test_layer_norm_falls_back_to_copies_where_zeros_were_asked_for() -> None:
    program = tokens(lambda m, x: m.norm(x), norm=nn.LayerNorm(8))
    result = GrowWidth(axes=("into:16",), init="zero").run(program)
    assert "copy" in result.notes[0] and "layer_norm" in result.notes[0]
    assert difference(program, result.program) < 1e-9


def test_layer_norm_of_a_width_that_is_no_multiple_is_refused_or_reported() -> None:
    """Behind an activation, where new units cannot hold the mean of the old ones (tests/analysis/padding)."""
    program = tokens(lambda m, x: m.norm(F.relu(x)), norm=nn.LayerNorm(8))
    with pytest.raises(
        NotLosslessError, match=r"8 to 12 is not an integer factor, and aten.layer_norm .* are 8 and 16"
    ):
        widen(program, {"into": 12})
    result = GrowWidth(axes=("into:12",), lossy=True).run(program)
    assert result.lossless is False and any("not an integer factor" in note for note in result.notes)
    assert 1e-6 < compare(program, result.program, seed=0).max_rel < float("inf")
    growth = grow_with_report(program, parse_sizes("width=12"), lossy=True)
    assert growth.plan.lossless is False and growth.plan.reasons


def test_appended_channels_never_meet_old_group_statistics() -> None:
    program = tokens(lambda m, x: m.norm(x.mT).mT, norm=nn.GroupNorm(2, 8))
    assert sound(program)
    for axis in program.axes.growable:
        for factor in (2, 3):
            assert attempt(program, {axis.name: factor * axis.size}) == "exact"


def test_groups_across_a_seam_need_one_factor() -> None:
    program = tokens(lambda m, x: F.group_norm(torch.cat([x, m.other(x)], -1).mT, 3).mT, 12, other=nn.Linear(8, 4))
    assert "across two parts of a concatenation" in attempt(program, {"into": 16})
    assert "across two parts of a concatenation" in attempt(program, {"into": 16, "other": 12})
    assert attempt(program, {"into": 16, "other": 8}) == "exact"


def test_layer_norm_over_parts_that_grow_by_different_factors() -> None:
    program = tokens(lambda m, x: F.layer_norm(torch.cat([x, m.other(x)], -1), (12,)), 12, other=nn.Linear(8, 4))
    assert "different factors" in attempt(program, {"into": 16})


# -- attention -----------------------------------------------------------------------------------------------


class Rotary(nn.Module):
    """Attention with rotary positions and grouped queries."""

    def __init__(self, interleaved: bool, computed: bool, queries: int = 4, keys: int = 2) -> None:
        super().__init__()
        self.interleaved, self.computed, self.queries, self.keys = interleaved, computed, queries, keys
        self.embed = nn.Linear(6, 16)
        self.q, self.k, self.v = nn.Linear(16, 4 * queries), nn.Linear(16, 4 * keys), nn.Linear(16, 4 * keys)
        self.o, self.head = nn.Linear(4 * queries, 16), nn.Linear(16, 3)
        self.register_buffer("frequencies", torch.tensor([1.0, 0.1]))

    def turn(self, x: Tensor) -> Tensor:
        frequencies = 10.0 ** -torch.arange(2, dtype=x.dtype) if self.computed else self.frequencies
        angles = torch.outer(torch.arange(5, dtype=x.dtype), frequencies)
        if self.interleaved:
            a, b = x.unflatten(-1, (2, 2)).unbind(-1)
            cos, sin = angles.cos(), angles.sin()
            return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
        a, b = x.chunk(2, -1)
        angles = torch.cat([angles, angles], -1)
        return x * angles.cos() + torch.cat([-b, a], -1) * angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (
            layer(x).unflatten(-1, (count, 4)).transpose(1, 2)
            for layer, count in ((self.q, self.queries), (self.k, self.keys), (self.v, self.keys))
        )
        k, v = (t.repeat_interleave(self.queries // self.keys, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v)
        return self.head(x + self.o(y.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("computed", [False, True])
def test_rotary_head_dims_grow_by_pairs_or_not_at_all(interleaved: bool, computed: bool) -> None:
    program = program_of(Rotary(interleaved, computed), torch.randn(2, 5, 6))
    outcomes = sound(program)
    pairs = [axis for axis in program.axes.axes if any(s.tensor == "q.weight" and s.dim == 0 for s in axis.spans)]
    rotated = [outcomes[axis.name] for axis in pairs if axis.meaning == "head dim"]
    if computed:
        assert "exact" not in rotated
    else:
        assert "exact" in rotated
        grown = widen(
            program, {axis.name: 2 * axis.size for axis in pairs if axis.meaning == "head dim" and axis.growable}
        )
        assert grown.tensors["frequencies"].shape == (4,)  # every frequency twice, none computed again


@pytest.mark.parametrize("init", ["copy", "zero"])
def test_grouped_queries_grow_within_their_group(init: str) -> None:
    program = program_of(Rotary(False, False), torch.randn(2, 5, 6))
    heads = {axis.name: axis.size for axis in program.axes.growable if axis.meaning == "heads"}
    assert sorted(heads.values()) == [2, 2]
    for name, size in heads.items():
        for new in (size + 1, 2 * size):
            assert attempt(program, {name: new}, init) == "exact"


class Mha(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


class Encoder(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=norm_first)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)))


class Recurrent(nn.Module):
    def __init__(self, cls: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.embed, self.core, self.head = nn.Linear(6, 8), cls(8, 7, batch_first=True), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(self.embed(x))[0])


class Tied(nn.Module):
    """A head that is the embedding, with `last` before it."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.embed, self.mix, self.last = nn.Embedding(11, 8), nn.Linear(8, 8), last

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return F.linear(self.last(x + self.mix(x)), self.embed.weight)


class AutoEncoder(nn.Module):
    """One matrix used both ways: each of its dims is producer once and consumer once."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.w, self.out = nn.Linear(6, 8), table(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(F.linear(torch.tanh(F.linear(self.into(x).relu(), self.w)), self.w.t())))


class Twice(nn.Module):
    """One module called twice, on one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down, self.head = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(2):
            x = x + self.down(F.gelu(self.up(x)))
        return self.head(x)


ids = torch.tensor([[1, 2, 3], [4, 5, 10]])
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "attention module": (lambda: Mha(True), torch.randn(2, 5, 6), "embed"),
    "attention module, tokens first": (lambda: Mha(False), torch.randn(5, 2, 6), "embed"),
    "encoder layer": (lambda: Encoder(False), torch.randn(2, 5, 6), "embed"),
    "encoder layer, norm first": (lambda: Encoder(True), torch.randn(2, 5, 6), "embed"),
    "lstm": (lambda: Recurrent(nn.LSTM), torch.randn(2, 5, 6), ""),
    "gru": (lambda: Recurrent(nn.GRU), torch.randn(2, 5, 6), ""),
    "tied head after a norm": (lambda: Tied(nn.LayerNorm(8)), ids, "embed"),
    "tied head without a norm": (lambda: Tied(nn.Identity()), ids, ""),
    "tied head after a nonlinearity": (lambda: Tied(nn.Tanh()), ids, ""),
    "tied autoencoder": (AutoEncoder, torch.randn(2, 5, 6), ""),
    "module called twice": (Twice, torch.randn(2, 5, 6), "embed"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network_is_exact_or_refused(name: str) -> None:
    build, example, must_grow = NETWORKS[name]
    outcomes = sound(program_of(build(), example))
    if must_grow:
        assert "exact" in (outcomes[must_grow], outcomes.get(f"{must_grow}.2")), outcomes
    else:
        assert all(outcomes.values())


# -- ops that look at more than one unit -----------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "softmax of channels": (lambda m, x: x.softmax(-1), "softmax runs over it"),
    "product of channels": (lambda m, x: x * x.prod(-1, keepdim=True), "prod reduces over it"),
    "length of channels": (lambda m, x: F.normalize(x, dim=-1), "a vector norm is taken over it"),
    "cumulative sum": (lambda m, x: x.cumsum(-1), "order of its units"),
    "sorted channels": (lambda m, x: x.sort(-1)[0], "order of its units"),
    "flipped channels": (lambda m, x: x.flip(-1), "order of units"),
    "rolled channels": (lambda m, x: x.roll(1, -1), "order of units"),
    "positions along channels": (lambda m, x: x * torch.arange(8).to(x), "its values depend on position"),
    "sines of the width": (
        lambda m, x: x + torch.sin(torch.arange(5).to(x)[:, None] * 10.0 ** -(torch.arange(8).to(x) / 8)),
        "its values depend on position",
    ),
    "pool along channels": (lambda m, x: F.max_pool1d(x, 3, 1, 1), "runs along it"),
    "average along channels": (lambda m, x: F.avg_pool1d(x, 3, 1, 1), "runs along it"),
    "fixed pool of channels": (lambda m, x: F.adaptive_avg_pool1d(x, 2).repeat_interleave(4, -1), "runs along it"),
    "first channel": (lambda m, x: x * x.select(-1, 0).unsqueeze(-1), "selected by position"),
    "place of the maximum": (lambda m, x: x * x.argmax(-1, True), "returns an index into it"),
    "written at an index": (
        lambda m, x: x.index_put((torch.tensor([0]), torch.tensor([1])), torch.zeros(8).to(x)), "index_put",
    ),
    "complex numbers": (lambda m, x: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2)))).flatten(-2),
                        "no rule for op aten.view_as_complex"),
    "spectrum": (lambda m, x: torch.fft.fft(x, dim=-1).real, "no rule for op aten.fft_fft"),
    "einsum diagonal": (lambda m, x: x * torch.einsum("cc->c", torch.outer(x[0, 0], x[0, 0])), "diagonal|position"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_op_over_channels_is_refused_with_its_reason(name: str) -> None:
    op, reason = REFUSED[name]
    program = tokens(op)
    sound(program)
    reasons = " ".join(axis.reason for axis in program.axes.axes)
    assert re.search(reason, reasons), reasons
    assert "into" not in axis_names(program)


EXACT: dict[str, tuple[Callable[..., Tensor], int, dict[str, Any]]] = {
    "maximum of channels": (lambda m, x: x - x.amax(-1, keepdim=True), 8, {}),
    "scale from the width": (lambda m, x: x * x.shape[-1] ** -0.5, 8, {}),
    "square root of the width": (lambda m, x: x * 8**0.5, 8, {}),
    "stacked channels": (lambda m, x: torch.stack([x, x * 2], -1).flatten(-2), 16, {}),
    "weight cut before use": (lambda m, x: F.linear(x, m.w[:4], m.b[2:6]), 4, {"w": table(6, 8), "b": table(8)}),
    "bias made by cat": (
        lambda m, x: F.linear(x, m.w, torch.cat([m.b, torch.zeros_like(m.b), m.c])), 12,
        {"w": table(12, 8), "b": table(4), "c": table(4)},
    ),
    "low-rank weight": (lambda m, x: x + F.linear(x, m.b @ m.a), 8, {"a": table(3, 8), "b": table(8, 3)}),
    "low-rank update": (
        lambda m, x: F.linear(x, m.w + m.b @ m.a * 0.5), 8, {"w": table(8, 8), "a": table(3, 8), "b": table(8, 3)},
    ),
    "slice written in place": (
        lambda m, x: _write_half(x), 8, {},
    ),
    "slope per channel": (lambda m, x: m.act(x.mT).mT, 8, {"act": nn.PReLU(8)}),
    "weight standardised": (
        lambda m, x: F.linear(x, (m.w - m.w.mean(1, True)) / (m.w.var(1, correction=0, keepdim=True) + 1).sqrt()),
        8, {"w": table(8, 8)},
    ),
    "weight normalised": (lambda m, x: F.linear(x, m.g * m.w / m.w.norm(dim=1, keepdim=True)), 8,
                          {"w": table(8, 8), "g": table(8, 1)}),
}  # fmt: skip


def _write_half(x: Tensor) -> Tensor:
    y = x.clone()
    y[..., 2:4] = x[..., 4:6] * 2
    y[..., :2].zero_()
    return y


@pytest.mark.parametrize("name", EXACT)
def test_unusual_network_is_exact_or_refused(name: str) -> None:
    op, out, parts = EXACT[name]
    outcomes = sound(tokens(op, out, **parts))
    assert "exact" in outcomes.values(), outcomes


def test_spectral_norm_is_refused_or_exact() -> None:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
    outcomes = sound(tokens(lambda m, x: m.layer(x), layer=layer))
    assert "exact" not in outcomes.values()


def test_random_numbers_of_eval_mode_are_refused() -> None:
    for op in (
        lambda m, x: F.dropout(x, 0.5),
        lambda m, x: x + torch.randn_like(x),
        lambda m, x: torch.bernoulli(x.sigmoid()),
    ):
        program = tokens(op)
        assert "draws random numbers in eval mode" in " ".join(axis.reason for axis in program.axes.axes)


# -- a rule that is wrong --------------------------------------------------------------------------------------


def pointwise(ctx: Any, node: Any, args: Any) -> Value:
    return Value(args["self"].dims)


def norm_without_condition(ctx: Any, node: Any, args: Any) -> Value:
    for name in ("weight", "bias"):
        ctx.unify(args["input"].dims[-1], args[name].dims[0])
    ctx.sizes(args, "normalized_shape", args["input"].dims[-1:])
    return Value(args["input"].dims)


def test_the_float64_check_catches_a_planted_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._RULES, "softmax", pointwise)
    program = tokens(lambda m, x: x.softmax(-1))
    with pytest.raises(CheckError, match="analysis calls this growth lossless, but the output changes"):
        grow_with_report(program, parse_sizes("width*2"))


def test_the_float64_check_catches_a_norm_without_its_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._RULES, "layer_norm", norm_without_condition)
    program = tokens(lambda m, x: m.norm(x), norm=nn.LayerNorm(8))
    with pytest.raises(CheckError, match="bug in progc"):
        grow_with_report(program, parse_sizes("into=12"))


def test_a_rule_that_forgets_a_dim_pins_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(ctx: Any, node: Any, args: Any) -> Value:
        return Value(args["self"].dims[:-1])

    monkeypatch.setitem(registry._RULES, "sum", forgetful)
    program = tokens(lambda m, x: x * x.sum(-1).unsqueeze(-1))
    assert program.axes["into"].reason == "the rule of aten.sum does not say what happens to it"


def test_the_verifier_catches_a_wrong_size(monkeypatch: pytest.MonkeyPatch) -> None:
    real = widening.set_literal

    def off_by_one(node: Any, path: Any, old: int, new: int) -> None:
        real(node, path, old, new + 1)

    program = tokens(lambda m, x: x.reshape(10, 8).reshape(2, 5, 8))
    monkeypatch.setattr(widening, "set_literal", off_by_one)
    with pytest.raises(VerifyError, match=r"after grow-width: .*`(view|reshape)"):
        progc.apply(program, [GrowWidth(axes=("into:16",))])


def test_a_width_that_cannot_grow_names_the_reason() -> None:
    program = tokens(lambda m, x: x.softmax(-1))
    with pytest.raises(TargetError, match="axis into .* cannot grow to 16: .*softmax runs over it"):
        widen(program, {"into": 16})
