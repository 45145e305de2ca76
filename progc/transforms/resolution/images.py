"""Finds the inputs that are images, and makes them at another size."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from progc.errors import PassOptionError, TargetError, did_you_mean
from progc.ir.layouts import Layout
from progc.ir.operations import NORMS
from progc.ir.program import Program, TensorMeta
from progc.lift.extents import Dim, fixed, new_size, sized
from progc.transforms.resolution.values import SizedValue, SizeFacts

_SAME = NORMS | set(
    "to _to_copy contiguous clone pad constant_pad_nd reflection_pad2d native_batch_norm dropout detach alias".split()
)


@dataclasses.dataclass(frozen=True)
class Image:
    """An input that is an image.

    Attributes:
        index: its position among the flat inputs.
        name: name of its placeholder.
        dims: its height dim and width dim.
        size: its height and width, in pixels.
    """

    index: int
    name: str
    dims: tuple[int, int]
    size: tuple[int, int]


def find_images(program: Program, name: str | None = None) -> list[Image]:
    """Returns the inputs whose size changes: those with two dims that reach a convolution or a cut into patches.

    Args:
        name: name of the input to use, if there are several.

    Raises:
        TargetError: no input is an image, or several images have different sizes.
        PassOptionError: no input has that name.
    """
    nodes = [node for node in program.graphs["eval"].nodes if node.op == "placeholder"]
    if name is not None and name not in [node.name for node in nodes]:
        names = [node.name for node in nodes]
        raise PassOptionError(
            f"grow-resolution: input={name}: the network has no such input{did_you_mean(name, names)}; "
            f"inputs are {', '.join(names)}"
        )
    found = []
    for index, node in enumerate(nodes):
        meta = node.meta["tensor"]
        if not isinstance(meta, TensorMeta) or not meta.dtype.is_floating_point or len(meta.shape) not in (4, 5):
            continue
        dims = _spatial(node, len(meta.shape))
        if dims is not None and name in (None, node.name):
            found.append(Image(index, node.name, dims, (meta.shape[dims[0]], meta.shape[dims[1]])))
    if not found:
        what = f"input `{name}` is" if name else "no input is"
        raise TargetError(f"{what} an image: a floating tensor [batch, channels, height, width] that a convolution "
                          "reads, or that is cut into patches")  # fmt: skip
    if len({image.size for image in found}) > 1:
        sizes = ", ".join(f"{image.name} {image.size[0]}x{image.size[1]}" for image in found)
        raise TargetError(f"inputs {sizes} are images of different sizes; name the one to resize with input=NAME")
    return found


def _spatial(start: fx.Node, rank: int) -> tuple[int, int] | None:
    """Height and width among the dims of an input, followed to the first operation that works on positions."""
    queue: list[tuple[fx.Node, tuple[int, ...]]] = [(start, tuple(range(rank)))]
    seen: set[fx.Node] = set()
    while queue:
        node, places = queue.pop(0)
        for user in node.users:
            if user in seen or not isinstance(user.target, torch._ops.OpOverload):
                continue
            seen.add(user)
            name = user.target._schema.name.removeprefix("aten::").removesuffix("_")
            if name in ("conv2d", "conv3d", "convolution", "im2col", "avg_pool2d", "max_pool2d", "conv_transpose2d"):
                return places[-2], places[-1]
            if name in ("view", "reshape", "unfold", "pixel_unshuffle"):
                last = places[-1] if rank == 5 or name == "pixel_unshuffle" else None
                meta = start.meta["tensor"]
                behind = last is None and meta.shape[places[1]] > meta.shape[places[-1]] <= 4
                return (places[-3], places[-2]) if behind else (places[-2], places[-1])
            meta = user.meta.get("tensor")
            if name == "permute":
                queue.append((user, tuple(places[index] for index in user.args[1])))  # type: ignore[union-attr,index]
            elif name == "transpose":
                swapped = list(places)
                a, b = int(user.args[1]), int(user.args[2])  # type: ignore[arg-type]
                swapped[a], swapped[b] = swapped[b], swapped[a]
                queue.append((user, tuple(swapped)))
            elif isinstance(meta, TensorMeta) and len(meta.shape) == rank:
                pointwise = torch.Tag.pointwise in user.target.tags
                if pointwise or name in _SAME or name in ("cat", "slice"):
                    queue.append((user, places))
    return None


def parse_size(text: str | Sequence[str], old: tuple[int, int]) -> tuple[int, int]:
    """Reads `224`, `160x224`, `160,224` (height, width) or `*1.5` (of each side, rounded to whole pixels).

    Raises:
        PassOptionError: the text is not a size.
    """
    given = text if isinstance(text, str) else "x".join(text)
    given = given.strip()
    if re.fullmatch(r"\*(\d+(\.\d+)?|\.\d+)", given) and float(given[1:]) > 0:
        height, width = (round(size * float(given[1:])) for size in old)
        if min(height, width) > 0:
            return height, width
    if match := re.fullmatch(r"(\d+)(?:[x,](\d+))?", given):
        height, width = int(match[1]), int(match[2] or match[1])
        if min(height, width) > 0:
            return height, width
    raise PassOptionError(f"grow-resolution: to={given}: expected a size such as 224, 160x224 (height x width) or *1.5")


def walk_inputs(program: Program, images: Sequence[Image], size: tuple[int, int], facts: SizeFacts) -> list[Any]:
    """Returns the values of the inputs for a walk: images at their new size, other inputs free to follow."""
    found: list[Any] = []
    chosen = {image.index: image for image in images}
    for index, leaf in enumerate(program.flat_example()):
        if not isinstance(leaf, torch.Tensor):
            found.append(leaf)
            continue
        layout = Layout.of(leaf)
        image = chosen.get(index)
        dims: list[Dim] = []
        for dim, old in enumerate(leaf.shape):
            if image is not None and dim in image.dims:
                dims.append(sized(old, size[image.dims.index(dim)]))
            elif program.signature.batch_dims[index] and dim == 0:
                dims.append(fixed(old))
            else:
                dims.append(facts.dim(("input", str(index)), dim, old))
        shape = tuple(map(new_size, dims))
        strides = [1] * len(shape)
        for dim in range(len(shape) - 2, -1, -1):
            strides[dim] = strides[dim + 1] * max(shape[dim + 1], 1)
        found.append(SizedValue(tuple(dims), Layout(shape, tuple(strides), layout.dtype, layout.device)))
    return found


def resized(leaf: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Returns an example input at another size; floating inputs are interpolated over their last two changing dims."""
    moving = [dim for dim, size in enumerate(shape) if size != leaf.shape[dim]]
    value = leaf.detach()
    for dim in moving:
        places = torch.arange(shape[dim], dtype=torch.float64) + 0.5
        places = (places * leaf.shape[dim] / shape[dim]).floor().long().clamp(0, leaf.shape[dim] - 1)
        value = value.index_select(dim, places.to(value.device))
    if leaf.is_floating_point() and leaf.dim() == 4 and moving and moving == [2, 3][-len(moving) :]:
        wide = leaf.detach().double()
        value = nn.functional.interpolate(wide, size=list(shape[2:]), mode="bilinear", align_corners=False)
        value = value.to(leaf.dtype)
    return value.contiguous()
