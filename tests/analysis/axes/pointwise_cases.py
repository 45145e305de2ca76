"""Elementwise ops: all of them in one network, since all let everything grow."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.analysis.axes.between import WIDTH, Op


def positive(x: Tensor) -> Tensor:
    return x.abs() + 0.5


def between_zero_and_one(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * 0.9 + 0.05


def called(function: Callable[..., Tensor], arguments: Callable[[Tensor], tuple[Tensor, ...]]) -> Op:
    return lambda m, x: function(*arguments(x))


A = torch.ops.aten

POINTWISE: dict[str, Op] = {
    **{
        name: called(getattr(torch, name), lambda x: (x,))
        for name in (
            "abs atan ceil cos deg2rad erf erfc exp exp2 expm1 floor isfinite isinf isnan logical_not nan_to_num neg "
            "relu round selu sigmoid sign sin sinh square tan tanh trunc"
        ).split()
    },
    **{
        name: called(getattr(torch, name), lambda x: (positive(x),))
        for name in "log log10 log1p log2 reciprocal rsqrt sqrt".split()
    },
    **{
        name: called(getattr(torch, name), lambda x: (between_zero_and_one(x),))
        for name in "acos asin cosh logit".split()
    },
    **{
        name: called(getattr(F, name), lambda x: (x,))
        for name in (
            "celu elu gelu hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu6 silu softplus softsign "
            "softshrink hardshrink tanhshrink"
        ).split()
    },
    **{
        name: called(getattr(torch, name), lambda x: (x, x * 0.5 + 1))
        for name in "add sub mul maximum minimum eq ne lt le gt ge atan2 hypot rsub greater less subtract".split()
    },
    **{
        name: called(getattr(torch, name), lambda x: (x, positive(x)))
        for name in "div true_divide floor_divide fmod remainder xlogy divide multiply".split()
    },
    "pow": lambda m, x: positive(x) ** (x * 0.1) + x.pow(2) + 2**x,
    "float_power": lambda m, x: torch.float_power(positive(x), x * 0.1),
    "clamp": lambda m, x: x.clamp(-1, 1),
    "clamp_min": lambda m, x: torch.clamp_min(x, -0.3),
    "clamp_max": lambda m, x: torch.clamp_max(x, 0.3),
    "fill": lambda m, x: x + torch.fill(x, 0.25),
    "zero": lambda m, x: x + torch.zero_(x.clone()),
    "fill_": lambda m, x: x + x.clone().fill_(2.0),
    "copy_": lambda m, x: torch.zeros_like(x).copy_(x),
    "masked_fill": lambda m, x: x.masked_fill(x > 0, 0.1),
    "where": lambda m, x: torch.where(x > 0, x, x * 0.1),
    "threshold": lambda m, x: F.threshold(x, 0.1, 0.2),
    "logical": lambda m, x: ((x > 0) & (x < 1) | (x > 2)).logical_or(x > 0).logical_and(x < 3).logical_xor(x > 1).to(x),
    "bits": lambda m, x: ((x > 0).bitwise_and(x < 1).bitwise_or(x > 2).bitwise_xor(x > 1).bitwise_not()).to(x),
    "operators": lambda m, x: (A.__xor__(A.__or__(A.__and__(x > 0, x < 1), x > 2), x > 1)).to(x),
    "in-place operators": lambda m, x: (A.__iand__(A.__ior__(x > 0, x < -1), x < 1)).to(x),
    "lerp": lambda m, x: torch.lerp(x, x * 2, 0.3),
    "addcmul": lambda m, x: torch.addcmul(x, x, x, value=0.1),
    "addcdiv": lambda m, x: torch.addcdiv(x, x, positive(x), value=0.1),
    "rrelu": lambda m, x: F.rrelu(x, training=False),
    "in place": lambda m, x: F.relu((x * 1).add_(x).mul_(0.5), inplace=True),
    "prelu": lambda m, x: m.prelu(x),
    "prelu per channel": lambda m, x: m.slopes(x.transpose(1, 2)).transpose(1, 2),
    "identity": lambda m, x: x.contiguous().clone().detach().to(torch.float32).to(x.dtype).type_as(x).positive(),
    "aliases": lambda m, x: A._to_copy(A.lift_fresh_copy(A.alias(x))) + A.resolve_conj(x),
    "lift": lambda m, x: A.lift_fresh(x * 2),
    "dropout off": lambda m, x: F.dropout(x, 0.5, training=False),
    "native dropout": lambda m, x: A.native_dropout(x, 0.5, False)[0],
    "new tensors": lambda m, x: (
        x + x.new_zeros(x.shape) + x.new_ones((WIDTH,)) * 0.1 + x.new_full((WIDTH,), 0.2) + torch.full((WIDTH,), 0.5)
    ),
    "zeros and ones": lambda m, x: x + torch.zeros(WIDTH).to(x) + torch.ones(5, WIDTH).to(x),
    "written later": lambda m, x: torch.empty(2, 5, WIDTH, dtype=x.dtype).copy_(x) + x.new_empty(x.shape).copy_(x),
    "alike": lambda m, x: (
        torch.zeros_like(x) + torch.ones_like(x) + torch.full_like(x, 0.3) + torch.empty_like(x).zero_() + x
    ),
}


def slopes(module: nn.Module) -> None:
    module.prelu, module.slopes = nn.PReLU(), nn.PReLU(WIDTH)
