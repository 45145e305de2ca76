"""Transfer functions of statistics over the axis: where padding is won or lost (docs/growth.md 1.1).

With `kappa = old / new = s ** -2`: the mean of `[s x, s mean(x)]` is `s mean(x)`, its variance `s ** 2 kappa var(x)
= var(x)`; the mean square of `[s x, 0]` is `s ** 2 kappa` times that of `x`, which is the same.
"""

from __future__ import annotations

from torch import fx

from progc.analysis.padding.proof import Forward, Result, transfer
from progc.analysis.padding.states import PaddingRefused, State
from progc.analysis.padding.summing import through_contraction
from progc.ir.operations import argument, describe, op_name


@transfer("layer_norm", "rms_norm")
def layer_norm(walk: Forward, node: fx.Node) -> State:
    """Statistics over the last dims."""
    x, weight, bias = (argument(node, name) for name in ("input", "weight", "bias"))
    given = walk.state(x)
    if not walk.reading.carries(x):
        walk.unscaled(node, *node.all_input_nodes)
        return State(0, "const")
    if not walk.reading.over_axis(node):
        walk.unscaled(node, *node.all_input_nodes)
        stays = given.new == "zero" and op_name(node) == "rms_norm"
        return State(0, "zero" if stays else "free")
    (place,) = walk.reading.places(x)
    if op_name(node) == "rms_norm":
        good = given == State(1, "zero") and walk.reading.product(x, place)
    else:
        only = len(argument(node, "normalized_shape")) == 1 and walk.reading.alone(x, place)
        good = given == State(1, "mean") and only
    if not good:
        raise PaddingRefused(f"{describe(node)} would see other statistics")
    key = walk.open_key(weight)
    if key is not None:
        walk.tensors.give(key, State(walk.wanted(node) - 1, "free"))
    power = 1 + walk.state(weight).power
    key = walk.open_key(bias)
    if key is not None:
        walk.tensors.give(key, State(power, "zero"))
    if bias is not None and walk.state(bias) != State(power, "zero"):
        raise PaddingRefused(f"{describe(node)} has a shift that has to be another elsewhere")
    return State(power, "zero")


@transfer("batch_norm", "instance_norm")
def batch_norm(walk: Forward, node: fx.Node) -> State:
    """Every channel by itself; a factor would be lost."""
    x = node.args[0]
    states = walk.unscaled(node, *node.all_input_nodes)
    if walk.reading.carries(x) and 1 not in walk.reading.places(x):
        raise PaddingRefused(f"{describe(node)} takes statistics over it")
    return State(0, "const" if all(state.new == "const" for state in states) else "free")


@transfer("group_norm")
def group_norm(walk: Forward, node: fx.Node) -> State:
    """Statistics over space and channels together: means of units are no means of those."""
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
        return State(given.power - 2, "const")
    if given == State(given.power, "mean") and walk.reading.product(x, place):
        return State(given.power, "const")
    raise PaddingRefused(f"{describe(node)} would see another mean")


@transfer("var", "var_mean")
def variance(walk: Forward, node: fx.Node) -> Result:
    """Over the axis alone."""
    x, dims = node.args[0], argument(node, "dim")
    given = walk.state(x)
    over = [dims] if isinstance(dims, int) else dims
    places = walk.reading.places(x) if isinstance(x, fx.Node) else []
    if not places or walk.reading.carries(node):
        walk.unscaled(node, x)
        state = State(0, "const" if not places else "free")
        return (state, state) if op_name(node) == "var_mean" else state
    alone = over is not None and len(over) == 1 and walk.reading.alone(x, places[0])
    if given != State(given.power, "mean") or not alone:
        raise PaddingRefused(f"{describe(node)} would see another variance")
    state = State(2 * given.power - 2, "const")
    return (state, State(given.power, "const")) if op_name(node) == "var_mean" else state
