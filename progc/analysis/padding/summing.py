"""Transfer functions of operations that are linear in each operand: products, convolutions, attention, look-ups."""

from __future__ import annotations

from torch import fx

from progc.analysis.demand.contractions import Contraction, Operand, contraction
from progc.analysis.padding.proof import Forward, transfer
from progc.analysis.padding.reading import Reading
from progc.analysis.padding.states import ALIKE, PaddingRefused, State, joined, multiplied
from progc.ir.operations import SPATIAL, argument, describe


def along(reading: Reading, operand: Operand) -> list[tuple[int, str]]:
    """Dims of an operand along which the axis runs, with their labels."""
    return [(place, operand.labels[place]) for place in reading.places(operand.node)]


def grouped(node: fx.Node) -> bool:
    """True for a convolution whose groups are neither one nor one per channel: labels do not tell them apart."""
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
def through_contraction(walk: Forward, node: fx.Node) -> State:
    """A sum of products: over the axis, along it, or beside it."""
    found = contraction(node)
    if found is None or (grouped(node) and any(walk.reading.carries(n) for n in node.all_input_nodes)):
        raise PaddingRefused(f"{describe(node)} has no rule for it")
    for fixed in found.fixed:
        walk.unscaled(node, fixed)
    summed: list[tuple[fx.Node, int]] = []
    kept: list[tuple[fx.Node, int | None]] = []
    for operand in found.operands:
        places = along(walk.reading, operand)
        mixed = [(place, label) for place, label in places if label not in found.out]
        held = [(place, label) for place, label in places if label in found.out]
        if len(held) > 1 or len(mixed) > 1 or (held and mixed and not walk.reading.is_tensor(operand.node)):
            raise PaddingRefused(f"{describe(node)} meets the axis twice")
        summed += [(operand.node, place) for place, _ in mixed]
        if held or not mixed:
            kept.append((operand.node, held[0][0] if held else None))
    total = _summed(walk, node, summed)
    for item, place in kept:
        total = multiplied(total, walk.state(item, place) if place is not None else _beside(walk, item))
    return _with_bias(walk, node, found, total)


def _beside(walk: Forward, item: fx.Node) -> State:
    return ALIKE if walk.reading.carries(item) else walk.state(item)


def _summed(walk: Forward, node: fx.Node, operands: list[tuple[fx.Node, int]]) -> State:
    """The sum over the axis, as a factor for everything else. New units must not contribute."""
    if not operands:
        return ALIKE
    if len(operands) != 2:
        raise PaddingRefused(f"{describe(node)} sums over it without a weight")
    for (weight, at), (value, there) in (operands, operands[::-1]):
        key = walk.open_key(weight, at)
        if key is not None and walk.open_key(value, there) is None:
            given = walk.state(value, there)
            walk.tensors.give(key, State(-given.power, "free" if given.new == "zero" else "zero"))
            break
    a, b = (walk.state(item, place) for item, place in operands)
    if a.new == b.new == "zero" and not any(walk.reading.is_tensor(item) for item, _ in operands):
        raise PaddingRefused(f"{describe(node)} would have new units that are zero on both sides, which never train")
    if "zero" not in (a.new, b.new):
        raise PaddingRefused(f"{describe(node)} sums over new units that are not zero")
    if a.power + b.power and not all(walk.reading.product(item, place) for item, place in operands):
        raise PaddingRefused(f"{describe(node)} sums over more than the axis, and only that has the factor")
    return State(a.power + b.power, "const")


def _with_bias(walk: Forward, node: fx.Node, found: Contraction, total: State) -> State:
    if found.bias is None:
        return total
    key = walk.open_key(found.bias.node) if walk.reading.carries(found.bias.node) else None
    if key is not None:
        walk.tensors.give(key, State(total.power, "free"))
    both = joined(total, walk.state(found.bias.node))
    if both is None:
        raise PaddingRefused(f"{describe(node)} adds a bias without the factor of what it is added to")
    return both


@transfer("outer", "ger")
def outer(walk: Forward, node: fx.Node) -> State:
    """Every unit of one vector times every unit of the other."""
    a, b = node.args[:2]
    if walk.reading.carries(a) and walk.reading.carries(b):
        raise PaddingRefused(f"{describe(node)} meets the axis twice")
    return multiplied(walk.state(a), walk.state(b))


@transfer("scaled_dot_product_attention")
def attention(walk: Forward, node: fx.Node) -> State:
    """Scores sum over the head dim of q and k; the op divides them by its root unless told otherwise."""
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
            raise PaddingRefused(f"{describe(node)} divides by the root of more than the axis")
    heads = any(place != last for item in (query, key, value) for place in walk.reading.places(item))
    if power:
        raise PaddingRefused(f"{describe(node)} would see scores with a factor")
    given = walk.state(value)
    if heads and given.new != "zero":
        return State(given.power, "free")
    return given


@transfer("lstm", "gru", "rnn_tanh", "rnn_relu")
def through_recurrent(walk: Forward, node: fx.Node) -> tuple[State, ...]:
    """A recurrent layer sums over its input; its own units are another axis."""
    x, others = node.args[0], [n for n in node.all_input_nodes if n is not node.args[0]]
    places = walk.reading.places(x) if isinstance(x, fx.Node) else []
    carrying = [weight for weight in others if walk.reading.carries(weight)]
    if not isinstance(x, fx.Node) or len(places) != 1 or any(walk.reading.places(w) != [1] for w in carrying):
        raise PaddingRefused(f"{describe(node)} has no rule for it")
    given = walk.state(x, places[0])
    for weight in carrying:
        key = walk.key(weight, 1) if walk.reading.is_tensor(weight) else None
        if key is None:
            raise PaddingRefused(f"{describe(node)} sums over it with a weight that is computed")
        walk.tensors.give(key, State(-given.power, "free" if given.new == "zero" else "zero"))
    return tuple(ALIKE for _ in node.meta["tensor"])
