"""Ops on tokens: f64[2, 5, 8] between two linear layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from tests.analysis.axes.between import WIDTH, Case, add, heads, merged, table

A = torch.ops.aten
ids = torch.tensor([1, 0, 3])


def unit(x: torch.Tensor, eps: float = 1e-12) -> torch.Tensor:
    return F.normalize(x, dim=-1, eps=eps)


def turned(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * 0.6 - b * 0.8, b * 0.6 + a * 0.8], -1)


def cosine_attention(x: torch.Tensor, scale: float | None) -> torch.Tensor:
    return merged(F.scaled_dot_product_attention(unit(heads(x)), unit(heads(x.tanh())), heads(x), scale=scale))


def two_keys() -> Callable[[nn.Module], None]:
    return lambda m: (add("key", nn.Linear(8, 6))(m), add("value", nn.Linear(8, 6))(m)) and None


def weight_normed(layer: nn.Module, name: str = "layer", dim: int | None = 0) -> Callable[[nn.Module], None]:
    return lambda m: setattr(m, name, parametrizations.weight_norm(layer, dim=dim))


MOVEMENT = [
    Case("view", lambda m, x: x.view(10, WIDTH).view(2, 5, 2, 4).reshape(2, 5, WIDTH), grows=True),
    Case("other views", lambda m, x: A._unsafe_view(A.view_copy(x, [2, 5, 4, 2]), [2, 5, WIDTH]), grows=True),
    Case("alias", lambda m, x: A._reshape_alias(x, [10, WIDTH], [WIDTH, 1]).view(2, 5, WIDTH), grows=False),
    Case("view of odd parts", lambda m, x: x.reshape(2, WIDTH, 5).transpose(1, 2).tanh(), grows=False),
    Case("flatten", lambda m, x: x[:, :1].unsqueeze(1).squeeze(1).flatten(1), grows=True),
    Case("flatten tokens too", lambda m, x: x.flatten(1), 40, grows=True),
    Case("shape of another", lambda m, x: x.flatten(1).view_as(x).tanh().flatten(1).reshape_as(x), grows=True),
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
    Case("glu", lambda m, x: F.glu(x, -1), 4, grows=True),
    Case("glu of tokens", lambda m, x: F.glu(x[:, :4], 1), grows=True),
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
    Case("strided slice", lambda m, x: x[..., ::2] * x[..., 1::2].tanh(), 4, grows=True),
    Case("strided slice up to a place", lambda m, x: x[..., 0:7:2], 4, grows=False),
    Case("strided slice with a rest", lambda m, x: x[..., ::3], 3, grows=False),
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
    Case("unbiased variance", lambda m, x: x / (x.var(-1, keepdim=True) + 1).sqrt(), grows=True),
    Case("deviation", lambda m, x: x / (x.std(-1, correction=0, keepdim=True) + 1), grows=True),
    Case("variance and mean", lambda m, x: x - torch.var_mean(x, -1, correction=0, keepdim=True)[1], grows=True),
    Case("deviation and mean", lambda m, x: x - torch.std_mean(x, -1, keepdim=True)[0], grows=True),
    Case("windows of tokens", lambda m, x: x + x.unfold(1, 2, 1).mean(-1).mean(1, keepdim=True), grows=True),
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
        grows=True,
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
    Case("einsum of all", lambda m, x: torch.einsum("btc->bt", x), 5, grows=True),
    Case("einsum of all of a parameter", lambda m, x: x * torch.einsum("ij->i", m.w), grows=True, setup=table((8, 8))),
    Case(
        "einsum of three activations",
        lambda m, x: torch.einsum("btc,bsc,bsc->bts", m.key(x), m.value(x), m.other(x)),
        5,
        grows=True,
        setup=lambda m: [add(name, nn.Linear(8, 6))(m) for name in ("key", "value", "other")] and None,
    ),
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
    Case("normalised weight", lambda m, x: m.layer(x), 4, grows=True, setup=weight_normed(nn.Linear(8, 4))),
    Case(
        "two normalised weights",
        lambda m, x: m.layer(m.first(x).tanh()),
        4,
        grows=True,
        setup=lambda m: (weight_normed(nn.Linear(8, 6), "first")(m), weight_normed(nn.Linear(6, 4))(m)) and None,
    ),
    Case(
        "weight normalised along the other dim",
        lambda m, x: m.layer(x),
        4,
        grows=True,
        setup=weight_normed(nn.Linear(8, 4), dim=1),
    ),
    Case(
        "one length for a weight",
        lambda m, x: m.layer(x),
        4,
        grows=False,
        setup=weight_normed(nn.Linear(8, 4), dim=None),
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

LENGTHS = [
    Case("cosine", lambda m, x: unit(m.key(x)) @ unit(m.value(x)).mT, 5, grows=True, setup=two_keys()),
    Case("cosine with itself", lambda m, x: unit(x) @ unit(x).mT, 5, grows=True),
    Case("cosine of heads", lambda m, x: unit(heads(x)) @ unit(heads(x * 2)).mT @ heads(x), 4, grows=True),
    Case("cosine, scaled", lambda m, x: (unit(x) * m.w) @ unit(x.tanh()).mT, 5, grows=True, setup=table((8,))),
    Case("cosine of turned pairs", lambda m, x: turned(unit(x)) @ turned(unit(x.tanh())).mT, 5, grows=True),
    Case("fused cosine attention", lambda m, x: cosine_attention(x, 3.0), grows=True),
    Case("fused cosine, default scale", lambda m, x: F.scaled_dot_product_attention(unit(x), unit(x), x), grows=False),
    Case("cosine head", lambda m, x: F.linear(unit(x), unit(m.w)), 4, grows=True, setup=table((4, 8))),
    Case(
        "cosine head behind tanh", lambda m, x: F.linear(unit(x).tanh(), unit(m.w)), 4, grows=False, setup=table((4, 8))
    ),
    Case(
        "cosine head, large eps", lambda m, x: F.linear(unit(x, 1e-3), unit(m.w)), 4, grows=False, setup=table((4, 8))
    ),
    Case("unit vector and another", lambda m, x: unit(m.key(x)) @ m.value(x).mT, 5, grows=True, setup=two_keys()),
    Case("unit vector, unit value", lambda m, x: (x @ x.tanh().mT).softmax(-1) @ unit(x), grows=False),
    Case(
        "unit vector spread out",
        lambda m, x: torch.einsum("bti,j->btij", unit(x), m.w).mean(2),
        4,
        grows=False,
        setup=table((4,)),
    ),
    Case("a length itself", lambda m, x: x.norm(dim=-1), 5, grows=False),
    Case("lengths of two values", lambda m, x: x * (x.norm(dim=-1) / x.tanh().norm(dim=-1)).unsqueeze(-1), grows=False),
    Case("sum of absolute values", lambda m, x: x / x.norm(p=1, dim=-1, keepdim=True), grows=False),
    Case(
        "divided in place",
        lambda m, x: F.linear(x.clone().div_(x.norm(dim=-1, keepdim=True)), unit(m.w)),
        4,
        grows=False,
        setup=table((4, 8)),
    ),
]

CASES = [*LENGTHS, *MOVEMENT, *REDUCTION, *LOOKUP, *CONTRACTION, *NORM]
