"""Names and places after depth growth: which block is copied where, and how blocks are renumbered.

Blocks are numbered by position, as the model class of that depth numbers them. The index maps say which old block is
at which new place (AutoProg, Li et al., CVPR 2022):

interpolate, identity   4 -> 10: 0 0 1 1 2 2 2 3 3 3     copies next to their source, extra ones deepest
stack                   4 -> 10: 0 1 2 3 0 1 2 3 0 1     the whole chain again
random                  4 -> 6:  0 1 2 3 3 3             new blocks at the end
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from progc.analysis.chains import Chain
from progc.ir.program import Program

Arrangement = Literal["identity", "interpolate", "stack", "random"]


@dataclasses.dataclass(frozen=True)
class BlockPlace:
    """One place of the grown chain: the index of the old block it is made from, and whether it is a copy."""

    source: int
    copy: bool


def interpolated(old: int, new: int) -> list[int]:
    """Source of each new place, in order: old layers 0 .. old - rest - 1 occur q times, the others q + 1 times."""
    times, rest = divmod(new, old)
    return [i for i in range(old) for _ in range(times + (i >= old - rest))]


def arranged(old: int, new: int, period: int, init: Arrangement) -> list[BlockPlace]:
    """Returns the places of a chain that grows from `old` to `new` blocks, both multiples of the period, old <= new.

    Blocks of one period stay together and in order for every init.
    """
    assert 0 < old <= new and old % period == new % period == 0
    units, target = old // period, new // period
    if init == "stack":
        sources = [i % units for i in range(target)]
    elif init == "random":
        sources = [min(i, units - 1) for i in range(target)]
    else:
        sources = interpolated(units, target)
    seen: set[int] = set()
    places = []
    for unit in sources:
        places += [BlockPlace(unit * period + i, unit in seen) for i in range(period)]
        seen.add(unit)
    return places


@dataclasses.dataclass(frozen=True)
class Naming:
    """All names that the growth of one chain changes.

    Attributes:
        numbers: number of each place, in order.
        tensors: old to new state name, for tensors that stay (blocks of the chain and siblings after it).
        copies: per place, old to new state name for the tensors of an inserted block; empty for old blocks.
        labels: old to new module path of blocks that stay.
        copy_labels: per place, old and new module path of its block.
        order: sort key of every new name, so that blocks are ordered by their numbers.
    """

    numbers: tuple[int, ...]
    tensors: Mapping[str, str]
    copies: tuple[Mapping[str, str], ...]
    labels: Mapping[str, str]
    copy_labels: tuple[tuple[str, str], ...]
    order: Mapping[str, tuple[int, int, int]]


def name_places(program: Program, chain: Chain, places: Sequence[BlockPlace]) -> Naming:
    """Numbers the places of `chain`, starting with the number of its first block, and renames what has to move."""
    first = chain.blocks[0].index
    numbers = tuple(range(first, first + len(places)))
    tensors: dict[str, str] = {}
    labels: dict[str, str] = {}
    order: dict[str, tuple[int, int, int]] = {}
    begin = _begin(program, chain)
    copies: list[dict[str, str]] = []
    copy_labels: list[tuple[str, str]] = []
    for number, place in zip(numbers, places, strict=True):
        block = chain.blocks[place.source]
        renamed = {
            old: pattern.replace("#", str(number)) for old, pattern in zip(block.tensors, block.patterns, strict=True)
        }
        order.update({new: (begin[program.specs[old].kind], number, k) for k, (old, new) in enumerate(renamed.items())})
        label = _label(chain, block.label, block.index, number)
        copies.append(renamed if place.copy else {})
        copy_labels.append((block.label, label))
        if not place.copy:
            tensors.update(renamed)
            labels[block.label] = label
    _move_later(program, chain, len(places) - len(chain.blocks), tensors, labels, order, begin)
    return Naming(numbers, tensors, tuple(copies), labels, tuple(copy_labels), order)


def _begin(program: Program, chain: Chain) -> dict[str, int]:
    """Where the container starts among the parameters, the buffers and the constants of the program."""
    members = {name for block in chain.blocks for name in block.tensors}
    begin: dict[str, int] = {spec.kind: len(program.tensors) for spec in program.specs.values()}
    for position, name in enumerate(program.tensors):
        if name in members:
            begin[program.specs[name].kind] = min(begin[program.specs[name].kind], position)
    return begin


def _move_later(
    program: Program,
    chain: Chain,
    shift: int,
    tensors: dict[str, str],
    labels: dict[str, str],
    order: dict[str, tuple[int, int, int]],
    begin: Mapping[str, int],
) -> None:
    """Renumbers siblings after the chain that do not belong to it by `shift`."""
    head, _, tail = chain.pattern.partition("#")
    for old_label in chain.later:
        number = _number(old_label, head)
        if number is None:
            continue
        labels[old_label] = _label(chain, old_label, number, number + shift)
        old_prefix, new_prefix = f"{head}{number}{tail}", f"{head}{number + shift}{tail}"
        for position, name in enumerate(program.tensors):
            if name.startswith(old_prefix):
                tensors[name] = new_prefix + name.removeprefix(old_prefix)
                order[tensors[name]] = (begin[program.specs[name].kind], number + shift, position)


def _number(label: str, head: str) -> int | None:
    digits = ""
    for letter in label.removeprefix(head):
        if not letter.isdigit():
            break
        digits += letter
    return int(digits) if label.startswith(head) and digits else None


def _label(chain: Chain, label: str, old: int, new: int) -> str:
    """A block's module path with another number, at the position that the chain's pattern marks."""
    head = chain.pattern.partition("#")[0]
    old_prefix = f"{head}{old}"
    return f"{head}{new}{label.removeprefix(old_prefix)}" if label.startswith(old_prefix) else label


def renamed_stack(stack: Any, labels: Mapping[str, str]) -> Any:
    """A node's `nn_module_stack` with module paths of renumbered blocks, keys included."""
    if not isinstance(stack, Mapping):
        return stack
    renamed = {}
    for key, (path, kind) in stack.items():
        new = renamed_path(path, labels)
        renamed[key.removesuffix(path) + new if path and key.endswith(path) else key] = (new, kind)
    return renamed


def renamed_path(path: str, labels: Mapping[str, str]) -> str:
    """A module path whose leading part is a renumbered block."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        prefix = ".".join(parts[:end])
        if prefix in labels:
            return ".".join([labels[prefix], *parts[end:]])
    return path


def in_order(names: Sequence[str], origin: Mapping[str, str], order: Mapping[str, tuple[int, int, int]]) -> list[str]:
    """Returns the new state names in the order of the model class: containers in place, blocks by number.

    Args:
        names: old names, in order.
        origin: new name to the old name it is made from.
        order: `Naming.order` of all chains that grew.
    """
    position = {name: index for index, name in enumerate(names)}
    return sorted(origin, key=lambda name: order.get(name, (position[origin[name]], 0, 0)))
