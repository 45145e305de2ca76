"""The transfer functions of the proof: what each operation does to a padded value.

In the order of the file: operations that are linear in each operand (products, convolutions, attention, lookups);
elementwise operations, pooling, and tensors created in the graph; and statistics over the axis, which decide whether
padding is exact (docs/growth.md, section 1.1).

With `kappa = old / new = s ** -2`, the mean of `[s x, s mean(x)]` is `s mean(x)` and its variance is
`s ** 2 kappa var(x) = var(x)`. The mean square of `[s x, 0]` is `s ** 2 kappa = 1` times the mean square of `x`.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from progc.analysis.demand.contractions import Contraction, Operand, contraction
from progc.analysis.padding.proof import Forward, Result, is_zero, transfer
from progc.analysis.padding.reading import Reading, scalar
from progc.analysis.padding.states import ALIKE, PaddingRefused, PadState, joined, mapped, multiplied
from progc.ir.operations import POINTWISE, SPATIAL, argument, describe, op_name


def along(reading: Reading, operand: Operand) -> list[tuple[int, str]]:
    """Returns the dims of an operand that hold the axis, with their labels."""
    return [(place, operand.labels[place]) for place in reading.places(operand.node)]


def grouped(node: fx.Node) -> bool:
    """Returns True for a convolution with several groups that is not depthwise; its labels do not show groups."""
    groups = argument(node, "groups", 1)
    if groups in (1, None):
        return False
    found = contraction(node)
    return found is None or "o" not in found.operands[1].labels


@transfer(
    "linear", "matmul", "mm", "bmm", "mv", "dot", "addmm", "baddbmm", "einsum", "conv1d", "conv2d", "conv3d",
    "convolution", "_convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "embedding", "sum",
    "_grouped_mm", "transformers.grouped_mm_fallback",
    *sorted(SPATIAL),
)  # fmt: skip
def through_contraction(walk: Forward, node: fx.Node) -> PadState:
    """A sum of products, over the axis or over other dims."""
    found = contraction(node)
    if found is None or (grouped(node) and any(walk.reading.carries(n) for n in node.all_input_nodes)):
        raise PaddingRefused(f"{describe(node)} has no padding rule")
    for fixed in found.fixed:
        walk.unscaled(node, fixed)
    summed: list[tuple[fx.Node, int]] = []
    kept: list[tuple[fx.Node, int | None]] = []
    for operand in found.operands:
        places = along(walk.reading, operand)
        mixed = [(place, label) for place, label in places if label not in found.out]
        held = [(place, label) for place, label in places if label in found.out]
        if len(held) > 1 or len(mixed) > 1 or (held and mixed and not walk.reading.is_tensor(operand.node)):
            raise PaddingRefused(f"{describe(node)} has the axis in two operands or along two dims")
        summed += [(operand.node, place) for place, _ in mixed]
        if held or not mixed:
            kept.append((operand.node, held[0][0] if held else None))
    total = _summed(walk, node, summed)
    for item, place in kept:
        total = multiplied(total, walk.state(item, place) if place is not None else _beside(walk, item))
    return _with_bias(walk, node, found, total)


def _beside(walk: Forward, item: fx.Node) -> PadState:
    return ALIKE if walk.reading.carries(item) else walk.state(item)


def _summed(walk: Forward, node: fx.Node, operands: list[tuple[fx.Node, int]]) -> PadState:
    """Returns the factor of a sum over the axis. New units must not contribute to it."""
    if not operands:
        return ALIKE
    if len(operands) != 2:
        raise PaddingRefused(f"{describe(node)} sums over the axis without a weight")
    for (weight, at), (value, there) in (operands, operands[::-1]):
        key = walk.open_key(weight, at)
        if key is not None and walk.open_key(value, there) is None:
            given = walk.state(value, there)
            walk.tensors.give(key, PadState(-given.power, "free" if given.new == "zero" else "zero"))
            break
    a, b = (walk.state(item, place) for item, place in operands)
    if a.new == b.new == "zero" and not any(walk.reading.is_tensor(item) for item, _ in operands):
        raise PaddingRefused(f"{describe(node)} would have new units that are zero on both sides, which never train")
    if "zero" not in (a.new, b.new):
        raise PaddingRefused(f"{describe(node)} sums over new units that are not zero")
    if a.power + b.power and not all(walk.reading.product(item, place) for item, place in operands):
        raise PaddingRefused(f"{describe(node)} sums over more than the axis, and only the axis has the factor")
    return PadState(a.power + b.power, "const")


def _with_bias(walk: Forward, node: fx.Node, found: Contraction, total: PadState) -> PadState:
    if found.bias is None:
        return total
    key = walk.open_key(found.bias.node) if walk.reading.carries(found.bias.node) else None
    if key is not None:
        walk.tensors.give(key, PadState(total.power, "free"))
    both = joined(total, walk.state(found.bias.node))
    if both is None:
        raise PaddingRefused(f"{describe(node)} adds a bias that does not have the factor of the value")
    return both


@transfer("outer", "ger")
def outer(walk: Forward, node: fx.Node) -> PadState:
    """`[I]`, `[J]` -> `[I, J]`."""
    a, b = node.args[:2]
    if walk.reading.carries(a) and walk.reading.carries(b):
        raise PaddingRefused(f"{describe(node)} has the axis in two operands or along two dims")
    return multiplied(walk.state(a), walk.state(b))


@transfer("scaled_dot_product_attention")
def attention(walk: Forward, node: fx.Node) -> PadState:
    """Scores sum over the head dim of q and k; without `scale` the op divides them by its square root."""
    query, key, value = node.args[:3]
    assert isinstance(query, fx.Node) and isinstance(key, fx.Node) and isinstance(value, fx.Node)
    walk.unscaled(node, argument(node, "attn_mask"))
    heads = False
    power = walk.state(query).power + walk.state(key).power
    last = len(walk.reading.value(query).dims) - 1
    if last in walk.reading.places(query):
        if walk.state(query).new == walk.state(key).new == "zero":
            raise PaddingRefused(
                f"{describe(node)} would have new units that are zero on both sides, which never train"
            )
        if "zero" not in (walk.state(query).new, walk.state(key).new):
            raise PaddingRefused(f"{describe(node)} sums over new units that are not zero")
        power -= argument(node, "scale") is None
        if not walk.reading.product(query, last) and (argument(node, "scale") is None or power):
            raise PaddingRefused(f"{describe(node)} divides by the square root of more than the axis")
    heads = any(place != last for item in (query, key, value) for place in walk.reading.places(item))
    if power:
        raise PaddingRefused(f"{describe(node)} would compute scores with a factor")
    given = walk.state(value)
    if heads and given.new != "zero":
        return PadState(given.power, "free")
    return given


@transfer("lstm", "gru", "rnn_tanh", "rnn_relu")
def through_recurrent(walk: Forward, node: fx.Node) -> tuple[PadState, ...]:
    """A recurrent layer sums over its input; its hidden units are another axis."""
    x, others = node.args[0], [n for n in node.all_input_nodes if n is not node.args[0]]
    places = walk.reading.places(x) if isinstance(x, fx.Node) else []
    carrying = [weight for weight in others if walk.reading.carries(weight)]
    if not isinstance(x, fx.Node) or len(places) != 1 or any(walk.reading.places(w) != [1] for w in carrying):
        raise PaddingRefused(f"{describe(node)} has no padding rule")
    given = walk.state(x, places[0])
    for weight in carrying:
        key = walk.key(weight, 1) if walk.reading.is_tensor(weight) else None
        if key is None:
            raise PaddingRefused(f"{describe(node)} sums over the axis with a computed weight")
        walk.tensors.give(key, PadState(-given.power, "free" if given.new == "zero" else "zero"))
    return tuple(ALIKE for _ in node.meta["tensor"])


# phi(0) = 0, with a nonzero gradient at 0.
_ZERO_STAYS = """gelu silu tanh hardswish mish elu softsign selu celu sin tan hardtanh erf sinh atan asin expm1
log1p""".split()

# phi(0) = 0, with gradient zero at 0: a unit whose input is zero would never train.
_FLAT = "relu relu6 abs sign floor ceil round trunc softshrink hardshrink".split()

# Finite everywhere, and phi(0) is not 0.
_FINITE = """sigmoid hardsigmoid softplus log_sigmoid exp cos cosh erfc clamp clamp_min clamp_max softmax log_softmax
_softmax _log_softmax prelu _prelu_kernel eq ne lt le gt ge logical_not logical_and logical_or isnan isinf isfinite
bitwise_not bitwise_and bitwise_or minimum maximum nan_to_num""".split()

_HOMOGENEOUS = "leaky_relu max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d".split()


@transfer(*sorted(POINTWISE), "native_dropout")
def same(walk: Forward, node: fx.Node) -> PadState:
    """Copies, casts, dropout."""
    return walk.state(node.args[0])


@transfer(*_ZERO_STAYS)
def zero_stays(walk: Forward, node: fx.Node) -> PadState:
    """Functions with phi(0) = 0."""
    return mapped(walk.unscaled(node, node.args[0])[0], True)


@transfer(*_FLAT)
def flat(walk: Forward, node: fx.Node) -> PadState:
    """relu and abs pass any positive factor through; their inputs must not be zero."""
    name = op_name(node)
    state = walk.state(node.args[0]) if name in ("relu", "abs") else walk.unscaled(node, node.args[0])[0]
    if state.new == "zero":
        raise PaddingRefused(f"{describe(node)} has gradient zero at zero, so new units would never train")
    return mapped(state, False)


@transfer(*_FINITE)
def finite(walk: Forward, node: fx.Node) -> PadState:
    """Any other elementwise function: new units are finite, and nothing else is known about them."""
    states = walk.unscaled(node, *node.all_input_nodes)
    # Either equal for all units without a factor, or free.
    return PadState(0, "const" if all(state.new == "const" for state in states) else "free")


@transfer(*_HOMOGENEOUS)
def homogeneous(walk: Forward, node: fx.Node) -> PadState:
    """phi(s x) = s phi(x) for s > 0."""
    return mapped(walk.state(node.args[0]), True)


@transfer("amax", "amin", "any", "all")
def extremum(walk: Forward, node: fx.Node) -> PadState:
    """Over other dims like pooling; over the axis, new units would take part."""
    if walk.reading.carries(node.args[0]) and not walk.reading.carries(node):
        raise PaddingRefused(f"{describe(node)} reduces over all units, including new ones")
    return mapped(walk.state(node.args[0]), True)


@transfer("add", "sub", "rsub")
def total(walk: Forward, node: fx.Node) -> PadState:
    """A shift with an open state gets the factor of the value that it is added to."""
    a, b = node.args[:2]
    for shift, value in ((b, a), (a, b)):
        key = walk.open_key(shift)
        if key is not None and walk.open_key(value) is None:
            state = walk.state(value)
            walk.tensors.give(key, PadState(state.power, "zero" if state.new == "zero" else "free"))
            break
    if is_zero(a) or is_zero(b):
        return walk.state(b if is_zero(a) else a)
    first, second = walk.state(a), walk.state(b)
    if op_name(node) == "sub" and isinstance(a, fx.Node) and _is_mean_of(walk, b, a):
        if first == PadState(second.power, "mean"):
            return PadState(first.power, "zero")
    both = joined(first, second)
    if both is None:
        raise walk.differs(node, [a, b])
    return both


def _is_mean_of(walk: Forward, mean: Any, value: fx.Node) -> bool:
    """Returns True if `mean` is the mean of `value` over exactly the axis."""
    mean = walk.reading.uncast(mean)
    if not isinstance(mean, fx.Node) or op_name(mean) != "mean":
        return False
    x, dims = walk.reading.uncast(mean.args[0]), argument(mean, "dim")
    rank = len(walk.reading.value(value).dims)
    places = walk.reading.places(value)
    over = [dim % rank for dim in ([dims] if isinstance(dims, int) else dims or range(rank))]
    return x is walk.reading.uncast(value) and over == places and walk.reading.alone(value, places[0])


@transfer("mul")
def product(walk: Forward, node: fx.Node) -> PadState:
    """A gain with an open state removes the factor of the value that it multiplies."""
    a, b = node.args[:2]
    for gain, value in ((a, b), (b, a)):
        key = walk.open_key(gain)
        if key is not None and walk.open_key(value) is None and walk.reading.carries(value):
            walk.tensors.give(key, PadState(walk.wanted(node) - walk.state(value).power, "free"))
            break
    first, second = walk.state(a), walk.state(b)
    if first.new == second.new == "zero" and a is not b:
        raise PaddingRefused(f"{describe(node)} would have new units that are zero on both sides, which never train")
    return multiplied(first, second)


@transfer("div")
def quotient(walk: Forward, node: fx.Node) -> PadState:
    """Division by values that are equal for all units."""
    a, b = (walk.state(item) for item in node.args[:2])
    if argument(node, "rounding_mode") is not None:
        walk.unscaled(node, *node.args[:2])
    if b.new != "const":
        raise PaddingRefused(f"{describe(node)} divides by values that differ between units")
    return PadState(a.power - b.power, a.new, a.weights)


@transfer("pow")
def power(walk: Forward, node: fx.Node) -> PadState:
    """A fixed exponent."""
    base, exponent = node.args[:2]
    if not scalar(exponent):
        raise PaddingRefused(f"{describe(node)} has an exponent that is not a number")
    assert isinstance(exponent, (int, float))
    return _raised(node, walk.state(base), float(exponent))


@transfer("square")
def square(walk: Forward, node: fx.Node) -> PadState:
    """x ** 2."""
    return _raised(node, walk.state(node.args[0]), 2.0)


@transfer("sqrt")
def root(walk: Forward, node: fx.Node) -> PadState:
    """x ** 0.5."""
    return _raised(node, walk.state(node.args[0]), 0.5)


@transfer("rsqrt", "reciprocal")
def inverse(walk: Forward, node: fx.Node) -> PadState:
    """x ** -0.5, x ** -1."""
    return _raised(node, walk.state(node.args[0]), -0.5 if op_name(node) == "rsqrt" else -1.0)


def _raised(node: fx.Node, state: PadState, exponent: float) -> PadState:
    factor = state.power * exponent
    if factor != int(factor):
        raise PaddingRefused(f"{describe(node)} does not pass this factor through")
    if state.new == "const" or (state.new == "zero" and exponent > 0):
        return PadState(int(factor), state.new)
    if exponent < 0 or exponent != int(exponent):
        raise PaddingRefused(f"{describe(node)} may not be finite for new units")
    return PadState(int(factor), "free")


@transfer("masked_fill")
def masked(walk: Forward, node: fx.Node) -> PadState:
    """Zero, or another number, where a mask is true."""
    x, mask, value = node.args[:3]
    state, given = walk.state(x), walk.unscaled(node, mask)[0]
    if not is_zero(value):
        both = joined(walk.unscaled(node, x)[0], ALIKE)
        assert both is not None
        state = both
    elif state.new == "zero":
        return state
    return state if given.new == "const" else PadState(state.power, "free")


@transfer("where")
def choice(walk: Forward, node: fx.Node) -> PadState:
    """One of two values."""
    condition, a, b = node.args[:3]
    given = walk.unscaled(node, condition)[0]
    both = joined(walk.state(a), walk.state(b))
    if both is None:
        raise walk.differs(node, [a, b])
    return both if given.new == "const" or both.new == "zero" else PadState(both.power, "free")


@transfer("zeros", "zeros_like", "new_zeros")
def zeros(walk: Forward, node: fx.Node) -> PadState:
    """Zero, also for new units."""
    return PadState(0, "zero" if walk.reading.carries(node) else "const")


@transfer("ones", "ones_like", "new_ones", "full", "full_like", "new_full", "scalar_tensor")
def constant(walk: Forward, node: fx.Node) -> PadState:
    """Equal for all units."""
    return ALIKE


@transfer("bernoulli")
def drawn(walk: Forward, node: fx.Node) -> PadState:
    """Random numbers: nothing is known about new units."""
    return PadState(0, "free" if walk.reading.carries(node) else "const")


@transfer("layer_norm", "rms_norm")
def layer_norm(walk: Forward, node: fx.Node) -> PadState:
    """Statistics over the last dims."""
    x, weight, bias = (argument(node, name) for name in ("input", "weight", "bias"))
    given = walk.state(x)
    if not walk.reading.carries(x):
        walk.unscaled(node, *node.all_input_nodes)
        return PadState(0, "const")
    if not walk.reading.over_axis(node):
        walk.unscaled(node, *node.all_input_nodes)
        stays = given.new == "zero" and op_name(node) == "rms_norm"
        return PadState(0, "zero" if stays else "free")
    (place,) = walk.reading.places(x)
    if op_name(node) == "rms_norm":
        good = given == PadState(1, "zero") and walk.reading.product(x, place)
    else:
        only = len(argument(node, "normalized_shape")) == 1 and walk.reading.alone(x, place)
        good = given == PadState(1, "mean") and only
    if not good:
        raise PaddingRefused(f"{describe(node)} would compute different statistics")
    key = walk.open_key(weight)
    if key is not None:
        walk.tensors.give(key, PadState(walk.wanted(node) - 1, "free"))
    power = 1 + walk.state(weight).power
    key = walk.open_key(bias)
    if key is not None:
        walk.tensors.give(key, PadState(power, "zero"))
    if bias is not None and walk.state(bias) != PadState(power, "zero"):
        raise PaddingRefused(f"{describe(node)} has a shift that another reader needs with different values")
    return PadState(power, "zero")


@transfer("batch_norm", "instance_norm")
def batch_norm(walk: Forward, node: fx.Node) -> PadState:
    """Normalises each channel separately, which would remove a factor."""
    x = node.args[0]
    states = walk.unscaled(node, *node.all_input_nodes)
    if walk.reading.carries(x) and 1 not in walk.reading.places(x):
        raise PaddingRefused(f"{describe(node)} takes statistics over it")
    return PadState(0, "const" if all(state.new == "const" for state in states) else "free")


@transfer("group_norm")
def group_norm(walk: Forward, node: fx.Node) -> PadState:
    """Statistics over space and channels together, which padding does not preserve."""
    raise PaddingRefused(f"{describe(node)} takes statistics over space and channels together")


@transfer("mean")
def mean(walk: Forward, node: fx.Node) -> Result:
    """Over the axis (statistics) or over other dims (linear)."""
    x = node.args[0]
    given = walk.state(x)
    if not walk.reading.carries(x):
        return given
    if walk.reading.carries(node):
        return through_contraction(walk, node)
    (place,) = walk.reading.places(x)
    if given.new == "zero" and walk.reading.product(x, place):
        return PadState(given.power - 2, "const")
    if given == PadState(given.power, "mean") and walk.reading.product(x, place):
        return PadState(given.power, "const")
    raise PaddingRefused(f"{describe(node)} would compute a different mean")


@transfer("var", "var_mean")
def variance(walk: Forward, node: fx.Node) -> Result:
    """Over exactly the axis."""
    x, dims = node.args[0], argument(node, "dim")
    given = walk.state(x)
    over = [dims] if isinstance(dims, int) else dims
    places = walk.reading.places(x) if isinstance(x, fx.Node) else []
    if not places or walk.reading.carries(node):
        walk.unscaled(node, x)
        state = PadState(0, "const" if not places else "free")
        return (state, state) if op_name(node) == "var_mean" else state
    alone = over is not None and len(over) == 1 and walk.reading.alone(x, places[0])
    if given != PadState(given.power, "mean") or not alone:
        raise PaddingRefused(f"{describe(node)} would compute a different variance")
    state = PadState(2 * given.power - 2, "const")
    return (state, PadState(given.power, "const")) if op_name(node) == "var_mean" else state
