"""Finds the levels of depth of every chain that varies.

Only depths are offered that `shrink` can make and from which the network can grow.

In mode `default` every chain goes through its own levels. In `reference` a level is a total depth on AutoProg's grid
(Li et al., CVPR 2022), divided over the chains as published: every chain but the longest gets its share of the blocks,
rounded to an even number, and the longest gets the rest. A network of 4 and 14 blocks has the levels 2 + 7, 4 + 8,
4 + 11, 4 + 14. A chain that keeps all its blocks at the smallest level, such as one of two blocks, is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from progc.analysis.chains import chains_of
from progc.errors import InputError, first_of
from progc.schedule.frozen import partly_frozen, wholly_frozen
from progc.schedule.level_texts import Levels, Wish, parse
from progc.schedule.space import DEPTH, factors, rounded, sizes, split
from progc.transforms.depth.targets import allowed_depths, covering, matching

if TYPE_CHECKING:
    from progc.analysis.chains import Chain
    from progc.ir.program import Program

Depths = list[dict[str, int]]
SMALLEST = Fraction(1, 2)
"""The smallest level by default, as a factor of the full size (published for training from scratch)."""


def variable(program: Program) -> list[Chain]:
    """Returns the chains that can be shorter; of nested chains the outer one.

    A chain that did not train when the network was captured, such as that of a teacher inside the module, is none.
    """
    table = list(chains_of(program))
    return [
        chain for chain in table
        if covering(chain, table) is None and len(allowed_depths(chain)) > 1 and not wholly_frozen(program, chain)
    ]  # fmt: skip


def by_default(
    program: Program, levels: int, start: dict[str, int] | None, notes: list[str], mode: str = "default"
) -> Depths:
    """Returns evenly spaced depths of every chain, from half of the full depth or from the depth of `start`.

    Args:
        program: the full network.
        levels: number of levels.
        start: depths that training begins with; None: half of the full depth.
        notes: gets a sentence for each total depth that is rounded, and for each chain that keeps frozen blocks.
        mode: `default` or `reference` (without `start`), see the module's docstring.
    """
    chains = variable(program)
    for chain in [chain for chain in chains_of(program) if partly_frozen(program, chain)]:
        chains = [other for other in chains if other is not chain]
        notes.append(f"depth: {chain.name} does not vary: it has blocks that are frozen (requires_grad=False)")
    if mode == "reference" and start is None and chains:
        return _levels(chains, _published(chains, factors(SMALLEST, Fraction(1), levels), notes))
    first = {chain.name: Fraction((start or {}).get(chain.name, chain.siblings * SMALLEST)) for chain in chains}
    wanted = {chain.name: factors(first[chain.name], Fraction(chain.siblings), levels) for chain in chains}
    return _levels(chains, {chain.name: [_nearest(chain, value) for value in wanted[chain.name]] for chain in chains})


def asked(program: Program, text: Levels, notes: list[str], mode: str = "default") -> Depths:
    """Returns the depths that a text gives; `notes` gets a sentence for each depth that is rounded.

    Levels without the name of a chain are divided over the chains by `mode`, see the module's docstring.

    Raises:
        InputError: a depth that a chain cannot have (the message gives the nearest that it can have), chains with
            different numbers of levels, or a last level that is not the full depth.
    """
    if not len(chains_of(program)):
        raise InputError("depths: this network has no chain of blocks (progc inspect --chains says why); remove depths")
    wishes = parse("depths", text, named=True)
    chosen: dict[str, list[int]] = {}
    named = {chain.name for wish in wishes if wish.name for chain in matching(chains_of(program), wish.name, "depths")}
    for wish in wishes:
        if wish.name is None:
            free = [chain for chain in variable(program) if chain.name not in named]
            chosen.update(_for_all(free, wish, notes, mode))
    for wish in wishes:
        if wish.name is not None:
            for chain in matching(chains_of(program), wish.name, "depths"):
                if wholly_frozen(program, chain):
                    raise InputError(
                        f"depths: {chain.name} is frozen (requires_grad=False), and blocks that are cut would never be "
                        "trained back; leave it out"
                    )
                chosen[chain.name] = [_exactly(chain, value, wish, notes) for value in wish.values]
    counts = {len(depths) for depths in chosen.values()}
    if len(counts) > 1:
        told = ", ".join(f"{name} has {len(depths)}" for name, depths in chosen.items())
        raise InputError(f"depths: expected the same number of levels for every chain; {told}")
    chains = [chain for chain in chains_of(program) if chain.name in chosen]
    for chain in chains:
        if chosen[chain.name][-1] != chain.siblings:
            raise InputError(
                f"depths: expected the full depth of {chain.name}, {chain.siblings}, as the last level, got "
                f"{chosen[chain.name][-1]}; add {chain.name}:{chain.siblings}"
            )
    return _levels(chains, chosen)


def named(program: Program, text: Levels) -> list[str]:
    """Returns the names of the chains that a text names."""
    wishes = [wish for wish in parse("depths", text, named=True) if wish.name]
    return [chain.name for wish in wishes for chain in matching(chains_of(program), wish.name or "", "depths")]


def from_start(program: Program, levels: Depths, start: dict[str, int]) -> Depths:
    """Returns the depths of `start` as the first level, and the levels that are at least as deep in every chain."""
    full = {chain.name: chain.siblings for chain in chains_of(program)}
    smaller = {name for name, depth in start.items() if depth < full[name]}
    names = [name for name in full if name in smaller or any(name in level for level in levels)]
    whole = [{name: level.get(name, full[name]) for name in names} for level in levels or [full]]
    first = {name: start.get(name, full[name]) for name in names}
    return _distinct([first, *(level for level in whole if all(level[name] >= first[name] for name in names))])


def clamped(levels: Depths, name: str, least: int) -> Depths:
    """Returns the levels with a chain at least `least` deep; a chain that does not vary any more is left out."""
    raised = [{**level, name: max(level[name], least)} for level in levels]
    if len({level[name] for level in raised}) == 1:
        raised = [{other: depth for other, depth in level.items() if other != name} for level in raised]
    return _distinct(raised)


def lowest(chain: Chain, levels: Depths, works: Callable[[int], bool]) -> int:
    """Returns the smallest depth, from the lowest level upwards, that works; the full depth if none does."""
    depths = [depth for depth in allowed_depths(chain) if depth >= levels[0][chain.name]]
    return next((depth for depth in depths[:-1] if works(depth)), chain.siblings)


def _for_all(chains: Sequence[Chain], wish: Wish, notes: list[str], mode: str) -> dict[str, list[int]]:
    """Factors apply to the depth of each chain; numbers of blocks are divided over all chains in proportion."""
    if not chains:
        raise InputError(f"depths `{wish.text}`: no chain of this network can be shorter; remove depths")
    if mode == "reference":
        whole = 1 if wish.relative else sum(chain.siblings for chain in _counted(chains, SMALLEST))
        levels = [value / whole for value in wish.values]
        if levels[-1] != 1:
            raise InputError(f"depths `{wish.text}`: expected the full network, {whole}, as the last level; add it")
        return _published(chains, levels, notes)
    if wish.relative:
        return {chain.name: [_nearest(chain, value * chain.siblings) for value in wish.values] for chain in chains}
    whole = sum(chain.siblings for chain in chains)
    least = sum(allowed_depths(chain)[0] for chain in chains)
    found: dict[str, list[int]] = {chain.name: [] for chain in chains}
    for value in wish.values:
        if not least <= value <= whole:
            raise InputError(
                f"depths `{wish.text}`: expected {least} to {whole} blocks in {_list(chains)} together, got "
                f"{_number(value)}"
            )
        parts = split(int(value), [chain.siblings for chain in chains], [chain.period for chain in chains])
        near = [_nearest(chain, Fraction(part)) for chain, part in zip(chains, parts, strict=True)]
        if sum(near) != value:
            notes.append(
                f"depths: {_number(value)} blocks are rounded to {sum(near)}, the nearest that {_list(chains)} can have"
            )
        for chain, depth in zip(chains, near, strict=True):
            found[chain.name].append(depth)
    if wish.values[-1] != whole:
        raise InputError(
            f"depths `{wish.text}`: expected the full network, {whole} blocks, as the last level; write "
            f"{wish.text},{whole}"
        )
    return found


def _counted(chains: Sequence[Chain], smallest: Fraction) -> list[Chain]:
    """The longest chain, and those that have fewer blocks at the smallest level than in the full network."""
    longest = _longest(chains)
    return [c for c in chains if c is longest or rounded(smallest * c.siblings, _even(c)) < c.siblings]


def _published(chains: Sequence[Chain], parts: Sequence[Fraction], notes: list[str]) -> dict[str, list[int]]:
    """Depths of every chain at levels that are factors of the full depth, divided as published."""
    counted = _counted(chains, parts[0])
    longest, full = _longest(counted), [chain.siblings for chain in counted]
    steps = [chain.period if chain is longest else _even(chain) for chain in counted]
    found: dict[str, list[int]] = {chain.name: [] for chain in counted}
    for size in sizes(parts, sum(full), DEPTH, "reference"):
        total = min(size, sum(full))
        # With more than two chains, several may round up at one level, at the cost of the longest: depths never fall.
        near = [
            max(_nearest(chain, Fraction(depth)), *found[chain.name][-1:], 0)
            for chain, depth in zip(counted, split(total, full, steps), strict=True)
        ]
        if sum(near) != total:
            notes.append(f"depths: {total} blocks are rounded to {sum(near)}, which {_list(counted)} can have")
        for chain, depth in zip(counted, near, strict=True):
            found[chain.name].append(depth)
    return {chain.name: found.get(chain.name, [chain.siblings] * len(parts)) for chain in chains}


def _longest(chains: Sequence[Chain]) -> Chain:
    """The chain with the most blocks, the last one if there are several."""
    return max(enumerate(chains), key=lambda entry: (entry[1].siblings, entry[0]))[1]


def _even(chain: Chain) -> int:
    return math.lcm(2, chain.period)


def _exactly(chain: Chain, value: Fraction, wish: Wish, notes: list[str]) -> int:
    wanted = value * chain.siblings if wish.relative else value
    allowed = allowed_depths(chain)
    if wanted in allowed:
        return int(wanted)
    near = _nearest(chain, wanted)
    if wish.relative or wanted.denominator != 1:
        notes.append(f"depths: {chain.name} gets {near} blocks, the nearest to {_number(wanted)} that it can have")
        return near
    below = [depth for depth in allowed if depth < wanted][-1:]
    above = [depth for depth in allowed if depth > wanted][:1]
    words = " and ".join(map(str, below + above))
    raise InputError(
        f"depths `{wish.text}`: {chain.name} cannot have {_number(wanted)} blocks; the nearest that it can have "
        f"{'are' if below and above else 'is'} {words}"
    )


def _nearest(chain: Chain, wanted: Fraction) -> int:
    """Halves are rounded up, as in `shrink`."""
    return min(allowed_depths(chain), key=lambda depth: (abs(depth - wanted), -depth))


def _levels(chains: Sequence[Chain], depths: dict[str, list[int]]) -> Depths:
    """One mapping per level; chains that do not vary and levels that occur twice are left out."""
    varying = [chain.name for chain in chains if len(set(depths[chain.name])) > 1]
    count = len(next(iter(depths.values()), []))
    return _distinct([{name: depths[name][k] for name in varying} for k in range(count)]) if varying else []


def _distinct(levels: Depths) -> Depths:
    found: Depths = []
    for level in levels:
        if level and (not found or level != found[-1]):
            found.append(level)
    return found if len(found) > 1 else []


def _list(chains: Sequence[Chain]) -> str:
    return first_of([chain.name for chain in chains], 3)


def _number(value: Fraction) -> str:
    return f"{float(value):g}"
