"""Reductions over dims."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import fx

from progc.analysis.axes import dims as D
from progc.analysis.axes.context import Args, Context
from progc.analysis.axes.records import Value
from progc.analysis.axes.registry import rule
from progc.analysis.axes.rules.pointwise import pointwise
from progc.ir.program import TensorMeta


def _reduced(ctx: Context, node: fx.Node, args: Args) -> tuple[list[int], Any]:
    x = next(iter(args.tensors()))
    raw = args.get("dim")
    if raw is None or raw == []:
        over = list(range(len(x.dims)))
    else:
        over = [int(d) % len(x.dims) for d in (raw if isinstance(raw, (list, tuple)) else [raw])]
    keep = bool(args.get("keepdim", False))
    dims: list[D.Dim] = []
    for position, dim in enumerate(x.dims):
        if position not in over:
            dims.append(dim)
        elif keep:
            dims.append(())
    value = Value(tuple(dims), constant=x.constant)
    meta = node.meta["tensor"]
    return over, value if isinstance(meta, TensorMeta) else [Value(tuple(dims), constant=x.constant) for _ in meta]


def _channels(x: Value, over: list[int]) -> list[D.Dim]:
    return [x.dims[d] for d in over if D.channels(x.dims[d])]


@rule("mean", "nanmean")
def mean(ctx: Context, node: fx.Node, args: Args) -> Any:
    """Exact for copies if every unit has the same number of them."""
    over, out = _reduced(ctx, node, args)
    for dim in _channels(args["self"], over):
        ctx.event("normalise", dim)
    ctx.carry(args["self"])
    return out


@rule("amax", "amin", "max", "min", "any", "all", "argmax", "argmin")
def extremum(ctx: Context, node: fx.Node, args: Args) -> Any:
    """Copies do not change a maximum; a place does."""
    if len(list(args.tensors())) == 2:
        return pointwise(ctx, node, args)
    over, out = _reduced(ctx, node, args)
    for dim in _channels(args["self"], over):
        if ctx.op in ("aten.amax", "aten.amin", "aten.any", "aten.all"):
            ctx.event("copies", dim)
        else:
            ctx.pin(dim, f"{ctx.op} gives a place in it")
    ctx.carry(args["self"])
    return out


@rule("sum")
def added(ctx: Context, node: fx.Node, args: Args) -> Any:
    """A contraction with ones: copies add up, so what is summed owes the factor (docs/growth.md 0.1)."""
    x = args["self"]
    over, out = _reduced(ctx, node, args)
    found = _channels(x, over)
    if len(found) == 1 and x.source is None and not x.constant:
        ctx.event("contract", found[0], args.node_name("self"))
    else:
        for dim in found:
            ctx.pin(dim, f"{ctx.op} runs over it")
    ctx.carry(x)
    return out


@rule("prod", "nansum", "logsumexp", "linalg_vector_norm", "norm")
def total(ctx: Context, node: fx.Node, args: Args) -> Any:
    """Copies change what is added up; a length they change by a common factor (progc/analysis/axes/lengths.py)."""
    over, out = _reduced(ctx, node, args)
    found = _channels(args["self"], over)
    if _is_length(ctx, args) and isinstance(out, Value):
        for dim in found:
            ctx.event("normalise", dim)
        out = dataclasses.replace(out, lengths=tuple((dim, 1) for dim in found))
    else:
        for dim in found:
            ctx.pin(dim, f"{ctx.op} runs over it")
    ctx.carry(args["self"])
    return out


def _is_length(ctx: Context, args: Args) -> bool:
    """True for the Euclidean norm."""
    order = args.get("ord", args.get("p"))
    return ctx.op in ("aten.linalg_vector_norm", "aten.norm") and order in (None, 2)


@rule("var", "std", "var_mean", "std_mean")
def variance(ctx: Context, node: fx.Node, args: Args) -> Any:
    """Exact for uniform copies: what is subtracted from the number of units grows with it (n - 1 becomes rn - r)."""
    over, out = _reduced(ctx, node, args)
    correction = args.get("correction")
    for dim in _channels(args["self"], over):
        if not isinstance(correction, (int, float)):
            ctx.pin(dim, f"{ctx.op} divides by n - {correction}")
            continue
        ctx.event("normalise", dim)
        if correction:
            ctx.literal(args.paths["correction"], dim, value=correction)
    ctx.carry(args["self"])
    return out


@rule("cumsum", "cumprod", "diff", "cummax", "sort", "argsort", "topk")
def ordered(ctx: Context, node: fx.Node, args: Args) -> Any:
    """The order of units along the dim matters."""
    x = args["self"]
    dim = int(args.get("dim", -1)) % max(len(x.dims), 1)
    if D.channels(x.dims[dim]):
        ctx.pin(x.dims[dim], f"{ctx.op} looks at the order of units")

    def of(meta: TensorMeta) -> Value:
        dims = list(x.dims)
        if meta.shape[dim] != D.size_of(dims[dim]):
            dims[dim] = D.new(meta.shape[dim], extent=True)
        return Value(tuple(dims), constant=x.constant)

    meta = node.meta["tensor"]
    return of(meta) if isinstance(meta, TensorMeta) else [of(item) for item in meta]
