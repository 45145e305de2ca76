"""Every rule is run: an op between two layers is widened, and the result is exact or refused with a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from progc.analysis.axes.dims import OUTPUT
from progc.analysis.axes.registry import _RULES
from progc.ir.program import MODES, Program
from tests.analysis.axes.between import WIDTH, Between, BetweenConvs, Case, Op
from tests.analysis.axes.growth import axes_of, program_of, sound
from tests.analysis.axes.image_cases import IMAGES
from tests.analysis.axes.pointwise_cases import POINTWISE, slopes
from tests.analysis.axes.token_cases import CASES

SEEN: set[str] = set()
"""Rules that a case of this file has reached in this process."""

DONE: set[str] = set()
"""Cases that were built in this process."""


def build(
    ops: Sequence[Op], outs: Sequence[int], images: bool = False, setup: Callable[[nn.Module], None] | None = None
) -> Program:
    """Captures the ops and notes the rules that their graphs reach."""
    cls, x = (BetweenConvs, torch.randn(2, 3, 6, 6)) if images else (Between, torch.randn(2, 5, 6))
    program = program_of(cls(ops, outs, setup), x)
    note(program)
    return program


def note(program: Program) -> None:
    for mode in MODES:
        for node in program.graphs[mode].nodes:
            if isinstance(node.target, torch._ops.OpOverload):
                name = node.target._schema.name.split("::")[1]
                SEEN.update({name, name.removesuffix("_")} & _RULES.keys())


def test_pointwise_ops_let_everything_grow() -> None:
    program = build(list(POINTWISE.values()), [WIDTH] * len(POINTWISE), setup=slopes)
    pinned = {
        name: axis.reason
        for i, name in enumerate(POINTWISE)
        for axis in axes_of(program, f"into.{i}.weight")
        if not axis.growable
    }
    DONE.add("pointwise")
    assert not pinned
    outcomes = {reason for reason in sound(program, single=False).values() if "input features" not in reason}
    assert outcomes == {"exact", OUTPUT}


def check(case: Case, images: bool) -> None:
    program = build([case.op], [case.out], images, case.setup)
    DONE.add(case.name)
    outcomes = sound(program)
    axes = axes_of(program, "into.0.weight")
    assert axes or not case.grows
    reasons = {axis.name: outcomes[axis.name] for axis in axes}
    assert ("exact" in reasons.values()) == case.grows, reasons


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_op_on_tokens_is_exact_or_refused(case: Case) -> None:
    check(case, images=False)


@pytest.mark.parametrize("case", IMAGES, ids=lambda case: case.name)
def test_op_on_images_is_exact_or_refused(case: Case) -> None:
    check(case, images=True)


UNREACHED: dict[str, str] = {
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), "has a file of its own, test_recurrent.py"),
    "_grouped_mm": "its kernels take bfloat16 alone; tests/whole/test_families.py has the rule on a mixture of experts",
    "_conj": "needs a complex tensor, which pins",
    "_prelu_kernel": "inside prelu, never in a training graph",
    "alpha_dropout": "draws random numbers",
    "bernoulli": "draws random numbers; refused in eval mode, see test_negative",
    "contiguous": "dropped where the layout is right",
    "data": "not made by torch.export",
    "feature_dropout": "draws random numbers",
    "ger": "another name of outer",
    "lift_fresh": "not made by torch.export for this case",
    "norm": "torch writes linalg_vector_norm",
    "outer": "reached by the rotary networks of test_negative",
    "rand": "draws random numbers; refused in eval mode",
    "rand_like": "draws random numbers; refused in eval mode",
    "randn": "draws random numbers; refused in eval mode",
    "randn_like": "draws random numbers; refused in eval mode",
    "tensor": "a constant becomes a lifted tensor",
}
"""Rules that no case of this file reaches, and why."""


def test_every_rule_is_reached() -> None:
    for case, images in [*((case, False) for case in CASES), *((case, True) for case in IMAGES)]:
        if case.name not in DONE:
            build([case.op], [case.out], images, case.setup)
    if "pointwise" not in DONE:
        build(list(POINTWISE.values()), [WIDTH] * len(POINTWISE), setup=slopes)
    ours = {name for name in _RULES if "." not in name}  # rules of users' ops have a namespace
    assert not sorted(ours - SEEN - UNREACHED.keys())
