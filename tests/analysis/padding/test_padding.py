"""Normalised axes at sizes that are no multiple: exact in both modes, or refused with the reason."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import progc
from progc.analysis.padding import PadState, padding_of
from progc.errors import CheckError
from progc.growth.grow import grow_with_report
from progc.ir.program import Program
from progc.lift.entry import Fill
from progc.lift.lift import Lift
from progc.lift.revert import ROUNDED, tolerance
from progc.passes.grow_width import GrowWidth
from progc.pipeline.base import PassResult
from progc.transforms.width import widening
from tests.analysis.axes.growth import EXACT, attempt, difference, program_of, widen
from tests.analysis.padding import nets

IMAGE, IDS, TOKENS = torch.randn(2, 3, 8, 8), torch.tensor([[1, 2, 3, 0], [4, 0, 10, 7]]), torch.randn(2, 5, 6)


def stream(write: Callable[..., Tensor], width: int = 8, **parts: Any) -> Program:
    return program_of(nets.Stream(write, width, **parts), TOKENS)


NETWORKS: dict[str, Callable[[], Program]] = {
    "transformer": lambda: program_of(nets.VisionTransformer(), IMAGE),
    "decoder": lambda: program_of(nets.Decoder(), IDS),
    "decoder, written out": lambda: program_of(nets.Decoder(fused=False), IDS),
    "decoder, own head": lambda: program_of(nets.Decoder(tied=False), IDS),
    "stages": lambda: program_of(nets.Downsampling(), torch.randn(2, 3, 8, 8)),
    "layer norm written out": lambda: stream(lambda m, x: m.f(x), norm=nets.Centred(8), f=nn.Linear(8, 8)),
    "variance": lambda: stream(lambda m, x: m.f((x - x.mean(-1, keepdim=True)) / x.var(-1, False, keepdim=True)),
                               f=nn.Linear(8, 8)),
    "norm without affine": lambda: stream(lambda m, x: m.f(x), norm=nn.LayerNorm(8, elementwise_affine=False),
                                          f=nn.Linear(8, 8)),
    "norm of a branch into an RMS stream": lambda: stream(lambda m, x: m.after(m.f(x)), norm=nn.RMSNorm(8),
                                                          f=nn.Linear(8, 8), after=nn.LayerNorm(8)),
    "activation into an RMS stream": lambda: stream(lambda m, x: F.leaky_relu(m.f(x)), norm=nn.RMSNorm(8),
                                                    f=nn.Linear(8, 8)),
    "gated branch into an RMS stream": lambda: stream(lambda m, x: m.f(x) * torch.sigmoid(m.g(x)), norm=nn.RMSNorm(8),
                                                      f=nn.Linear(8, 8), g=nn.Linear(8, 8)),
    "two gains in a row": lambda: stream(lambda m, x: m.a.weight * (m.b.weight * m.f(x)), f=nn.Linear(8, 8),
                                         a=nn.RMSNorm(8), b=nn.RMSNorm(8)),
    "one norm for two streams": lambda: stream(lambda m, x: m.norm(x), norm=nn.RMSNorm(8)),
}  # fmt: skip


@pytest.fixture(scope="module", params=NETWORKS)
def program(request: pytest.FixtureRequest) -> Program:
    return NETWORKS[request.param]()


def normalised(program: Program) -> dict[str, int]:
    """Axes that statistics are taken over, at a size that is no multiple."""
    axes = [axis for axis in program.axes.growable if any("statistics" in text for text in axis.conditions)]
    assert axes
    return {axis.name: axis.size + 3 + i for i, axis in enumerate(axes)}


def pad(program: Program, **options: Any) -> PassResult:
    sizes = normalised(program)
    result = GrowWidth(axes=tuple(f"{name}:{size}" for name, size in sizes.items()), **options).run(program)
    assert result.lossless and result.lift is not None
    return result


@pytest.mark.parametrize("init", ["copy", "zero"])
def test_padding_is_exact_in_both_modes(program: Program, init: str) -> None:
    result = pad(program, init=init)
    assert difference(program, result.program) < EXACT
    assert all("pad, because" in note for note in result.notes)
    assert tolerance([result.lift]) == ROUNDED  # type: ignore[list-item]
    assert max(t.detach().abs().max() for t in program.tensors.values()) > 0.3  # perturbed


@pytest.mark.parametrize("init", ["copy", "zero"])
def test_all_axes_grow_together(program: Program, init: str) -> None:
    """Padding beside copies and new units of other axes, each by an odd number of units."""
    sizes = {axis.name: axis.size + 1 + 2 * (i % 3) for i, axis in enumerate(program.axes.growable)}
    assert difference(program, widen(program, sizes, init)) < EXACT


def test_growing_twice_is_exact(program: Program) -> None:
    once = pad(program).program
    assert difference(program, pad(once).program) < EXACT


def test_the_lift_is_data(program: Program) -> None:
    lift = pad(program).lift
    assert lift is not None
    again = Lift.from_json(json.loads(json.dumps(lift.to_json())))
    assert again == lift
    first, second = lift.apply(program.tensors), again.apply(program.tensors)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_everything_new_has_a_gradient_by_step_two(program: Program) -> None:
    """The slice of every unit along every dim that grew, in one of the first two steps of AdamW."""
    result = pad(program)
    assert result.lift is not None
    module = result.program.module().train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    generator, total = torch.Generator().manual_seed(0), {}
    for _ in range(2):
        optimizer.zero_grad()
        out = module(*program.example[0])
        (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum().backward()
        optimizer.step()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            total[name] = total.get(name, 0) + parameter.grad.abs()
    for entry in result.lift.tensors:
        grad = total.get(entry.name)
        for dim, index_map in enumerate(entry.dims if grad is not None else ()):
            if index_map is not None and grad is not None:
                slices = grad.movedim(dim, 0).reshape(grad.shape[dim], -1).amax(1)
                assert (slices > 1e-9 * grad.max()).all(), (entry.name, dim, slices)


def test_averaged_weights_use_their_own_gains() -> None:
    """The rows that a layer scale is folded into are means weighted by the copy's gains, not by the program's."""
    program = NETWORKS["transformer"]()
    result = pad(program)
    averaged = {name: torch.randn_like(tensor) for name, tensor in program.tensors.items()}
    assert result.lift is not None
    grown = result.lift.apply(averaged)
    assert difference(
        program.replace(tensors=averaged), result.program.replace(tensors=grown), train=False
    ) < EXACT  # fmt: skip
    weight, gain = averaged["blocks.0.proj.weight"], averaged["blocks.0.gain1"]
    factor = (15 / 12) ** 0.5
    expected = factor * (gain[:, None] * weight).mean(0)
    torch.testing.assert_close(grown["blocks.0.proj.weight"][-1], expected)
    torch.testing.assert_close(grown["blocks.0.gain1"], torch.cat([gain, torch.ones(3)]).to(gain))


def test_the_states_of_a_transformer() -> None:
    program = NETWORKS["transformer"]()
    axis = program.axes["patches"]
    states = padding_of(program.axes, axis.atom).states
    assert states["patches.weight", 0] == states["positions", 2] == states["token", 2] == PadState(1, "mean")
    assert states["blocks.0.proj.weight", 0] == PadState(1, "mean", ("blocks.0.gain1",))
    assert states["blocks.0.gain1", 0] == PadState(0, "one", ("blocks.0.gain1",))
    assert states["norm.weight", 0] == PadState(-1, "free") and states["norm.bias", 0] == PadState(0, "zero")
    assert states["head.weight", 1] == PadState(0, "free")
    tied = NETWORKS["decoder"]()
    states = padding_of(tied.axes, tied.axes["embed"].atom).states
    assert states["embed.weight", 1] == PadState(1, "zero")
    assert states["final.weight", 0] == PadState(-2, "free") and states["norm1.weight", 0] == PadState(-1, "free")


# -- what a wrong rule would do ----------------------------------------------------------------------------------


def _without_factors(scales: list[Any], fills: list[Fill]) -> tuple[list[Any], list[Fill]]:
    return [], fills


def _zeros_for_means(scales: list[Any], fills: list[Fill]) -> tuple[list[Any], list[Fill]]:
    return scales, [dataclasses.replace(fill, how="zero") for fill in fills]


def _shifts_left_alone(scales: list[Any], fills: list[Fill]) -> tuple[list[Any], list[Fill]]:
    return scales, [fill for fill in fills if fill.how != "zero"]


def _unweighted(scales: list[Any], fills: list[Fill]) -> tuple[list[Any], list[Fill]]:
    return scales, [dataclasses.replace(fill, weights=()) for fill in fills]


def _gains_as_they_come(scales: list[Any], fills: list[Fill]) -> tuple[list[Any], list[Fill]]:
    return scales, [fill for fill in fills if fill.how != "one"]


@pytest.mark.parametrize(
    "wrong", [_without_factors, _zeros_for_means, _shifts_left_alone, _unweighted, _gains_as_they_come]
)
def test_a_wrong_rule_is_caught(wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    program = NETWORKS["transformer"]()
    sizes = progc.models.sizes.parse_sizes("patches=15")
    assert grow_with_report(program, sizes).report["max_rel_diff"] < EXACT
    right = widening.Widening.padded
    monkeypatch.setattr(widening.Widening, "padded", lambda *args: wrong(*right(*args)))
    with pytest.raises(CheckError, match="bug in progc"):
        grow_with_report(program, sizes)


# -- refusals ----------------------------------------------------------------------------------------------------


REFUSED: dict[str, tuple[Callable[[], Program], str]] = {
    "a norm behind the sum": (
        lambda: stream(lambda m, x: m.g(m.after(x + m.f(x))) + m.after(x), f=nn.Linear(8, 8), g=nn.Linear(8, 8),
                       after=nn.LayerNorm(8)),
        r"aten\.layer_norm\.default \(\S+ in after\) writes into it, and after its gain and shift",
    ),
    "an activation without a slope": (
        lambda: stream(lambda m, x: F.relu(m.f(x)), norm=nn.RMSNorm(8), f=nn.Linear(8, 8)),
        "has gradient zero at zero|its gradient at zero is zero",
    ),
    "an activation behind a norm without a slope": (
        lambda: stream(lambda m, x: m.f(F.relu(m.norm(x))), f=nn.Linear(8, 8)),
        "has gradient zero at zero, so new units",
    ),
    "an activation": (lambda: stream(lambda m, x: F.gelu(m.f(x)), f=nn.Linear(8, 8)), r"gelu\.default .* of a mean"),
    "an activation and a factor": (
        lambda: stream(lambda m, x: F.gelu(m.f(x)), norm=nn.RMSNorm(8), f=nn.Linear(8, 8)),
        "does not pass a factor through",
    ),
    "a product": (
        lambda: stream(lambda m, x: m.f(x) * torch.sigmoid(m.g(x)), f=nn.Linear(8, 8), g=nn.Linear(8, 8)),
        "multiplies two values, and a product of means is not a mean",
    ),
    "a constant for all units": (lambda: stream(lambda m, x: m.f(x) + 0.5, f=nn.Linear(8, 8)), "0.5 is a number"),
    "the mean of a token": (
        lambda: stream(lambda m, x: m.f(x).mean(-1, keepdim=True).expand(-1, -1, 8), f=nn.Linear(8, 8)), "no rule|mean",
    ),
    "depthwise convolution": (
        lambda: stream(lambda m, x: m.f(x.mT).mT, f=nn.Conv1d(8, 8, 3, padding=1, groups=8)),
        "has separate weights for every unit",
    ),
    "batch norm": (lambda: stream(lambda m, x: m.f(x.mT).mT, f=nn.BatchNorm1d(8)), "does not pass the factor through"),
    "group norm": (
        lambda: stream(lambda m, x: m.f(x.mT).mT, f=nn.GroupNorm(1, 8)), "statistics over space and channels together",
    ),
    "mean and mean square of one value": (
        lambda: stream(lambda m, x: m.f(m.other(x)), f=nn.Linear(8, 8), other=nn.RMSNorm(8)),
        "is normalised in two ways",
    ),
    "queries and keys of which both are normalised": (
        lambda: program_of(nets.Decoder(qk=True), IDS), "zero on both sides, which never train",
    ),
    "the tied head reads the raw stream": (
        lambda: program_of(RawHead(), IDS), "needs different factors for its readers",
    ),
}  # fmt: skip


class RawHead(nn.Module):
    """A tied head without a norm before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.f = nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return F.linear(x + self.f(self.norm(x)), self.embed.weight)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_operation(name: str) -> None:
    build, reason = REFUSED[name]
    program = build()
    axes = [a for a in program.axes.growable if any("statistics" in text for text in a.conditions)]
    axis = next(a for a in axes if a.meaning == "head dim") if "queries" in name else axes[0]
    size = axis.size + 1
    found = attempt(program, {axis.name: size})
    assert f"{axis.size} to {size} is not an integer factor" in found and "the nearest exact sizes are" in found, found
    assert re.search(f"padding is not exact, because .*({reason})", found), found
