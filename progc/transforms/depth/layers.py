"""Turns layers into the identity, so that a block without a skip path passes its entry on (Net2Net, Chen et al. 2015).

A linear or convolutional layer whose weight is a unit matrix (at the center of the kernel) copies its input. Where it
reads a concatenation, the unit matrix is in the columns of the part that is passed on, and all other columns are zero.
BatchNorm with mean 0 and `gain * gain = variance + eps` copies its input in eval mode; in train mode it normalises by
batch statistics. Operations between such layers must not change the value either; an idempotent activation does not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx

from progc.analysis.demand.contractions import contraction
from progc.errors import NotLosslessError
from progc.ir.operations import CONCATENATIONS, argument, describe, op_name, shape_of
from progc.ir.program import MODES, Mode, Program
from progc.lift.entry import Eye, TensorLift

ROUNDING = 1e-11
"""Largest relative error of a BatchNorm's neutral gain; far below what the float64 check tolerates."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer on a path, with the value that it passes on.

    Attributes:
        offset: first channel of `source` in the layer's input.
        whole: whether the layer reads only `source`.
    """

    node: fx.Node
    source: fx.Node
    offset: int = 0
    whole: bool = True


def layers_at(node: fx.Node) -> Iterator[Layer]:
    """The ways in which the operation can be a layer that passes one of its inputs on."""
    name = op_name(node)
    if name == "batch_norm":
        yield Layer(node, node.args[0])  # type: ignore[arg-type]
        return
    if name not in ("linear", "conv1d", "conv2d", "conv3d", "convolution", "matmul", "mm", "addmm"):
        return
    value = _input(node)
    if value is None or not isinstance(value.meta.get("tensor"), type(node.meta.get("tensor"))):
        return
    for source, offset in _parts(value, _channels(node, value)):
        yield Layer(node, source, offset, source is value)


def _input(node: fx.Node) -> fx.Node | None:
    """What the layer reads, if its weight is a parameter."""
    found = contraction(node)
    if found is None or len(found.operands) != 2 or found.operands[0].node.op != "get_attr":
        return None
    value = found.operands[1].node
    return value if value.op != "get_attr" else None


def _channels(node: fx.Node, value: fx.Node) -> int:
    """The dim of the layer's input that it contracts."""
    rank = len(shape_of(value))
    return rank - len(shape_of(argument(node, "weight"))) + 1 if "conv" in op_name(node) else rank - 1


def _parts(value: fx.Node, dim: int) -> Iterator[tuple[fx.Node, int]]:
    """The value, and the parts that it concatenates along `dim`, with the position where each begins."""
    yield value, 0
    if op_name(value) not in CONCATENATIONS:
        return
    along = argument(value, "dim", 0)
    parts = value.args[0]
    if not isinstance(along, int) or along % len(shape_of(value)) != dim or not isinstance(parts, (list, tuple)):
        return
    begin = 0
    for part in parts:
        if isinstance(part, fx.Node):
            for source, offset in _parts(part, dim):
                yield source, begin + offset
            begin += shape_of(part)[dim]


def _taps(layer: Layer, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Position in the kernel, and where the output's window begins in an input of these spatial sizes.

    Padding before the layer may have made the input larger than the output; then every position is tried.
    """
    node, kernel = layer.node, shape_of(argument(layer.node, "weight"))[2:]
    if not kernel:
        return (), ()
    stride, dilation = (_each(argument(node, name), len(kernel)) for name in ("stride", "dilation"))
    if set(stride) != {1} or argument(node, "transposed", False):
        raise NotLosslessError(f"{describe(node)} changes the resolution")
    padding = argument(node, "padding")
    if padding == "same":
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
    padding = _each(0 if padding == "valid" else padding, len(kernel))
    out = shape_of(node)[-len(kernel) :]
    taps, begins = [], []
    for k, d, p, size, wanted in zip(kernel, dilation, padding, sizes, out, strict=True):
        middle = (size - wanted) // 2
        tap, rest = divmod(p + middle, d)
        if rest or not 0 <= tap < k or not 0 <= middle or middle + wanted > size:
            raise NotLosslessError(f"the kernel of {describe(node)} has no center")
        taps.append(tap)
        begins.append(middle)
    return tuple(taps), tuple(begins)


def _each(value: Any, count: int) -> list[int]:
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    return items * count if len(items) == 1 else items


def _eye(layer: Layer) -> Eye:
    """The layer's weight as a unit matrix."""
    node, weight = layer.node, contraction(layer.node)
    assert weight is not None
    (own, value), out = weight.operands, weight.out
    depthwise = "conv" in op_name(node) and argument(node, "groups", 1) > 1
    inner = [i for i, label in enumerate(own.labels) if label in value.labels and label not in out]
    outer = [i for i, label in enumerate(own.labels) if label in out]
    if depthwise:
        outer, inner = [0], [1]
    if len(inner) != 1 or len(outer) != 1:
        raise NotLosslessError(f"the weight of {describe(node)} is not a matrix")
    rows, columns = outer[0], inner[0]
    sizes = shape_of(own.node)
    channels = shape_of(layer.source)[_channels(node, layer.source)]
    if sizes[rows] != channels:
        raise NotLosslessError(f"{describe(node)} turns {channels} channels into {sizes[rows]}")
    if depthwise and not layer.whole:
        raise NotLosslessError(f"{describe(node)} has groups, so it cannot pass on a part of its input")
    spatial = shape_of(layer.source)[-(len(sizes) - 2) :] if len(sizes) > 2 else ()
    return Eye(rows, columns, layer.offset, _taps(layer, spatial)[0])


def passed_on(layer: Layer, ticket: torch.Tensor) -> torch.Tensor:
    """Returns the value that a layer set to the identity passes on.

    Raises:
        NotLosslessError: the layer cannot be the identity.
    """
    if op_name(layer.node) == "batch_norm":
        return ticket
    _eye(layer)
    begins = _taps(layer, tuple(ticket.shape[2:]) if "conv" in op_name(layer.node) else ())[1]
    for dim, begin in enumerate(begins, ticket.dim() - len(begins)):
        ticket = ticket.narrow(dim, begin, shape_of(layer.node)[dim])
    return ticket


def identity_layers(
    program: Program, layers: Mapping[Mode, tuple[Layer, ...]], lifts: Mapping[str, TensorLift]
) -> dict[str, TensorLift]:
    """Returns the lifts that make the layers of a path identities.

    Args:
        program: the grown program.
        layers: per mode, the layers on the path, in order.
        lifts: by canonical name after growth.

    Raises:
        NotLosslessError: a parameter that is shared, computed or does not belong to the block.
    """
    changed: dict[str, TensorLift] = {}
    pairs = list(zip(*(layers[mode] for mode in MODES), strict=True))
    for pair in pairs:
        made = [_identity(program, layer, mode) for mode, layer in zip(MODES, pair, strict=True)]
        if made[0] != made[1]:
            raise NotLosslessError(f"the train graph and the eval graph differ at {describe(pair[-1].node)}")
        for name, value in made[-1].items():
            if name not in lifts or not lifts[name].fresh:
                raise NotLosslessError(f"{name}, which would have to be the identity, is not the block's own")
            if name in changed or any(
                sum(len(node.users) for node in program.graphs[mode].nodes if node.target == name) > 1 for mode in MODES
            ):
                raise NotLosslessError(f"{name} is used more than once, so it cannot be the identity")
            changed[name] = dataclasses.replace(
                lifts[name], scales=(), **({"eye": value} if isinstance(value, Eye) else {"fill": value})
            )
    return changed


def _identity(program: Program, layer: Layer, mode: Mode) -> dict[str, Eye | float]:
    """Tensor name to the value that it needs."""
    node = layer.node
    if op_name(node) != "batch_norm":
        made: dict[str, Eye | float] = {_tensor(node, "weight"): _eye(layer)}
        if isinstance(argument(node, "bias"), fx.Node):
            made[_tensor(node, "bias")] = 0.0
        return made
    if not isinstance(argument(node, "running_var"), fx.Node) or (mode == "eval" and argument(node, "training")):
        raise NotLosslessError(f"{describe(node)} normalises by batch statistics in eval mode too")
    mean, variance = _tensor(node, "running_mean"), _tensor(node, "running_var")
    gain = _tensor(node, "weight") if isinstance(argument(node, "weight"), fx.Node) else None
    of_gain = program.tensors[gain].dtype if gain is not None else None
    var, weight = neutral(float(argument(node, "eps")), program.tensors[variance].dtype, of_gain, describe(node))
    made = {mean: 0.0, variance: var}
    if gain is not None:
        made[gain] = weight
    if isinstance(argument(node, "bias"), fx.Node):
        made[_tensor(node, "bias")] = 0.0
    return made


def neutral(eps: float, dtype: torch.dtype, of_gain: torch.dtype | None, what: str) -> tuple[float, float]:
    """Returns a variance and a gain with `gain = sqrt(variance + eps)` near 1, both representable in their dtypes.

    In general the root is not representable. The function tries several gains and takes one whose square minus eps is.

    Raises:
        NotLosslessError: no pair is close enough (16-bit parameters), or the norm has no gain.
    """
    steps = torch.arange(1 << 16, dtype=torch.float64) if of_gain is not None else torch.zeros(1, dtype=torch.float64)
    gains = 1 + steps * (torch.finfo(of_gain).eps if of_gain is not None else 1.0)
    gains = gains[gains <= math.sqrt(2)]
    variances = (gains * gains - eps).to(dtype).double()
    errors = ((variances + eps).sqrt() / gains - 1).abs()
    best = int(errors.argmin())
    if float(errors[best]) > ROUNDING or float(variances[best]) <= 0:
        raise NotLosslessError(f"the dtype of {what} cannot represent the gain that undoes its eps of {eps:g}")
    return float(variances[best]), float(gains[best])


def _tensor(node: fx.Node, name: str) -> str:
    found = argument(node, name)
    if not isinstance(found, fx.Node) or found.op != "get_attr":
        raise NotLosslessError(f"{describe(node)} has a {name} that is computed")
    return str(found.target)
