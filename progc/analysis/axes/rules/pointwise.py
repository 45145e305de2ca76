"""Rules of elementwise ops: operands broadcast, and equal dims are one axis."""

from __future__ import annotations

from torch import fx

from progc.analysis.axes.context import Args, Context
from progc.analysis.axes.dims import Dim
from progc.analysis.axes.records import Value
from progc.analysis.axes.registry import rule

UNARY = """abs acos asin atan bitwise_not ceil celu clamp clamp_max clamp_min cos cosh deg2rad elu erf erfc exp exp2
expm1 fill floor gelu hardsigmoid hardswish hardtanh isfinite isinf isnan leaky_relu log log10 log1p log2 log_sigmoid
logical_not logit mish nan_to_num neg reciprocal relu relu6 round rsqrt selu sigmoid sign silu sin sinh
softplus sqrt square tan tanh threshold trunc zero rrelu softshrink hardshrink bernoulli masked_fill
where alpha_dropout feature_dropout""".split()

BINARY = """add sub mul div true_divide floor_divide pow maximum minimum fmod remainder eq ne lt le gt ge logical_and
logical_or logical_xor bitwise_and bitwise_or bitwise_xor __and__ __or__ __xor__ atan2 lerp addcmul addcdiv rsub
float_power xlogy copy hypot greater less __ior__ __iand__ multiply divide subtract""".split()


def broadcast(ctx: Context, values: list[Value]) -> tuple[Dim, ...]:
    """Returns the dims of the broadcast of `values`; dims of equal size become one axis."""
    rank = max((len(value.dims) for value in values), default=0)
    out: list[Dim] = []
    for position in range(-rank, 0):
        dim: Dim = ()
        for value in values:
            if -position > len(value.dims):
                continue
            other = value.dims[position]
            if not dim or all(atom.size == 1 for atom in dim):
                dim = other
            elif other and any(atom.size != 1 for atom in other):
                ctx.unify(dim, other)
        out.append(dim)
    return tuple(out)


@rule(*dict.fromkeys(UNARY + BINARY))
def pointwise(ctx: Context, node: fx.Node, args: Args) -> Value:
    """Any elementwise op."""
    values = list(args.tensors())
    dims = broadcast(ctx, values)
    ctx.carry(*values)
    moving = [value for value in values if not value.constant]
    if ctx.op in ("aten.add", "aten.sub") and len(moving) == 2 and moving[0].shape == moving[1].shape:
        ctx.event("residual", dims[-1] if len(dims) != 4 else (dims[-1] or dims[1]))
        if len(dims) in (4, 5):
            ctx.event("residual", dims[1])
    return Value(dims, constant=not moving)


@rule("prelu", "_prelu_kernel")
def prelu(ctx: Context, node: fx.Node, args: Args) -> Value:
    """A learnable slope for each channel (dim 1), or one for all channels."""
    x, weight = args["self"], args["weight"]
    if weight.shape[0] > 1:
        ctx.unify(weight.dims[0], x.dims[1])
    ctx.carry(weight)
    return Value(x.dims)
