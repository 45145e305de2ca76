"""Optimizer moments of padded axes: the gradient law against autograd (docs/growth.md 3.1)."""

from __future__ import annotations

import pytest
import torch

from progc.ir.program import Program
from progc.lift.index_map import IndexMap
from progc.passes.grow_width import GrowWidth
from tests.analysis.axes.growth import axes_of, program_of
from tests.analysis.padding import nets
from tests.gradients import gradients, in_float64

IDS = torch.tensor([[1, 2, 3, 0], [4, 0, 10, 7]])


def old_units(index_map: IndexMap | None, size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.bool) if index_map is None else ~index_map.fresh()


def compared(
    program: Program, tensor: str, dim: int, size: int
) -> dict[str, tuple[torch.Tensor, torch.Tensor, int | None]]:
    """Gradients of old entries after growth: autograd's, the law's, and the producer dim that is padded."""
    (axis,) = axes_of(program, tensor, dim)
    result = GrowWidth(axes=(f"{axis.name}:{size}",), noise=0.0).run(program)
    assert result.lossless and result.lift is not None
    wide = in_float64(program.tensors)
    old = gradients(program.replace(tensors=wide))
    mapped = result.lift.moments({key: {"exp_avg": grad, "exp_avg_sq": grad**2} for key, grad in old.items()})
    new = gradients(result.program.replace(tensors=result.lift.apply(wide)))
    found = {}
    for entry in result.lift.tensors:
        if entry.name not in new:
            continue
        expected, squares, grad = mapped[entry.name]["exp_avg"], mapped[entry.name]["exp_avg_sq"], new[entry.name]
        sides = program.axes.sides
        producer = None
        for dim, index_map in enumerate(entry.dims):
            past = old_units(index_map, grad.shape[dim])
            fresh = (~past).nonzero().flatten()
            if len(fresh):
                past_square = squares.index_select(dim, past.nonzero().flatten())
                assert not expected.index_select(dim, fresh).any()
                # Several dims may have new units: the mean is over entries that are old along all of them.
                assert (squares.index_select(dim, fresh) > 0).all() and past_square.mean() > 0
            expected, grad, squares = (t.index_select(dim, past.nonzero().flatten()) for t in (expected, grad, squares))
            if len(fresh) and "producer" in sides.get((entry.name, dim), {}).get(axis.atom, ()):
                producer = dim
        torch.testing.assert_close(squares, expected**2)
        found[entry.name] = (grad, expected, producer)
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_the_law_is_exact_where_new_units_are_zero(fused: bool, tied: bool) -> None:
    program = program_of(nets.Decoder(fused=fused, tied=tied), IDS)
    found = compared(program, "embed.weight", 1, 17)
    assert len(found) >= 11
    for name, (grad, expected, _) in found.items():
        torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()), msg=name)


def test_the_law_is_exact_up_to_a_shift_where_new_units_hold_means() -> None:
    """A LayerNorm's mean belongs to the new units too: old units of the stream lose a part that is common to them.

    Producers' gradients follow the law after their mean over the old units is taken out, all others exactly.
    """
    program = program_of(nets.VisionTransformer(), torch.randn(2, 3, 8, 8))
    found = compared(program, "patches.weight", 0, 17)
    shifted = 0
    for name, (grad, expected, producer) in found.items():
        if name.endswith(("gain1", "gain2")):
            continue  # the shift is multiplied by the unit's value there
        atol = 1e-9 * float(expected.abs().max())
        if producer is not None and "norm" not in name:
            shifted += not torch.allclose(grad, expected, rtol=1e-6, atol=atol)
            *block, part, _ = ["", *name.split(".")]
            gains = {"proj": ".".join([*block[1:], "gain1"]), "down": ".".join([*block[1:], "gain2"])}.get(part)
            if gains is not None:  # behind a layer scale the shift is in proportion to the gain
                gain = program.tensors[gains].detach().reshape([-1] + [1] * (grad.dim() - 1))
                grad, expected = grad / gain, expected / gain
            grad, expected = grad - grad.mean(producer, keepdim=True), expected - expected.mean(producer, keepdim=True)
        torch.testing.assert_close(grad, expected, rtol=1e-7, atol=100 * atol, msg=name)
    assert shifted >= 6
