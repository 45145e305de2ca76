"""Transfer functions of elementwise operations, pooling and tensors made in the graph."""

from __future__ import annotations

from typing import Any

from torch import fx

from progc.analysis.padding.proof import Forward, is_zero, transfer
from progc.analysis.padding.reading import scalar
from progc.analysis.padding.states import ALIKE, PaddingRefused, State, joined, mapped, multiplied
from progc.ir.operations import POINTWISE, argument, describe, op_name

# phi(0) = 0, with a slope there.
_ZERO_STAYS = """gelu silu tanh hardswish mish elu softsign selu celu sin tan hardtanh erf sinh atan asin expm1
log1p""".split()
# phi(0) = 0 without a slope there: a unit that is zero before it would never train.
_FLAT = "relu relu6 abs sign floor ceil round trunc softshrink hardshrink".split()
# Finite everywhere; 0 becomes something else.
_FINITE = """sigmoid hardsigmoid softplus log_sigmoid exp cos cosh erfc clamp clamp_min clamp_max softmax log_softmax
_softmax _log_softmax prelu _prelu_kernel eq ne lt le gt ge logical_not logical_and logical_or isnan isinf isfinite
bitwise_not bitwise_and bitwise_or minimum maximum nan_to_num""".split()
_HOMOGENEOUS = "leaky_relu max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d".split()


@transfer(*sorted(POINTWISE), "native_dropout")
def same(walk: Forward, node: fx.Node) -> State:
    """Copies, casts, dropout."""
    return walk.state(node.args[0])


@transfer(*_ZERO_STAYS)
def zero_stays(walk: Forward, node: fx.Node) -> State:
    """Functions with phi(0) = 0."""
    return mapped(walk.unscaled(node, node.args[0])[0], True)


@transfer(*_FLAT)
def flat(walk: Forward, node: fx.Node) -> State:
    """Any factor above zero passes relu and abs; no zero may come in."""
    name = op_name(node)
    state = walk.state(node.args[0]) if name in ("relu", "abs") else walk.unscaled(node, node.args[0])[0]
    if state.new == "zero":
        raise PaddingRefused(f"{describe(node)} has no slope at zero, where new units would be: they would never train")
    return mapped(state, False)


@transfer(*_FINITE)
def finite(walk: Forward, node: fx.Node) -> State:
    """Any other function of a unit: it knows nothing of new units but that they are finite."""
    states = walk.unscaled(node, *node.all_input_nodes)
    # A power of zero and alike everywhere, or free.
    return State(0, "const" if all(state.new == "const" for state in states) else "free")


@transfer(*_HOMOGENEOUS)
def homogeneous(walk: Forward, node: fx.Node) -> State:
    """phi(s x) = s phi(x) for s > 0."""
    return mapped(walk.state(node.args[0]), True)


@transfer("amax", "amin", "any", "all")
def extremum(walk: Forward, node: fx.Node) -> State:
    """Over other dims as a pooling; over the axis new units would take part."""
    if walk.reading.carries(node.args[0]) and not walk.reading.carries(node):
        raise PaddingRefused(f"{describe(node)} looks at all units")
    return mapped(walk.state(node.args[0]), True)


@transfer("add", "sub", "rsub")
def total(walk: Forward, node: fx.Node) -> State:
    """A shift that nobody asked anything of follows what it is added to."""
    a, b = node.args[:2]
    for shift, value in ((b, a), (a, b)):
        key = walk.open_key(shift)
        if key is not None and walk.open_key(value) is None:
            state = walk.state(value)
            walk.tensors.give(key, State(state.power, "zero" if state.new == "zero" else "free"))
            break
    if is_zero(a) or is_zero(b):
        return walk.state(b if is_zero(a) else a)
    first, second = walk.state(a), walk.state(b)
    if op_name(node) == "sub" and isinstance(a, fx.Node) and _is_mean_of(walk, b, a):
        if first == State(second.power, "mean"):
            return State(first.power, "zero")
    both = joined(first, second)
    if both is None:
        raise walk.differs(node, [a, b])
    return both


def _is_mean_of(walk: Forward, mean: Any, value: fx.Node) -> bool:
    """True if `mean` is the mean of `value` over the axis alone."""
    mean = walk.reading.uncast(mean)
    if not isinstance(mean, fx.Node) or op_name(mean) != "mean":
        return False
    x, dims = walk.reading.uncast(mean.args[0]), argument(mean, "dim")
    rank = len(walk.reading.value(value).dims)
    places = walk.reading.places(value)
    over = [dim % rank for dim in ([dims] if isinstance(dims, int) else dims or range(rank))]
    return x is walk.reading.uncast(value) and over == places and walk.reading.alone(value, places[0])


@transfer("mul")
def product(walk: Forward, node: fx.Node) -> State:
    """A gain that nobody asked anything of takes out the factor of what it multiplies."""
    a, b = node.args[:2]
    for gain, value in ((a, b), (b, a)):
        key = walk.open_key(gain)
        if key is not None and walk.open_key(value) is None and walk.reading.carries(value):
            walk.tensors.give(key, State(walk.wanted(node) - walk.state(value).power, "free"))
            break
    first, second = walk.state(a), walk.state(b)
    if first.new == second.new == "zero" and a is not b:
        raise PaddingRefused(f"{describe(node)} would have new units that are zero on both sides, which never train")
    return multiplied(first, second)


@transfer("div")
def quotient(walk: Forward, node: fx.Node) -> State:
    """By values that are alike for all units."""
    a, b = (walk.state(item) for item in node.args[:2])
    if argument(node, "rounding_mode") is not None:
        walk.unscaled(node, *node.args[:2])
    if b.new != "const":
        raise PaddingRefused(f"{describe(node)} divides by values of its units")
    return State(a.power - b.power, a.new, a.weights)


@transfer("pow")
def power(walk: Forward, node: fx.Node) -> State:
    """By a fixed exponent."""
    base, exponent = node.args[:2]
    if not scalar(exponent):
        raise PaddingRefused(f"{describe(node)} has an exponent that is no number")
    assert isinstance(exponent, (int, float))
    return _raised(node, walk.state(base), float(exponent))


@transfer("square")
def square(walk: Forward, node: fx.Node) -> State:
    """x ** 2."""
    return _raised(node, walk.state(node.args[0]), 2.0)


@transfer("sqrt")
def root(walk: Forward, node: fx.Node) -> State:
    """x ** 0.5."""
    return _raised(node, walk.state(node.args[0]), 0.5)


@transfer("rsqrt", "reciprocal")
def inverse(walk: Forward, node: fx.Node) -> State:
    """x ** -0.5, x ** -1."""
    return _raised(node, walk.state(node.args[0]), -0.5 if op_name(node) == "rsqrt" else -1.0)


def _raised(node: fx.Node, state: State, exponent: float) -> State:
    factor = state.power * exponent
    if factor != int(factor):
        raise PaddingRefused(f"{describe(node)} does not pass this factor on")
    if state.new == "const" or (state.new == "zero" and exponent > 0):
        return State(int(factor), state.new)
    if exponent < 0 or exponent != int(exponent):
        raise PaddingRefused(f"{describe(node)} may not be finite for new units")
    return State(int(factor), "free")


@transfer("masked_fill")
def masked(walk: Forward, node: fx.Node) -> State:
    """Zeros, or another number, where a mask is true."""
    x, mask, value = node.args[:3]
    state, given = walk.state(x), walk.unscaled(node, mask)[0]
    if not is_zero(value):
        both = joined(walk.unscaled(node, x)[0], ALIKE)
        assert both is not None
        state = both
    elif state.new == "zero":
        return state
    return state if given.new == "const" else State(state.power, "free")


@transfer("where")
def choice(walk: Forward, node: fx.Node) -> State:
    """One of two values."""
    condition, a, b = node.args[:3]
    given = walk.unscaled(node, condition)[0]
    both = joined(walk.state(a), walk.state(b))
    if both is None:
        raise walk.differs(node, [a, b])
    return both if given.new == "const" or both.new == "zero" else State(both.power, "free")


@transfer("zeros", "zeros_like", "new_zeros")
def zeros(walk: Forward, node: fx.Node) -> State:
    """Zero for new units too."""
    return State(0, "zero" if walk.reading.carries(node) else "const")


@transfer("ones", "ones_like", "new_ones", "full", "full_like", "new_full", "scalar_tensor")
def constant(walk: Forward, node: fx.Node) -> State:
    """Alike for all units."""
    return ALIKE


@transfer("bernoulli")
def drawn(walk: Forward, node: fx.Node) -> State:
    """Random numbers: nothing is known of new units."""
    return State(0, "free" if walk.reading.carries(node) else "const")
