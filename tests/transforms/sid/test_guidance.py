"""Classifier-free guidance: both halves in one batch, the unconditional one with the null label and the null stage."""

from __future__ import annotations

import copy

import pytest
import torch

import progc
from progc.errors import InputError
from progc.transforms.sid import guided
from tests import zoo
from tests.passes.test_inject_sid import adaptive, with_rows

NONE = 5
"""The label that stands for none."""


def test_both_halves_as_if_run_alone() -> None:
    _, program, (x, time, label) = adaptive()
    staged = with_rows(progc.apply(program, "inject-sid{stages=3}"))
    module, sid = staged.module().eval(), staged.sid
    assert sid is not None
    null = torch.full_like(label, NONE)
    conditional = module(x, time, label, stage=torch.full((3,), 2))
    unconditional = module(x, time, null, stage=torch.full((3,), 3))
    halves = ((x, time, label), {}), ((x, time, null), {})
    for scale in (0.0, 1.0, 4.0):
        out = guided(module, sid, *halves, scale=scale)
        assert torch.allclose(out, unconditional + scale * (conditional - unconditional), atol=1e-5)
    other = guided(module, sid, *halves, scale=1.0, stage=0)
    assert torch.allclose(other, module(x, time, label, stage=torch.zeros(3, dtype=torch.int64)), atol=1e-5)
    assert not torch.allclose(other, conditional, atol=1e-3)
    some = guided(module, sid, *halves, scale=4.0, channels=2)
    assert torch.allclose(some[:, :2], out[:, :2], atol=1e-6) and torch.allclose(some[:, 2:], conditional[:, 2:])


def test_a_real_network_with_a_null_label() -> None:
    """Label 20 is the null label of its embedder; keyword inputs, an output that is a structure."""
    _, program = zoo.captured("diffusers:dit")
    staged = with_rows(progc.apply(program, "inject-sid{stages=4}"))
    module, sid = staged.module().eval(), staged.sid
    assert sid is not None
    args, kwargs = copy.deepcopy(program.example)
    null = {**kwargs, "class_labels": torch.full((2,), 20)}
    out = guided(module, sid, (args, kwargs), (args, null), scale=1.5, channels=3)
    conditional = module(*args, **kwargs, stage=torch.full((2,), 3))
    unconditional = module(*args, **null, stage=torch.full((2,), 4))
    assert type(out) is type(conditional)
    (given,), (c,), (u,) = (torch.utils._pytree.tree_leaves(item) for item in (out, conditional, unconditional))
    assert torch.allclose(given[:, :3], u[:, :3] + 1.5 * (c[:, :3] - u[:, :3]), atol=1e-4)
    assert torch.allclose(given[:, 3:], c[:, 3:], atol=1e-5)
    assert not torch.allclose(c, u, atol=1e-3)


def test_what_cannot_be_guided() -> None:
    _, program, (x, time, label) = adaptive()
    half = (x, time, label), {}
    fixed = progc.apply(program, "inject-sid{stages=3 stage=1}")
    assert fixed.sid is not None
    with pytest.raises(InputError, match=r"the stage is fixed to 1; make it an input"):
        guided(fixed.module(), fixed.sid, half, half, scale=1.0)
    asked = progc.apply(program, "inject-sid{stages=3}")
    assert asked.sid is not None
    with pytest.raises(InputError, match=r"stage=4: expected 0 to 3 \(3 is the null row\)"):
        guided(asked.module(), asked.sid, half, half, scale=1.0, stage=4)
    for other in (((x, time), {}), ((x[:2], time, label), {}), ((x, time), {"label": label})):
        with pytest.raises(InputError, match="both halves need inputs of the same structure"):
            guided(asked.module(), asked.sid, half, other, scale=1.0)
