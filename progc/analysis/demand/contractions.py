"""Contractions: operations that are linear in each operand, described by one label per dim as in an einsum.

`linear` is `d0 o = (o i) (d0 i) + (o)`. A label that an operand shares with the output is a kept dim, along which a
factor may vary. Along all other dims a factor must be constant, because the operation sums or mixes there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from progc.ir.operations import NORMS, SPATIAL, DemandRefused, argument, describe, op_name, shape_of

Label = str


@dataclasses.dataclass(frozen=True)
class Operand:
    """One operand of a contraction: its node, and one label per dim."""

    node: fx.Node
    labels: tuple[Label, ...]


@dataclasses.dataclass(frozen=True)
class Contraction:
    """An operation that is linear in each of its operands.

    Attributes:
        out: labels of the output.
        operands: the operands, with the best place for a factor first.
        bias: the operand that is added, if any.
        fixed: operands that must not change.
    """

    out: tuple[Label, ...]
    operands: tuple[Operand, ...]
    bias: Operand | None = None
    fixed: tuple[fx.Node, ...] = ()


def contraction(node: fx.Node) -> Contraction | None:
    """Returns the node as a contraction; None if it is not one."""
    build = _BUILDERS.get(op_name(node))
    return build(node) if build is not None else None


def _made(
    out: Sequence[Label],
    operands: Sequence[tuple[Any, Sequence[Label]]],
    bias: tuple[Any, Sequence[Label]] = (None, ()),
    fixed: Sequence[Any] = (),
) -> Contraction:
    return Contraction(
        tuple(out),
        tuple(Operand(node, tuple(labels)) for node, labels in operands if isinstance(node, fx.Node)),
        Operand(bias[0], tuple(bias[1])) if isinstance(bias[0], fx.Node) else None,
        tuple(node for node in fixed if isinstance(node, fx.Node)),
    )


def _linear(node: fx.Node) -> Contraction:
    x = argument(node, "input")
    lead = _names("d", len(shape_of(x)) - 1)
    operands = [(argument(node, "weight"), ["o", "i"]), (x, [*lead, "i"])]
    return _made([*lead, "o"], operands, (argument(node, "bias"), ["o"]))


def _matmul(node: fx.Node) -> Contraction:
    return _product(node, node.args[0], node.args[1], None)


def _addmm(node: fx.Node) -> Contraction:
    return _product(node, node.args[1], node.args[2], node.args[0])


def _product(node: fx.Node, a: Any, b: Any, bias: Any) -> Contraction:
    sizes_a, sizes_b, sizes = shape_of(a), shape_of(b), shape_of(node)
    batch = _names("d", max(len(sizes_a), len(sizes_b), 2) - 2)
    rows, columns = ["m"] if len(sizes_a) > 1 else [], ["n"] if len(sizes_b) > 1 else []
    out = [*batch, *rows, *columns]
    labels_a = [*batch[len(batch) - max(len(sizes_a) - 2, 0) :], *rows, "k"]
    labels_b = [*batch[len(batch) - max(len(sizes_b) - 2, 0) :], "k", *columns]
    known = dict(zip(out, sizes, strict=True))
    operands = [(b, _own(labels_b, sizes_b, known)), (a, _own(labels_a, sizes_a, known))]
    if not isinstance(bias, fx.Node):
        return _made(out, operands)
    sizes_bias = shape_of(bias)
    return _made(out, operands, (bias, _own(out[len(out) - len(sizes_bias) :], sizes_bias, known)))


def _own(labels: Sequence[Label], sizes: Sequence[int], known: dict[Label, int]) -> list[Label]:
    """Returns the labels of an operand; a broadcast dim (size 1 where the output is larger) gets its own label."""
    return [
        f"one {label}" if size == 1 and known.get(label, 1) != 1 else label
        for label, size in zip(labels, sizes, strict=True)
    ]


def _einsum(node: fx.Node) -> Contraction:
    equation, tensors = node.args[0], node.args[1]
    assert isinstance(equation, str) and isinstance(tensors, (list, tuple))
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = sorted(set(left) - set(",."))
        right = ("..." if "..." in left else "") + "".join(letter for letter in letters if left.count(letter) == 1)
    extra = [
        len(shape_of(tensor)) - len(term) + 3 if "..." in term else 0
        for tensor, term in zip(tensors, terms, strict=True)
    ]
    dots = _names(".", max(extra))
    out = _spelled(right, dots)
    known = dict(zip(out, shape_of(node), strict=True))
    operands = []
    for tensor, term, rank in zip(tensors, terms, extra, strict=True):
        labels = _spelled(term, dots[len(dots) - rank :])
        if len(set(labels)) != len(labels):
            raise DemandRefused(f"{describe(node)} takes a diagonal")
        operands.append((tensor, _own(labels, shape_of(tensor), known)))
    return _made(out, operands)


def _spelled(term: str, dots: Sequence[Label]) -> list[Label]:
    head, found, tail = term.partition("...")
    return [*head, *(dots if found else ()), *tail]


def _conv(node: fx.Node) -> Contraction:
    x, weight, groups = argument(node, "input"), argument(node, "weight"), argument(node, "groups", 1)
    transposed = "transpose" in op_name(node) or bool(argument(node, "transposed", False))
    sizes, sizes_x, space = shape_of(node), shape_of(x), len(shape_of(weight)) - 2
    lead = ["n"] if len(sizes_x) == space + 2 else []
    depthwise = groups == sizes[len(lead)] == sizes_x[len(lead)]
    channels = ["o", "i"]
    if transposed and not depthwise:
        channels = ["i", "o"] if groups == 1 else ["i", "o in group"]
    operands = [
        (weight, [*channels, *_names("k", space)]),
        (x, [*lead, "o" if depthwise else "i", *_names("s", space)]),
    ]
    return _made([*lead, "o", *_names("t", space)], operands, (argument(node, "bias"), ["o"]))


def _attention(node: fx.Node) -> Contraction:
    query, key, value = node.args[:3]
    sizes, batch = shape_of(value), _names("d", len(shape_of(value)) - 2)
    # A value head that several query heads share does not correspond to one head of the output.
    own = [label if sizes[i] == shape_of(node)[i] else f"shared {label}" for i, label in enumerate(batch)]
    fixed = (query, key, argument(node, "attn_mask"))
    return _made([*batch, "q", "d"], [(value, [*own, "k", "d"])], fixed=fixed)


def _embedding(node: fx.Node) -> Contraction:
    return _made([*_names("d", len(shape_of(node.args[1]))), "o"], [(node.args[0], ["v", "o"])], fixed=[node.args[1]])


def _norm(node: fx.Node) -> Contraction:
    x, shape = node.args[0], argument(node, "normalized_shape")
    out = _names("d", len(shape_of(x)))
    kept = out[len(out) - len(shape) :] if shape is not None else [out[1]]
    fixed = (x, argument(node, "running_mean"), argument(node, "running_var"))
    return _made(out, [(argument(node, "weight"), kept)], (argument(node, "bias"), kept), fixed)


def _weight_norm(node: fx.Node) -> Contraction:
    out, kept = _names("d", len(shape_of(node))), argument(node, "dim", 0)
    gain = [label if i == kept else f"one {label}" for i, label in enumerate(out)]
    return _made(out, [(argument(node, "g"), gain)], fixed=(argument(node, "v"),))


def _reduction(node: fx.Node) -> Contraction:
    rank, dims = len(shape_of(node.args[0])), argument(node, "dim")
    gone = {dim % rank for dim in ([dims] if isinstance(dims, int) else dims or range(rank))}
    labels, keep = _names("d", rank), bool(argument(node, "keepdim", False))
    out = [f"one {label}" if i in gone else label for i, label in enumerate(labels) if keep or i not in gone]
    return _made(out, [(node.args[0], labels)])


def _spatial(node: fx.Node) -> Contraction:
    x, space = node.args[0], int(next(letter for letter in op_name(node) if letter.isdigit()))
    lead = _names("d", len(shape_of(x)) - space)
    return _made([*lead, *_names("t", space)], [(x, [*lead, *_names("s", space)])])


def _grouped(node: fx.Node) -> Contraction:
    x, weight, *rest = node.all_input_nodes
    return _made(["s", "o"], [(weight, ["e", "i", "o"]), (x, ["s", "i"])], fixed=rest)


def _names(prefix: str, count: int) -> list[Label]:
    return [f"{prefix}{i}" for i in range(count)]


_BUILDERS: dict[str, Callable[[fx.Node], Contraction]] = {
    "linear": _linear, "matmul": _matmul, "mm": _matmul, "bmm": _matmul, "mv": _matmul, "dot": _matmul,
    "addmm": _addmm, "baddbmm": _addmm, "einsum": _einsum,
    "conv1d": _conv, "conv2d": _conv, "conv3d": _conv, "convolution": _conv, "_convolution": _conv,
    "conv_transpose1d": _conv, "conv_transpose2d": _conv, "conv_transpose3d": _conv,
    "_grouped_mm": _grouped, "transformers.grouped_mm_fallback": _grouped,
    "scaled_dot_product_attention": _attention, "embedding": _embedding,
    "_weight_norm": _weight_norm,
    "sum": _reduction, "mean": _reduction,
    **dict.fromkeys(NORMS, _norm), **dict.fromkeys(SPATIAL, _spatial),
}  # fmt: skip
