"""Resamples tensors over positions for another input size: position tables, relative tables, index tables, masks.

How a tensor is resampled is data (`Resample`), part of its lift. Learned tables are linear maps of the old values, so
averaged copies and first moments are resampled by the same map.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from progc.lift.extents import Cat, Dim, Leaf, from_json, leaves, new_size, old_size, to_json

LINEAR = frozenset({"grid", "relative"})
"""Kinds that map old values linearly to new ones; the others recompute the values."""


@dataclasses.dataclass(frozen=True)
class Resample:
    """How a tensor over positions is resampled for another input size.

    Attributes:
        kind: `grid` (antialiased bicubic interpolation over the positions; other parts are kept), `relative` (a table
            over differences of positions, interpolated with geometric spacing, dense near 0), `waves` (a table of sines
            and cosines, recomputed), `count` (0, 1, 2, ...), `offsets` (indices into a relative table) or `shifted`
            (the attention mask of shifted windows).
        dims: the dims before and after.
        values: further parameters of the kind, by name.
    """

    kind: str
    dims: tuple[Dim, ...]
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.kind, self.dims, repr(self.values)))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape after resampling."""
        return tuple(map(new_size, self.dims))

    @property
    def linear(self) -> bool:
        """Whether new values are a linear map of the old ones."""
        return self.kind in LINEAR

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the resampled tensor, in the dtype of `tensor`; computed in float32, or float64 for float64.

        Args:
            tensor: in the old shape.
        """
        return self.mapped(tensor.detach())

    def mapped(self, tensor: torch.Tensor) -> torch.Tensor:
        """Does what `apply` does; where the map is linear, gradients flow back to `tensor`."""
        if not self.linear:
            made = _MAKERS[self.kind](self)
            return made.reshape(self.shape).to(tensor.device, tensor.dtype)
        wide = tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)
        return parted(wide, self.dims, _GRIDS[self.kind]).to(tensor.dtype)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is the inverse."""
        return {"kind": self.kind, "dims": [to_json(dim) for dim in self.dims], **dict(self.values)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Resample:
        """Reads what `to_json` wrote."""
        rest = {name: value for name, value in data.items() if name not in ("kind", "dims")}
        return Resample(data["kind"], tuple(from_json(dim) for dim in data["dims"]), rest)


Grid = Callable[[torch.Tensor, Sequence[tuple[int, int]]], torch.Tensor]
"""Maps `[n, 1, *old sizes]` to `[n, 1, *new sizes]`."""


def parted(value: torch.Tensor, dims: Sequence[Dim], grid: Grid) -> torch.Tensor:
    """Applies `grid` to every segment of the tensor whose positions change; other segments are kept."""
    for index, dim in enumerate(dims):
        if len(dim) == 1 and isinstance(dim[0], Cat):
            pieces = value.split([old_size(part) for part in dim[0].parts], index)
            return torch.cat(
                [
                    parted(piece, [*dims[:index], part, *dims[index + 1 :]], grid)
                    for piece, part in zip(pieces, dim[0].parts, strict=True)
                ],
                index,
            )
    parts = [part for dim in dims for part in dim]
    assert all(isinstance(part, Leaf) for part in parts)
    moving = [index for index, part in enumerate(parts) if part.old != part.new]
    if not moving:
        return value
    value = value.reshape([part.old for part in parts])
    front = [index for index in range(len(parts)) if index not in moving]
    order = front + moving
    value = value.permute(order)
    kept = value.shape[: len(front)]
    sizes = [(parts[index].old, parts[index].new) for index in moving]
    value = grid(value.reshape(-1, 1, *(old for old, _ in sizes)), sizes)
    value = value.reshape(*kept, *(new for _, new in sizes))
    back = [order.index(index) for index in range(len(parts))]
    return value.permute(back).reshape([new_size(dim) for dim in dims])


def _bicubic(value: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Bicubic interpolation with antialiasing over one or two dims, as image libraries resize."""
    # One dim as a row: torch.nn.functional.interpolate would take a column for an image with channels last.
    flat = (value if len(sizes) == 2 else value[:, :, None]).transpose(0, 1)
    size = [1] * (2 - len(sizes)) + [new for _, new in sizes]
    done = nn.functional.interpolate(flat, size=size, mode="bicubic", antialias=True).transpose(0, 1)
    return done if len(sizes) == 2 else done[:, :, 0]


def _geometric(value: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Linear interpolation between old differences at geometrically growing distances (BEiT at another image size)."""
    for place, (old, new) in enumerate(sizes):
        matrix = _spread(old, new).to(value.device, value.dtype)
        value = torch.tensordot(value, matrix, dims=([place + 2], [1])).movedim(-1, place + 2)
    return value


def _spread(old: int, new: int) -> torch.Tensor:
    """Weights of the linear interpolation between the old differences: float64 `[new, old]`."""
    half, ratio = old // 2, 1.5
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**half) / (1 - ratio) > new // 2:
            high = ratio
        else:
            low = ratio
    distance, reach = [], 1.0
    for index in range(half):
        distance.append(reach)
        reach += ratio ** (index + 1)
    places = torch.tensor([-item for item in reversed(distance)] + [0.0] + distance, dtype=torch.float64)
    wanted = torch.arange(new, dtype=torch.float64) - new // 2
    right = torch.searchsorted(places, wanted).clamp(1, old - 1)
    left = right - 1
    share = ((wanted - places[left]) / (places[right] - places[left])).clamp(0, 1)
    weights = torch.zeros(new, old, dtype=torch.float64)
    rows = torch.arange(new)
    weights[rows, left] += 1 - share
    weights[rows, right] += share
    return weights


def waves(
    sizes: Sequence[tuple[int, int]], width: int, values: Mapping[str, Any], *, before: bool = False
) -> torch.Tensor:
    """Returns sines and cosines of each position, one run of units per grid dim: float64 `[*positions, width]`.

    Args:
        sizes: positions before and after, per grid dim.
        width: number of units.
        values: `order` (grid dims in the order of their units), `cosine_first`, `interleaved`, `temperature`, `last`
            (1 if the lowest frequency is 1 / temperature itself), `step` (distance of two positions before), and
            `stretch` (whether new positions cover the range of the old ones).
        before: whether to return the table at the old positions.
    """
    order = values["order"]
    own = width // len(order)
    count = own // 2
    exponent = torch.arange(count, dtype=torch.float64) / max(count - values["last"], 1)
    omega = float(values["temperature"]) ** -exponent
    shape = [old if before else new for old, new in sizes]
    runs = []
    for place in order:
        old, new = sizes[place]
        step = values["step"] * (old / new if not before and values["stretch"] else 1.0)
        angle = torch.arange(shape[place], dtype=torch.float64)[:, None] * step * omega
        pair = [angle.cos(), angle.sin()] if values["cosine_first"] else [angle.sin(), angle.cos()]
        run = torch.stack(pair, -1).flatten(1) if values["interleaved"] else torch.cat(pair, 1)
        view = [1] * len(shape) + [own]
        view[place] = shape[place]
        runs.append(run.reshape(view).expand(*shape, own))
    return torch.cat(runs, -1)


def _waves(resample: Resample) -> torch.Tensor:
    """`waves` in segments with positions, zeros elsewhere."""
    # The last dim holds the units; tokens without a position, such as class tokens, have a row of zeros.
    width = old_size(resample.dims[-1])
    segments = [part for dim in resample.dims[:-1] for part in _segments(dim)]
    pieces = []
    for segment in segments:
        sizes = [(leaf.old, leaf.new) for leaf in leaves(segment) if leaf.old != leaf.new]
        if sizes:
            pieces.append(waves(sizes, width, resample.values).reshape(-1, width))
        else:
            pieces.append(torch.zeros(old_size(segment), width, dtype=torch.float64))
    return torch.cat(pieces)


def _segments(dim: Dim) -> list[Dim]:
    if len(dim) == 1 and isinstance(dim[0], Cat):
        return list(dim[0].parts)
    return [dim] if dim else []


def offsets(window: Sequence[int], values: Mapping[str, Any]) -> torch.Tensor:
    """Returns the row of a relative table for each pair of positions of a window: int64 `[tokens, tokens]`.

    Args:
        window: positions per dim of the window.
        values: `signs` (per dim: 1 if the difference counts from the second to the first), `first` (rows before the
            differences), `before` (tokens before the positions), `extra` (rows of pairs with such a token: of token
            and position, of position and token, of two tokens; after the differences).
    """
    spans = [2 * size - 1 for size in window]
    places = torch.cartesian_prod(*(torch.arange(size) for size in window)).reshape(-1, len(window))
    index = torch.full((len(places), len(places)), int(values["first"]), dtype=torch.int64)
    stride = math.prod(spans)
    for place, span in enumerate(spans):
        stride //= span
        gap = places[:, None, place] - places[None, :, place]
        index += (int(values["signs"][place]) * gap + window[place] - 1) * stride
    before = int(values["before"])
    if not before:
        return index
    total = math.prod(spans) + int(values["first"])
    to, back, own = (total + item for item in values["extra"])
    whole = torch.full((len(places) + before,) * 2, own, dtype=torch.int64)
    whole[before:, before:] = index
    whole[:before, before:], whole[before:, :before] = to, back
    return whole


def _offsets(resample: Resample) -> torch.Tensor:
    return offsets(resample.values["window"], resample.values)


def shifted(counts: Sequence[int], window: Sequence[int], shift: Sequence[int], value: float) -> torch.Tensor:
    """Returns the mask of shifted windows: float64 `[windows, tokens, tokens]`.

    It holds `value` for pairs of positions that were not in one region before the roll, else 0.

    Args:
        counts: windows per dim.
        window: positions of a window per dim.
        shift: how far the image was rolled, per dim; 0 for no shift.
        value: the value of masked pairs.
    """
    region = torch.zeros([1] * len(counts), dtype=torch.int64)
    for place, (count, size, far) in enumerate(zip(counts, window, shift, strict=True)):
        total = count * size
        at = torch.arange(total)
        own = (at >= total - size).long() + (at >= total - far).long() if far else torch.zeros_like(at)
        region = region * 3 + own.reshape([-1 if index == place else 1 for index in range(len(counts))])
    shape = [item for pair in zip(counts, window, strict=True) for item in pair]
    rank = len(counts)
    region = region.reshape(shape).permute([2 * i for i in range(rank)] + [2 * i + 1 for i in range(rank)])
    region = region.reshape(math.prod(counts), math.prod(window))
    return torch.where(region[:, :, None] == region[:, None, :], 0.0, value).double()


def _shifted(resample: Resample) -> torch.Tensor:
    values = resample.values
    return shifted(values["counts"], values["window"], values["shift"], float(values["value"]))


_GRIDS: dict[str, Grid] = {"grid": _bicubic, "relative": _geometric}
_MAKERS: dict[str, Callable[[Resample], torch.Tensor]] = {
    "waves": _waves,
    "count": lambda resample: torch.arange(math.prod(resample.shape)) + int(resample.values["first"]),
    "offsets": _offsets,
    "shifted": _shifted,
}
