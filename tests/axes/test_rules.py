"""Every rule is run: an op between two layers is widened, and the result is exact or refused with a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from progc.axes.walk import _RULES
from progc.program import MODES, Program
from tests.axes.growth import axes_of, program_of, sound

WIDTH = 8
Op = Callable[[nn.Module, Tensor], Tensor]


class Between(nn.Module):
    """Ops over f64[2, 5, 8] tokens, each between a linear layer and one or two others, on axes of their own."""

    def __init__(self, ops: Sequence[Op], outs: Sequence[int], setup: Callable[[nn.Module], None] | None) -> None:
        super().__init__()
        self.ops = ops
        self.into = nn.ModuleList(nn.Linear(6, WIDTH) for _ in ops)
        self.out = nn.ModuleList(nn.Linear(size, 3) if size else nn.Identity() for size in outs)
        if setup is not None:
            setup(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        results = [op(self, into(x)) for op, into in zip(self.ops, self.into, strict=True)]
        return [
            out(result if result.is_floating_point() else result.to(x.dtype))
            for out, result in zip(self.out, results, strict=True)
        ]


class BetweenConvs(Between):
    """The same over f64[2, 8, 6, 6] images."""

    def __init__(self, ops: Sequence[Op], outs: Sequence[int], setup: Callable[[nn.Module], None] | None) -> None:
        super().__init__(ops, outs, setup)
        self.into = nn.ModuleList(nn.Conv2d(3, WIDTH, 1) for _ in ops)
        self.out = nn.ModuleList(nn.Conv2d(size, 3, 1) if size else nn.Identity() for size in outs)


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
    assert set(sound(program, single=False).values()) == {"exact", "output"}


class Case:
    """One op: `grows` says whether some axis of the layer before it can be widened."""

    def __init__(
        self, name: str, op: Op, out: int = WIDTH, *, grows: bool, setup: Callable[[nn.Module], None] | None = None
    ) -> None:
        self.name, self.op, self.out, self.grows, self.setup = name, op, out, grows, setup


def add(name: str, value: Any) -> Callable[[nn.Module], None]:
    return lambda module: setattr(module, name, value)


def table(shape: Sequence[int]) -> Callable[[nn.Module], None]:
    return lambda module: setattr(module, "w", nn.Parameter(torch.randn(*shape)))


def heads(x: Tensor, count: int = 2) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


ids = torch.tensor([1, 0, 3])
MOVEMENT = [
    Case("view", lambda m, x: x.view(10, WIDTH).view(2, 5, 2, 4).reshape(2, 5, WIDTH), grows=True),
    Case("other views", lambda m, x: A._unsafe_view(A.view_copy(x, [2, 5, 4, 2]), [2, 5, WIDTH]), grows=True),
    Case("alias", lambda m, x: A._reshape_alias(x, [10, WIDTH], [WIDTH, 1]).view(2, 5, WIDTH), grows=False),
    Case("view of odd parts", lambda m, x: x.reshape(2, WIDTH, 5).transpose(1, 2).tanh(), grows=False),
    Case("flatten", lambda m, x: x[:, :1].unsqueeze(1).squeeze(1).flatten(1), grows=True),
    Case("flatten tokens too", lambda m, x: x.flatten(1), 40, grows=True),
    Case("unflatten", lambda m, x: x.unflatten(-1, (4, 2)).tanh().flatten(-2), grows=True),
    Case("squeeze copies", lambda m, x: A.squeeze_copy(A.unsqueeze_copy(x, 1), 1), grows=True),
    Case("permute", lambda m, x: A.permute_copy(x.permute(2, 0, 1), [1, 2, 0]), grows=True),
    Case("transpose", lambda m, x: A.transpose_copy(x.transpose(1, 2), 1, 2).swapaxes(0, 1).swapaxes(1, 0), grows=True),
    Case("t", lambda m, x: x[0].t().T.mT.mT.adjoint().t(), grows=True),
    Case("movedim", lambda m, x: torch.moveaxis(x.movedim(2, 0), (0,), (2,)), grows=True),
    Case("expand", lambda m, x: x[:, :1].expand(-1, 3, -1).broadcast_to(2, 3, WIDTH), grows=True),
    Case("expand copy", lambda m, x: A.expand_copy(x[:, :1], [2, 4, WIDTH]), grows=True),
    Case("expand as", lambda m, x: x[:, :1].expand_as(x) * x, grows=True),
    Case("broadcast tensors", lambda m, x: torch.broadcast_tensors(x[:, :1], x)[0], grows=True),
    Case("repeat tokens", lambda m, x: x.repeat(1, 2, 1), grows=True),
    Case("repeat channels", lambda m, x: x.repeat(1, 1, 2), 16, grows=True),
    Case("tile", lambda m, x: x.tile((2,)), 16, grows=True),
    Case("repeat interleave", lambda m, x: x.repeat_interleave(2, -1), 16, grows=True),
    Case("cat", lambda m, x: torch.cat([x, x.tanh()], -1), 16, grows=True),
    Case("cat of tokens", lambda m, x: torch.cat([x, x.tanh()], 1), grows=True),
    Case("other cats", lambda m, x: torch.concat([torch.concatenate([x, x]), x]), grows=True),
    Case("stack", lambda m, x: torch.stack([x, x.tanh()], 2).flatten(2), 16, grows=True),
    Case("stack last", lambda m, x: torch.stack([x, x.tanh()], -1).flatten(2), 16, grows=True),
    Case("chunk", lambda m, x: x.chunk(2, -1)[0] * x.chunk(2, -1)[1].tanh(), 4, grows=True),
    Case("chunk, one part used", lambda m, x: x.chunk(2, -1)[1].tanh(), 4, grows=True),
    Case("chunks of unequal size", lambda m, x: x.chunk(3, -1)[2], 2, grows=False),
    Case("tensor split", lambda m, x: x.tensor_split(2, -1)[1].tanh(), 4, grows=True),
    Case("tensor split at places", lambda m, x: x.tensor_split([2, 5], -1)[1].tanh(), 3, grows=True),
    Case("tensor split from the end", lambda m, x: x.tensor_split([-3], -1)[1].tanh(), 3, grows=False),
    Case("split", lambda m, x: x.split(4, -1)[1].tanh(), 4, grows=True),
    Case("split with a rest", lambda m, x: torch.cat([p.tanh() for p in x.split(3, -1)], -1), grows=True),
    Case("split with sizes", lambda m, x: x.split([2, 6], -1)[1].tanh(), 6, grows=True),
    Case("unsafe split", lambda m, x: A.unsafe_split(x, 4, -1)[0].tanh(), 4, grows=True),
    Case("unbind tokens", lambda m, x: x.unbind(1)[2], grows=True),
    Case("unbind parts", lambda m, x: x.unflatten(-1, (2, 4)).unbind(-2)[1], 4, grows=True),
    Case("select a channel", lambda m, x: x[..., 3] + x.mean(-1), 5, grows=False),
    Case("slice", lambda m, x: torch.cat([x[..., 2:6], x[..., :2] * 2, x[..., 6:]], -1), grows=True),
    Case("slice of all", lambda m, x: x[..., :WIDTH][:, :5] + A.slice_copy(x, 2, 0, 8), grows=True),
    Case("slice from the end", lambda m, x: x[..., -4:] + x[..., :-4], 4, grows=False),
    Case("slice from the end of half", lambda m, x: x[..., -2:].tanh(), 2, grows=True),
    Case("slice up to the end of half", lambda m, x: x[..., :-2].tanh(), 6, grows=True),
    Case("slice of all from the end", lambda m, x: x[..., -8:].tanh(), grows=False),
    Case("strided slice", lambda m, x: x[..., ::2], 4, grows=False),
    Case("narrow", lambda m, x: x.narrow(-1, 2, 3).tanh(), 3, grows=True),
    Case("narrow to all", lambda m, x: x.narrow(-1, 0, 8).tanh(), grows=True),
    Case("roll tokens", lambda m, x: x.roll(1, 1).flip(1), grows=True),
    Case("roll channels", lambda m, x: x.roll(1, -1), grows=False),
    Case("flip channels", lambda m, x: x.flip(-1), grows=False),
    Case("flip left right", lambda m, x: x[0].fliplr().flipud(), grows=False),
    Case("turned", lambda m, x: x[:, :5].reshape(5, 16).rot90(1, (0, 1))[:8].t(), grows=False),
    Case("pad tokens", lambda m, x: F.pad(x, (0, 0, 1, 2)), grows=True),
    Case("pad channels", lambda m, x: F.pad(x, (1, 0)), 9, grows=False),
    Case("shift channels by padding", lambda m, x: F.pad(x, (1, -1)), grows=False),
    Case("constant pad", lambda m, x: A.constant_pad_nd(x, [0, 0, 1, 1], 0.5), grows=True),
    Case("reflect tokens", lambda m, x: F.pad(x.transpose(1, 2), (1, 1), mode="reflect").transpose(1, 2), grows=True),
    Case("reflect channels", lambda m, x: A.reflection_pad1d(x, [1, 1]), 10, grows=False),
    Case("replicate channels", lambda m, x: A.replication_pad1d(x, [1, 1]), 10, grows=False),
    Case("circular", lambda m, x: F.pad(x, (1, 1), mode="circular"), 10, grows=False),
    Case("triangles", lambda m, x: x.tril() + x.triu(1) * 2, grows=False),
]
REDUCTION = [
    Case("mean", lambda m, x: x - x.mean(-1, keepdim=True), grows=True),
    Case("mean over all", lambda m, x: x * x.mean() + x.nanmean(-1, True), grows=True),
    Case("biased variance", lambda m, x: x / (x.var(-1, unbiased=False, keepdim=True) + 1).sqrt(), grows=True),
    Case("unbiased variance", lambda m, x: x / (x.var(-1, keepdim=True) + 1).sqrt(), grows=False),
    Case("deviation", lambda m, x: x / (x.std(-1, correction=0, keepdim=True) + 1), grows=True),
    Case("variance and mean", lambda m, x: x - torch.var_mean(x, -1, correction=0, keepdim=True)[1], grows=True),
    Case("deviation and mean", lambda m, x: x - torch.std_mean(x, -1, keepdim=True)[0], grows=False),
    Case("sum", lambda m, x: x + x.sum(-1, keepdim=True), grows=False),
    Case("sum of tokens", lambda m, x: x + x.sum(1, keepdim=True) + x.nansum(1, keepdim=True), grows=True),
    Case("product", lambda m, x: x + x.prod(-1, keepdim=True), grows=False),
    Case("logsumexp", lambda m, x: x - x.logsumexp(-1, keepdim=True), grows=False),
    Case("vector norm", lambda m, x: F.normalize(x, dim=-1), grows=False),
    Case("vector norm of tokens", lambda m, x: F.normalize(x, dim=1), grows=True),
    Case("norm", lambda m, x: x / x.norm(dim=-1, keepdim=True), grows=False),
    Case("maximum", lambda m, x: x - x.amax(-1, keepdim=True) + x.amin(-1, keepdim=True), grows=True),
    Case("maximum and place", lambda m, x: x - x.max(-1, keepdim=True).values + x.min(1, True)[0], grows=False),
    Case("maximum of all", lambda m, x: x - x.max() + x.min(), grows=False),
    Case("maximum of two", lambda m, x: torch.max(x, -x) + torch.min(x, x * 2), grows=True),
    Case("any", lambda m, x: x * ((x > 0).any(-1, True) & (x > 1).all(-1, True)).to(x), grows=True),
    Case("places", lambda m, x: x * (x.argmax(-1, True) + x.argmin(1, True)).to(x), grows=False),
    Case("cumulative sum", lambda m, x: x.cumsum(-1), grows=False),
    Case("cumulative sum of tokens", lambda m, x: x.cumsum(1) + x.cumprod(1) + x.cummax(1)[0], grows=True),
    Case("cumulative product", lambda m, x: x.cumprod(-1), grows=False),
    Case("differences", lambda m, x: x.diff(dim=-1), 7, grows=False),
    Case("sort", lambda m, x: x.sort(-1)[0], grows=False),
    Case("stable sort of tokens", lambda m, x: torch.sort(x, stable=True, dim=1)[0], grows=True),
    Case("order", lambda m, x: x * x.argsort(-1).to(x), grows=False),
    Case("top", lambda m, x: x.topk(3, -1)[0], 3, grows=False),
    Case("softmax", lambda m, x: x.softmax(-1), grows=False),
    Case("softmax of tokens", lambda m, x: x.softmax(1) + x.log_softmax(1) + A._softmax(x, 1, False), grows=True),
    Case("log softmax", lambda m, x: A._log_softmax(x, -1, False), grows=False),
]
LOOKUP = [
    Case("channel look-up", lambda m, x: x[..., ids], 3, grows=False),
    Case("token look-up", lambda m, x: x[:, ids] + A._unsafe_index(x, [None, ids]), grows=True),
    Case("index select", lambda m, x: x.index_select(1, ids), grows=True),
    Case("index select of channels", lambda m, x: x.index_select(-1, ids), 3, grows=False),
    Case("gather", lambda m, x: x.gather(1, x.argsort(1)), grows=False),
    Case("take along", lambda m, x: x.take_along_dim(x.argsort(1), 1), grows=False),
    Case("used as an index", lambda m, x: m.w[x.argmax(1)], 4, grows=False, setup=table((5, 4))),
    Case("index add", lambda m, x: x.index_add(-1, ids, x[..., :3]), grows=False),
    Case("index copy", lambda m, x: x.index_copy(1, ids, x[:, :3]), grows=False),
    Case("scatter", lambda m, x: x.scatter(1, x.argsort(1), x).scatter_add(1, x.argsort(1), x), grows=False),
    Case("embedding of maxima", lambda m, x: F.embedding(x.argmax(-1), m.w), 4, grows=False, setup=table((8, 4))),
    Case("one hot", lambda m, x: F.one_hot(x.argmax(-1), 8).to(x), grows=False),
    Case("count", lambda m, x: x * torch.arange(8).to(x), grows=False),
    Case("linspace", lambda m, x: x * torch.linspace(0, 1, 8).to(x), grows=False),
    Case("logspace", lambda m, x: x * torch.logspace(0, 1, 8).to(x), grows=False),
    Case("eye", lambda m, x: x @ torch.eye(8).to(x), grows=False),
    Case("scalar", lambda m, x: x * torch.tensor(2.0).to(x) + torch.scalar_tensor(3.0), grows=True),
]
CONTRACTION = [
    Case("matmul", lambda m, x: x @ m.w, 4, grows=True, setup=table((8, 4))),
    Case("mm", lambda m, x: x[0].mm(m.w), 4, grows=True, setup=table((8, 4))),
    Case("mv", lambda m, x: x[0].mv(m.w), 0, grows=True, setup=table((8,))),
    Case("dot", lambda m, x: x[0, 0].dot(m.w), 0, grows=True, setup=table((8,))),
    Case("bmm", lambda m, x: x.bmm(m.w), 4, grows=True, setup=table((2, 8, 4))),
    Case(
        "addmm", lambda m, x: torch.addmm(x[0, 0, :4], x[0], m.w[:, :4], beta=0.5), 4, grows=True, setup=table((8, 6))
    ),
    Case("addmm transposed", lambda m, x: torch.addmm(x[0, 0], x[0] * 2, m.w.t()), grows=True, setup=table((8, 8))),
    Case("baddbmm", lambda m, x: torch.baddbmm(x, x, m.w), grows=True, setup=table((2, 8, 8))),
    Case("addbmm", lambda m, x: torch.addbmm(x[0], x, m.w), grows=False, setup=table((2, 8, 8))),
    Case("addmv", lambda m, x: torch.addmv(x[0, :, 0], x[0], m.w), 0, grows=False, setup=table((8,))),
    Case("einsum", lambda m, x: torch.einsum("btc,co->bto", x, m.w), 4, grows=True, setup=table((8, 4))),
    Case(
        "einsum of heads",
        lambda m, x: torch.einsum("bt(hd),o->bto".replace("(hd)", "h"), x, m.w),
        4,
        grows=False,
        setup=table((4,)),
    ),
    Case(
        "einsum of three",
        lambda m, x: torch.einsum("btc,btc,co->bto", x, x * 2, m.w),
        4,
        grows=True,
        setup=table((8, 4)),
    ),
    Case("einsum with dots", lambda m, x: torch.einsum("...c,oc->...o", x, m.w), 4, grows=True, setup=table((4, 8))),
    Case("einsum diagonal", lambda m, x: torch.einsum("cc,btc->bt", m.w, x), 5, grows=False, setup=table((8, 8))),
    Case("einsum of a gram matrix", lambda m, x: torch.einsum("btc,bsc->bts", x, x), 5, grows=False),
    Case("gram matrix", lambda m, x: x @ x.mT, 5, grows=False),
    Case("outer gram matrix", lambda m, x: x.mT @ x, grows=False),
    Case("bilinear scores", lambda m, x: (x @ m.w) @ x.mT, 5, grows=True, setup=table((8, 8))),
    Case(
        "fused attention",
        lambda m, x: merged(F.scaled_dot_product_attention(heads(x), heads(x * 2), heads(x))),
        grows=True,
    ),
    Case(
        "attention of a linear key",
        lambda m, x: merged(F.scaled_dot_product_attention(heads(x), heads(m.key(x)), heads(m.value(x)))),
        4,
        grows=True,
        setup=lambda m: (add("key", nn.Linear(8, 8))(m), add("value", nn.Linear(8, 4))(m)),
    ),
    Case(
        "attention with a bias",
        lambda m, x: merged(
            F.scaled_dot_product_attention(heads(x), heads(m.key(x)), heads(x), attn_mask=m.w, scale=0.3)
        ),
        grows=True,
        setup=lambda m: (add("key", nn.Linear(8, 8))(m), table((2, 5, 5))(m)),
    ),
    Case(
        "grouped queries",
        lambda m, x: merged(
            F.scaled_dot_product_attention(heads(x, 4), heads(m.key(x)), heads(m.key(x)), enable_gqa=True)
        ),
        grows=True,
        setup=add("key", nn.Linear(8, 4)),
    ),
    Case(
        "attention by hand",
        lambda m, x: merged((heads(x) @ heads(m.key(x)).mT * 0.5).softmax(-1) @ heads(x.tanh())),
        grows=True,
        setup=add("key", nn.Linear(8, 8)),
    ),
    Case(
        "attention over channels",
        lambda m, x: x @ (x.mT @ m.key(x)).softmax(-1),
        grows=False,
        setup=add("key", nn.Linear(8, 8)),
    ),
    Case("repeated weight", lambda m, x: F.linear(x, m.w.repeat(1, 2)), 4, grows=True, setup=table((4, 4))),
    Case("expanded weight", lambda m, x: F.linear(x, m.w.expand(4, 8)), 4, grows=True, setup=table((4, 1))),
    Case(
        "weight of one column, viewed",
        lambda m, x: F.linear(x, m.w.expand(4, 4, 2).reshape(4, 8)),
        4,
        grows=True,
        setup=table((4, 1, 2)),
    ),
    Case("doubled weight", lambda m, x: F.linear(x, m.w.repeat_interleave(2, 1)), 4, grows=True, setup=table((4, 4))),
    Case("weight written to", lambda m, x: F.linear(x, m.w.clone().mul_(x.mean())), 4, grows=True, setup=table((4, 8))),
    Case(
        "activation in a parameter's place",
        lambda m, x: F.linear(x, m.w.clone().copy_(m.w * x.mean((0, 1)))),
        4,
        grows=False,
        setup=table((4, 8)),
    ),
]
NORM = [
    Case("layer norm", lambda m, x: m.norm(x), grows=True, setup=add("norm", nn.LayerNorm(8))),
    Case("layer norm of two dims", lambda m, x: F.layer_norm(x, (5, 8)), grows=True),
    Case("layer norm of heads", lambda m, x: F.layer_norm(x.unflatten(-1, (2, 4)), (4,)).flatten(2), grows=True),
    Case(
        "layer norm over unlike parts",
        lambda m, x: F.layer_norm(torch.cat([x, m.other(x)], -1), (12,)),
        12,
        grows=True,
        setup=add("other", nn.Linear(8, 4)),
    ),
    Case("rms norm", lambda m, x: F.rms_norm(x, (8,), m.w, 1e-3), grows=True, setup=table((8,))),
    Case(
        "batch norm",
        lambda m, x: m.norm(x.transpose(1, 2)).transpose(1, 2),
        grows=True,
        setup=add("norm", nn.BatchNorm1d(8)),
    ),
    Case("batch norm of tokens", lambda m, x: m.norm(x), grows=False, setup=add("norm", nn.BatchNorm1d(5))),
    Case("batch norm without statistics", lambda m, x: F.batch_norm(x, None, None, training=True), grows=True),
    Case("instance norm", lambda m, x: F.instance_norm(x.transpose(1, 2)).transpose(1, 2), grows=True),
    Case("instance norm of tokens", lambda m, x: F.instance_norm(x), grows=True),
    Case(
        "group norm",
        lambda m, x: m.norm(x.transpose(1, 2)).transpose(1, 2),
        grows=True,
        setup=add("norm", nn.GroupNorm(2, 8)),
    ),
    Case(
        "one group",
        lambda m, x: m.norm(x.transpose(1, 2)).transpose(1, 2),
        grows=True,
        setup=add("norm", nn.GroupNorm(1, 8)),
    ),
    Case("group norm of tokens", lambda m, x: F.group_norm(x, 5), grows=True),
    Case(
        "group norm across a seam",
        lambda m, x: F.group_norm(torch.cat([x, m.other(x)], -1).transpose(1, 2), 3).transpose(1, 2),
        12,
        grows=True,
        setup=add("other", nn.Linear(8, 4)),
    ),
]


def convolution(*args: Any, **kwargs: Any) -> Callable[[nn.Module], None]:
    return add("conv", nn.Conv2d(*args, **kwargs))


IMAGES = [
    Case("convolution", lambda m, x: m.conv(x).tanh(), 6, grows=True, setup=convolution(8, 6, 3, padding=1)),
    Case(
        "padded with mirrors",
        lambda m, x: m.conv(x),
        6,
        grows=True,
        setup=convolution(8, 6, 3, padding=1, padding_mode="reflect"),
    ),
    Case("grouped convolution", lambda m, x: m.conv(x).tanh(), 12, grows=True, setup=convolution(8, 12, 3, groups=4)),
    Case("depthwise", lambda m, x: m.conv(x).tanh(), 16, grows=True, setup=convolution(8, 16, 3, groups=8)),
    Case(
        "general form",
        lambda m, x: A.convolution(x, m.w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 2),
        4,
        grows=True,
        setup=table((4, 4, 1, 1)),
    ),
    Case("transposed", lambda m, x: m.up(x), 4, grows=True, setup=add("up", nn.ConvTranspose2d(8, 4, 2, 2))),
    Case(
        "transposed, depthwise",
        lambda m, x: m.up(x),
        16,
        grows=True,
        setup=add("up", nn.ConvTranspose2d(8, 16, 2, 2, groups=8)),
    ),
    Case(
        "transposed, grouped",
        lambda m, x: m.up(x),
        4,
        grows=False,
        setup=add("up", nn.ConvTranspose2d(8, 4, 2, 2, groups=2)),
    ),
    Case(
        "three dims",
        lambda m, x: m.deep(x.unsqueeze(2)).squeeze(2),
        4,
        grows=True,
        setup=add("deep", nn.Conv3d(8, 4, 1)),
    ),
    Case(
        "three dims, transposed",
        lambda m, x: m.deep(x.unsqueeze(2)).squeeze(2),
        4,
        grows=True,
        setup=add("deep", nn.ConvTranspose3d(8, 4, 1)),
    ),
    Case(
        "across channels",
        lambda m, x: x * m.line(x.mean((2, 3)).unsqueeze(1)).squeeze(1)[..., None, None].sigmoid(),
        grows=False,
        setup=add("line", nn.Conv1d(1, 1, 3, padding=1)),
    ),
    Case(
        "across channels, pooled",
        lambda m, x: m.line(x.mean((2, 3)).unsqueeze(1)).mean(-1),
        0,
        grows=False,
        setup=add("line", nn.Conv1d(1, 3, 3)),
    ),
    Case(
        "across channels, one point",
        lambda m, x: x * m.line(x.mean((2, 3)).unsqueeze(1)).squeeze(1)[..., None, None],
        grows=True,
        setup=add("line", nn.Conv1d(1, 1, 1)),
    ),
    Case(
        "one dim, transposed",
        lambda m, x: m.line(x.flatten(2)).unflatten(-1, (6, 6)),
        4,
        grows=True,
        setup=add("line", nn.ConvTranspose1d(8, 4, 1)),
    ),
    Case(
        "pools",
        lambda m, x: (
            F.max_pool2d(x, 2) + F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, 3) + F.adaptive_max_pool2d(x, 3)
        ),
        grows=True,
    ),
    Case(
        "pools with places",
        lambda m, x: A.max_pool2d_with_indices(x, [2, 2])[0] + F.lp_pool2d(positive(x), 2, 2),
        grows=True,
    ),
    Case(
        "resized",
        lambda m, x: (
            F.interpolate(x, scale_factor=2)
            + F.interpolate(x, (12, 12), mode="bilinear")
            + F.interpolate(x, (12, 12), mode="bicubic")
            + F.interpolate(x, (12, 12), mode="nearest-exact")
            + F.interpolate(x, (12, 12), mode="bilinear", antialias=True)
            + F.interpolate(x, (12, 12), mode="bicubic", antialias=True)
        ),
        grows=True,
    ),
    Case(
        "sampled", lambda m, x: F.grid_sample(x, m.w.tanh(), align_corners=False), grows=True, setup=table((2, 4, 4, 2))
    ),
    Case(
        "pools of lines",
        lambda m, x: (
            F.avg_pool1d(x.flatten(2), 2)
            + F.max_pool1d(x.flatten(2), 2)
            + F.adaptive_avg_pool1d(x.flatten(2), 18)
            + F.adaptive_max_pool1d(x.flatten(2), 18)
            + F.interpolate(x.flatten(2), 18)
            + F.interpolate(x.flatten(2), 18, mode="linear")
            + F.lp_pool1d(positive(x).flatten(2), 2, 2)
        ).unsqueeze(-1),
        grows=True,
    ),
    Case(
        "pools of volumes",
        lambda m, x: (
            F.avg_pool3d(x[:, :, None], 1)
            + F.max_pool3d(x[:, :, None], 1)
            + F.adaptive_avg_pool3d(x[:, :, None], (1, 6, 6))
            + F.adaptive_max_pool3d(x[:, :, None], (1, 6, 6))
            + F.interpolate(x[:, :, None], (1, 6, 6))
            + F.interpolate(x[:, :, None], (1, 6, 6), mode="trilinear")
        )[:, :, 0],
        grows=True,
    ),
    Case("maximum along channels", lambda m, x: F.max_pool1d(x.flatten(2).mT, 2).mT.unsqueeze(-1), 4, grows=False),
    Case(
        "average along channels",
        lambda m, x: F.adaptive_avg_pool1d(x.flatten(2).mT, 2).mT.unsqueeze(-1),
        2,
        grows=False,
    ),
    Case(
        "mirrored borders",
        lambda m, x: A.replication_pad2d(A.reflection_pad2d(x, [1, 1, 1, 1]), [1, 1, 1, 1]),
        grows=True,
    ),
    Case("pixel shuffle", lambda m, x: F.pixel_shuffle(x, 2), 2, grows=True),
    Case("pixel unshuffle", lambda m, x: F.pixel_unshuffle(x, 2), 32, grows=True),
    Case("channel shuffle", lambda m, x: A.channel_shuffle(x, 2), grows=True),
    Case("channel shuffle by hand", lambda m, x: x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2), grows=True),
    Case("unfold", lambda m, x: F.fold(F.unfold(x, 3, padding=1), (6, 6), 3, padding=1), grows=False),
    Case(
        "squeeze and excite",
        lambda m, x: x * m.line(x.mean((2, 3), True).flatten(1)).sigmoid()[..., None, None],
        grows=True,
        setup=add("line", nn.Linear(8, 8)),
    ),
]
CASES = [*MOVEMENT, *REDUCTION, *LOOKUP, *CONTRACTION, *NORM]


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
    assert not sorted(_RULES.keys() - SEEN - UNREACHED.keys())
