"""Finds what kind of table a tensor over positions is, from its values and its use, never from its name."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from progc.errors import TargetError
from progc.ir.deferred import values
from progc.ir.program import Program
from progc.lift.extents import Cat, Dim, Leaf, bare, fixed, grows, leaves, new_size, old_size
from progc.lift.resampling import Resample, offsets, shifted, waves
from progc.transforms.resolution.choices import scaled_shift
from progc.transforms.resolution.solve import Solution

_CLOSE = 2e-5
"""How near a table in 32 bits is to the sines and cosines that it was made of."""


def resamples(program: Program, solution: Solution, stretch: bool) -> tuple[dict[str, Resample], list[str]]:
    """Returns how every tensor that follows the image is resampled, by canonical name, and notes for the user.

    Args:
        stretch: whether new positions of computed tables cover the range of the old ones; otherwise they extend it.

    Raises:
        TargetError: a tensor that no known construction explains; the message names it.
    """
    names = sorted({owner[1] for owner, _ in solution.facts.assigned if owner[0] == "tensor"})
    walk = next(iter(solution.walks.values()))
    lookups = set().union(*(walk.lookups for walk in solution.walks.values()))
    found: dict[str, Resample] = {}
    notes: list[str] = []
    for name in names:
        dims = tuple(bare(dim) for dim in walk.tensor(name).dims)
        if not any(map(grows, dims)):
            continue
        tensor = program.tensors[name]
        if tensor.is_floating_point():
            found[name] = _floating(program, name, dims, stretch, notes)
            continue
        found[name], rows = _index(name, values(tensor).detach(), dims)
        for table, index in sorted(lookups):
            if index == name:
                found[table] = _rows(program, table, rows, found[name].kind, found.get(table))
    return found, notes


def _floating(program: Program, name: str, dims: tuple[Dim, ...], stretch: bool, notes: list[str]) -> Resample:
    tensor = program.tensors[name]
    trained = program.specs[name].kind == "parameter"
    if not (trained and tensor.requires_grad):  # a parameter counts as learned, whatever its present values are
        tensor = values(tensor).detach()
        if (found := _as_waves(tensor, dims, stretch)) is not None:
            return found
    if not trained:
        if (mask := _as_shifted(tensor, dims)) is not None:
            return mask
        if len(tensor.unique()) <= 2:
            raise TargetError(
                f"grow-resolution: {name} {list(tensor.shape)} is a mask over positions of an unknown kind; its "
                "values at another size are unknown"
            )
    moving = [leaf for dim in dims for leaf in leaves(dim) if leaf.old != leaf.new]
    if len(_axes(dims)) > 2 or max((len([x for x in leaves(dim) if x.old != x.new]) for dim in dims), default=0) > 2:
        raise TargetError(f"grow-resolution: {name} {list(tensor.shape)} has values for {len(moving)} runs of "
                          "positions at once; only tables over rows and columns can be resampled")  # fmt: skip
    if not trained:
        notes.append(
            f"{name} is not a table of sines and cosines; its values are resampled like those of a learned table"
        )
    return Resample("grid", dims)


def _axes(dims: Iterable[Dim]) -> list[Leaf]:
    """The parts that change, in the range of the tensor that has most of them."""
    found: list[Leaf] = []
    for dim in dims:
        if len(dim) == 1 and isinstance(dim[0], Cat):
            found.extend(sorted((_axes([part]) for part in dim[0].parts), key=len)[-1])
        else:
            found.extend(part for part in dim if isinstance(part, Leaf) and part.old != part.new)
    return found


# -- sines and cosines -----------------------------------------------------------------------------------------------


def _as_waves(tensor: torch.Tensor, dims: tuple[Dim, ...], stretch: bool) -> Resample | None:
    """The construction of a table of sines and cosines; None if no known construction gives its values."""
    if grows(dims[-1]) or any(old_size(dim) == 1 and grows(dim) for dim in dims):
        return None
    axes, width = _axes(dims), old_size(dims[-1])
    if not 1 <= len(axes) <= 2 or width % (2 * len(axes)):
        return None
    lead = [dim for dim in dims[:-1] if dim]
    if len(lead) > 1 and any(isinstance(part, Cat) for dim in lead for part in dim):
        return None
    sizes = [(leaf.old, leaf.new) for leaf in axes]
    table = tensor.double().reshape(-1, width)
    start = _first_row(lead)
    rows = table[start : start + math.prod(old for old, _ in sizes)]
    rest = torch.cat([table[:start], table[start + len(rows) :]])
    if bool(rest.abs().max() > 0) if len(rest) else False:
        return None
    for spec in _constructions(rows, sizes):
        made = waves(sizes, width, spec, before=True).reshape(-1, width)
        if float((made - rows).abs().max()) < _CLOSE:
            return Resample("waves", dims, {**spec, "stretch": stretch})
    return None


def _first_row(lead: Sequence[Dim]) -> int:
    start = 0
    for dim in lead:
        for part in dim:
            if isinstance(part, Cat):
                start = sum(old_size(p) for p in itertools.takewhile(lambda p: not grows(p), part.parts))
    return start


def _constructions(rows: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> Iterable[dict[str, Any]]:
    """The usual ways to fill such a table, with the distance of two positions in its values."""
    table = rows.reshape([old for old, _ in sizes] + [-1])
    for order in itertools.permutations(range(len(sizes))):
        for cosine_first, interleaved in itertools.product((False, True), repeat=2):
            own = table.shape[-1] // len(sizes)
            place = order[0]
            if sizes[place][0] < 2:
                continue
            second = [0] * len(sizes)
            second[place] = 1
            pairs = table[tuple(second)][:own].reshape((own // 2, 2) if interleaved else (2, own // 2))
            first, other = pairs.unbind(-1 if interleaved else 0)
            angles = torch.atan2(other, first) if cosine_first else torch.atan2(first, other)
            for last, temperature in itertools.product((0, 1), (10000.0, 100.0, 1000.0, 500.0)):
                step = _distance(angles, temperature, last)
                if not step > 0:
                    continue
                yield {
                    "order": list(order), "cosine_first": cosine_first, "interleaved": interleaved,
                    "temperature": temperature, "last": last, "step": step,
                }  # fmt: skip


def _distance(angles: torch.Tensor, temperature: float, last: int) -> float:
    """The distance of two positions, from the lowest frequency, which says how many turns the highest one has made."""
    count = len(angles)
    rough = float(angles[-1]) * temperature ** ((count - 1) / max(count - last, 1))
    turns = round((rough - float(angles[0])) / (2 * math.pi))
    return _plain_number(float(angles[0]) + 2 * math.pi * turns)


def _plain_number(value: float) -> float:
    """The simple fraction that a measured distance approximates."""
    for below in range(1, 129):
        if abs(value * below - round(value * below)) < 1e-5 * below and round(value * below):
            return round(value * below) / below
    return value


# -- masks of rolled windows -----------------------------------------------------------------------------------------


def _as_shifted(tensor: torch.Tensor, dims: tuple[Dim, ...]) -> Resample | None:
    """A mask between the windows of a rolled image, if a shift reproduces the old mask exactly."""
    full = [dim for dim in dims if dim]
    if len(full) != 3 or bare(full[1]) != bare(full[2]) or not _flat(full[0]) or not _flat(full[1]):
        return None
    other = tensor[tensor != 0].unique()
    if len(other) != 1:
        return None
    value, tokens = float(other[0]), tensor.reshape([old_size(dim) for dim in full]).double()
    counts, window = _two(full[0]), _two(full[1])
    for count, size in itertools.product(counts, window):
        olds, sides = [old for old, _ in count], [old for old, _ in size]
        for shift in itertools.product(range(sides[0]), range(sides[1])):
            if torch.equal(shifted(olds, sides, shift, value), tokens):
                return Resample("shifted", dims, {
                    "counts": [new for _, new in count], "window": [new for _, new in size], "value": value,
                    "shift": [scaled_shift(far, *side) for far, side in zip(shift, size, strict=True)],
                })  # fmt: skip
    return None


def _flat(dim: Dim) -> bool:
    return all(isinstance(part, Leaf) for part in dim)


def _two(dim: Dim) -> list[list[tuple[int, int]]]:
    """A dim as rows times columns: as its parts show, or every way to cut a part that stays."""
    parts = [(part.old, part.new) for part in dim]
    if len(parts) == 2:
        return [parts]
    old, new = old_size(dim), new_size(dim)
    if old != new or len(parts) > 2:
        return []
    sides = [side for side in range(1, old + 1) if old % side == 0]
    return [[(side, side), (old // side, old // side)] for side in sorted(sides, key=lambda s: abs(s - old // s))]


# -- index tables ----------------------------------------------------------------------------------------------------


def _index(name: str, index: torch.Tensor, dims: tuple[Dim, ...]) -> tuple[Resample, Dim]:
    """How an index buffer changes, and the rows of the table that it looks up.

    Raises:
        TargetError: the buffer holds neither a count of positions nor differences of two positions.
    """
    flat = index.reshape(-1)
    full = [dim for dim in dims if dim]
    if len(full) == 1 and torch.equal(flat.cpu(), torch.arange(len(flat)) + int(flat[0])):
        start = int(flat[0])
        rows = (Cat((fixed(start), full[0])),) if start else full[0]
        return Resample("count", dims, {"first": start}), rows
    parts = tuple(part for dim in dims for part in dim)
    half = len(parts) // 2
    if len(parts) % 2 == 0 and parts and parts[:half] == parts[half:]:
        found = _as_offsets(flat, parts[:half])
        if found is not None:
            return Resample("offsets", dims, found[0]), found[1]
    raise TargetError(
        f"grow-resolution: {name} {list(index.shape)} holds indices that neither count positions nor "
        "depend on the difference of two positions; their values at another size are unknown"
    )


def _as_offsets(flat: torch.Tensor, tokens: Dim) -> tuple[dict[str, Any], Dim] | None:
    before, window = 0, tokens
    if len(tokens) == 1 and isinstance(tokens[0], Cat):
        pieces = tokens[0].parts
        if len(pieces) != 2 or grows(pieces[0]):
            return None
        before, window = old_size(pieces[0]), pieces[1]
    if not _flat(window):
        return None
    old = [part.old for part in window]
    spans = [2 * size - 1 for size in old]
    count = old_size(tokens)
    index = flat.cpu().reshape(count, count)
    grid = index[before:, before:]
    total = math.prod(spans)
    for first, signs in itertools.product({int(grid.min()), 0}, itertools.product((1, -1), repeat=len(old))):
        extra = [0, 0, 0]
        if before:
            pairs = index[0, before], index[before, 0], index[0, 0]
            extra = [int(item) - total - first for item in pairs]
        spec = {"signs": list(signs), "first": first, "before": before, "extra": extra}
        if min(extra) >= 0 and torch.equal(offsets(old, spec), index):
            rows: Dim = tuple(Leaf(2 * part.old - 1, 2 * part.new - 1) for part in window)
            more = max(extra) + 1 if before else 0
            ends: list[Dim] = [(Leaf(size, size),) if size else () for size in (first, more)]
            pieces = tuple(piece for piece in (ends[0], rows, ends[1]) if piece)
            whole = (Cat(pieces),) if len(pieces) > 1 else rows
            return {**spec, "window": [part.new for part in window]}, whole
    return None


def _rows(program: Program, table: str, rows: Dim, kind: str, known: Resample | None) -> Resample:
    """A table whose rows are looked up: along differences of positions, or along positions."""
    shape = program.tensors[table].shape
    if shape[0] != old_size(rows):
        raise TargetError(
            f"grow-resolution: {table} has {shape[0]} rows, and {old_size(rows)} of them are looked up; which ones to "
            "look up at another size is unknown"
        )
    made = Resample("relative" if kind == "offsets" else "grid", (rows, *((Leaf(size, size),) for size in shape[1:])))
    if known is not None and known != made:
        raise TargetError(f"grow-resolution: {table} is looked up in two ways that would give it two sizes")
    return made
