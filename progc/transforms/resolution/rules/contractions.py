"""Operations that multiply and sum: with weights, which cannot follow the image, or two values with one another."""

from __future__ import annotations

from typing import Any

from torch import fx

from progc.lift.extents import Dim, old_size
from progc.transforms.resolution.values import Args, Value
from progc.transforms.resolution.walk import Walk, rule


@rule("linear")
def linear(walk: Walk, node: fx.Node, args: Args) -> Any:
    """The last dim is summed over."""
    value, weight = args["input"], args["weight"]
    walk.weighed(value.dims[-1])
    return [*value.dims[:-1], *weight.dims[:-1]]


@rule("layer_norm", "native_layer_norm", "rms_norm")
def layer_norm(walk: Walk, node: fx.Node, args: Args) -> Any:
    """Normalised dims have a gain per unit."""
    value = args.first()
    for dim in value.dims[len(value.dims) - len(args["normalized_shape"]) :]:
        walk.weighed(dim)
    return None


@rule("mm", "bmm", "matmul", "mv", "dot")
def matmul(walk: Walk, node: fx.Node, args: Args) -> Any:
    """Batch dims are shared, the inner dim is summed over."""
    a, b = list(args.tensors())[:2]
    inner = (a.dims[-1], b.dims[-2] if len(b.dims) > 1 else b.dims[-1])
    walk.meet(inner, (a, b), follow=False)
    left = a.dims[:-2] if len(a.dims) > 1 else ()
    right = b.dims[:-2] if len(b.dims) > 2 else ()
    outer = [*a.dims[-2:-1]] if len(a.dims) > 1 else []
    last = [b.dims[-1]] if len(b.dims) > 1 else []
    return [*shared(walk, left, right), *outer, *last]


@rule("addmm", "baddbmm")
def addmm(walk: Walk, node: fx.Node, args: Args) -> Any:
    """A product with something added."""
    a, b = list(args.tensors())[1:3]
    walk.meet((a.dims[-1], b.dims[-2]), (a, b), follow=False)
    return [*a.dims[:-1], b.dims[-1]]


def shared(walk: Walk, left: tuple[Dim, ...], right: tuple[Dim, ...]) -> list[Dim]:
    """Batch dims of a product, aligned from the right."""
    rank = max(len(left), len(right))
    out: list[Dim] = []
    for place in range(-rank, 0):
        own = [dims[place] for dims in (left, right) if len(dims) >= -place]
        wide = [dim for dim in own if old_size(dim) != 1]
        out.append(walk.meet(wide, follow=False) if wide else own[0])
    return out


@rule("scaled_dot_product_attention")
def attention(walk: Walk, node: fx.Node, args: Args) -> Any:
    """Queries by keys; what is added to the scores is shared with both."""
    query, key, value = args["query"], args["key"], args["value"]
    walk.meet((key.dims[-2], value.dims[-2]), follow=False)
    mask: Value | None = args.get("attn_mask")
    if mask is not None:
        scores = [*query.dims[:-1], key.dims[-2]]
        dims: list[Dim] = []
        for place in range(-len(mask.dims), 0):
            own = mask.dims[place]
            dims.append(own if old_size(own) == 1 else walk.meet([scores[place], own], (None, mask)))
        raw = node.args[3] if len(node.args) > 3 else node.kwargs["attn_mask"]
        assert isinstance(raw, fx.Node)
        walk.take(raw, dims)
    return [*query.dims[:-1], value.dims[-1]]


@rule("einsum")
def einsum(walk: Walk, node: fx.Node, args: Args) -> Any:
    """Equal letters are one dim."""
    equation = str(args["equation"]).replace(" ", "")
    values = list(args.tensors())
    if "..." in equation or "->" not in equation:
        return None
    inputs, out = equation.split("->")
    found: dict[str, list[Dim]] = {}
    for letters, value in zip(inputs.split(","), values, strict=True):
        for letter, dim in zip(letters, value.dims, strict=True):
            found.setdefault(letter, []).append(dim)
    dims = {}
    for letter, own in found.items():
        wide = [dim for dim in own if old_size(dim) != 1]
        dims[letter] = walk.meet(wide, follow=letter in out) if wide else own[0]
    for operand, letters in zip(walk.node.all_input_nodes, inputs.split(","), strict=False):
        if len(walk.node.all_input_nodes) == len(values):
            walk.take(operand, [dims[letter] for letter in letters])
    return [dims[letter] for letter in out]
