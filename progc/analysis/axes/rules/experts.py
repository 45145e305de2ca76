"""Products with one weight per group of rows: mixtures of experts."""

from __future__ import annotations

from torch import fx

from progc.analysis.axes.context import Args, Context
from progc.analysis.axes.records import Value
from progc.analysis.axes.registry import rule


@rule("_grouped_mm", later=("transformers.grouped_mm_fallback",))
def grouped(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Rows `[S, I]`, sorted by expert, times weights `[E, I, O]` -> `[S, O]`; who gets which expert is data."""
    (name_x, x), (name_w, weight), *rest = [
        (raw.name, ctx.resolve(raw)) for raw in args.nodes.values() if isinstance(raw, fx.Node)
    ]
    if len(x.dims) != 2 or len(weight.dims) != 3 or len(rest) != 1:
        raise ValueError("another form of the operation")
    ctx.pin(weight.dims[0], "experts are chosen by index")
    ctx.contract(x, 1, name_x, weight, 1, name_w)
    ctx.carry_dims(weight, [2])
    return Value((x.dims[0], weight.dims[2]))
