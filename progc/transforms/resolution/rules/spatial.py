"""Rules of operations over the image dims and of products.

Image dims: strides that divide, patches extracted and put back, given output sizes. Products multiply and sum: with
weights, which cannot follow the image, or two values with one another.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from progc.lift.extents import Dim, Leaf, cuts_of, fixed, grows, new_size, old_size, sized
from progc.transforms.resolution.choices import scaled_shift
from progc.transforms.resolution.values import Indivisible, SizeClash, SizedArgs, SizedValue
from progc.transforms.resolution.walk import Walk, rule


@rule("conv1d", "conv2d", "conv3d", "convolution")
def convolution(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """Patches that do not overlap must cover the image, if they did before."""
    value, weight = args["input"], args["weight"]
    rank = len(weight.dims) - 2
    walk.weighed(value.dims[-rank - 1])
    stride, padding = args["stride"], args["padding"]
    if args.get("transposed") or isinstance(padding, str):
        return None
    for place in range(-rank, 0):
        step, pad = (item[place] if len(item) == rank else item[0] for item in (stride, padding))
        dim, kernel = value.dims[place], old_size(weight.dims[place])
        if grows(dim) and step == kernel > 1 and not pad and old_size(dim) % step == 0 and new_size(dim) % step:
            raise Indivisible(f"{new_size(dim)} positions are not a multiple of the patch size {step}")
    return None


@rule("roll")
def roll(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """A roll over windows that scale goes as far into them as before. A roll before the cut is handled at the cut."""
    value = args.first()
    for place, dim in enumerate(args["dims"]):
        part = value.dims[dim][-1:] if len(value.dims[dim]) > 1 else ()
        if part and isinstance(part[0], Leaf) and part[0].old != part[0].new:
            shift = args["shifts"][place]
            walk.edit((*args.paths["shifts"], place), shift, scaled_shift(shift, part[0].old, part[0].new))
    return value.dims


@rule("im2col")
def im2col(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """Patches become one dim: rows of patches, then columns."""
    value, kernel = args.first(), args["kernel_size"]
    channels = value.dims[-3]
    area = 1
    for size in kernel:
        area *= size
    counts: Dim = ()
    for place in range(2):
        own = value.dims[place - 2]
        old, new = (_blocks(size, args, place) for size in (old_size(own), new_size(own)))
        counts += sized(old, new, cuts_of([own]))
    return [*value.dims[:-3], channels + fixed(area), counts]


def _blocks(size: int, args: SizedArgs, place: int) -> int:
    kernel, dilation, padding, stride = (args[name][place] for name in ("kernel_size", "dilation", "padding", "stride"))
    return int((size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)


@rule("col2im")
def col2im(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """Patches put back; the output size is a literal."""
    value: SizedValue = args.first()
    given, counts = args["output_size"], value.dims[-1]
    outs: list[Dim] = []
    blocks = [_blocks(size, args, place) for place, size in enumerate(given)]
    if len(counts) == 2 and [part.old for part in counts] == blocks:
        for place, part in enumerate(counts):
            stride = args["stride"][place]
            left = given[place] - stride * part.old  # what borders and rounding add or remove
            known = walk.literal(place, given[place])
            new = new_size(known) if grows(known) else stride * part.new + left
            outs.append(sized(given[place], new, part.cuts if hasattr(part, "cuts") else frozenset()))
    elif grows(counts):
        raise SizeClash("rows and columns of patches cannot be distinguished", cuts_of([counts]), walk.where())
    else:
        outs = [fixed(size) for size in given]
    for place, dim in enumerate(outs):
        walk.edit((*args.paths["output_size"], place), given[place], new_size(dim))
    return [*value.dims[:-2], fixed(node.meta["tensor"].shape[-3]), *outs]


@rule("upsample_nearest2d", "upsample_nearest1d", "upsample_nearest3d", "_upsample_nearest_exact2d",
      "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
      "upsample_linear1d", "upsample_trilinear3d")  # fmt: skip
def upsample(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """A given output size follows the value that it is made from, or the value that it meets."""
    value, given = args.first(), args.get("output_size")
    if given is None:
        return None
    rank = len(given)
    dims: list[Dim] = []
    for place, size in enumerate(given):
        own = value.dims[place - rank]
        known = walk.literal(place, size)
        if grows(own) and not grows(known):
            if new_size(own) * size % old_size(own):
                raise Indivisible(f"{old_size(own)} positions become {size}, and {new_size(own)} cannot in proportion")
            known = sized(size, new_size(own) * size // old_size(own), cuts_of([own]))
        dims.append(known)
        walk.edit((*args.paths["output_size"], place), size, new_size(known))
    for name in ("scales_h", "scales_w", "scales"):
        if args.get(name) is not None and any(map(grows, dims)):
            return None  # both a size and a factor: the operation takes the size
    return [*value.dims[:-rank], *dims]


@rule("linear")
def linear(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """The last dim is summed over."""
    value, weight = args["input"], args["weight"]
    walk.weighed(value.dims[-1])
    return [*value.dims[:-1], *weight.dims[:-1]]


@rule("layer_norm", "native_layer_norm", "rms_norm")
def layer_norm(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """Normalised dims have a gain per unit."""
    value = args.first()
    for dim in value.dims[len(value.dims) - len(args["normalized_shape"]) :]:
        walk.weighed(dim)
    return None


@rule("mm", "bmm", "matmul", "mv", "dot")
def matmul(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
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
def addmm(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
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
def attention(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
    """Queries by keys; what is added to the scores is shared with both."""
    query, key, value = args["query"], args["key"], args["value"]
    walk.meet((key.dims[-2], value.dims[-2]), follow=False)
    mask: SizedValue | None = args.get("attn_mask")
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
def einsum(walk: Walk, node: fx.Node, args: SizedArgs) -> Any:
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
