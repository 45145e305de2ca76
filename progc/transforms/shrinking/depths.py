"""How deep: `0.5`, `6`, `layer3:*0.5` for the chains of a program, and which blocks stay.

`spread` keeps the blocks that the index map of growth repeats (progc/transforms/depth/naming.py, AutoProg, Li et al.,
CVPR 2022), each at the first of its copies: growing back by `identity` or `interpolate` puts every kept block where it
came from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from progc.analysis.chains import Chain, ChainTable
from progc.errors import PassOptionError, TargetError
from progc.transforms.depth.naming import interpolated
from progc.transforms.depth.targets import DEPTH, matching

Rule = Literal["spread", "first", "last"]


@dataclasses.dataclass(frozen=True)
class Depth:
    """A depth for the chains that match `chain` (None: all selected ones): blocks, or a factor where `relative`."""

    chain: str | None
    number: Fraction
    relative: bool
    text: str


@dataclasses.dataclass(frozen=True)
class KeptBlocks:
    """A chain that gets shorter: positions in `chain.blocks` of the blocks that stay, ascending."""

    chain: Chain
    blocks: tuple[int, ...]

    @property
    def dropped(self) -> tuple[int, ...]:
        """Positions of the blocks that go."""
        return tuple(i for i in range(len(self.chain.blocks)) if i not in self.blocks)


def parse_depth(text: str) -> Depth:
    """`6`, `0.5`, `*0.5`, `blocks:6`, `layer*:0.5`: a number with a point is a factor.

    Raises:
        PassOptionError: anything else, 0, or a factor above 1.
    """
    match = DEPTH.fullmatch(text.strip())
    number = Fraction(match["number"]) if match else Fraction(0)
    relative = match is not None and bool(match["times"] or "." in match["number"])
    if match is None or number <= 0 or (relative and number > 1):
        raise PassOptionError(
            f"shrink: depth={text} is no depth; write a number of blocks (6), a factor up to 1 (0.5), or either for "
            "one chain (blocks:6)"
        )
    return Depth(match["chain"], number, relative, text.strip())


def kept_positions(old: int, new: int, rule: Rule) -> list[int]:
    """Which of `old` layers stay when `new` are left."""
    if rule == "last":
        return list(range(old - new, old))
    if rule == "first" or new == 0:
        return list(range(new))
    sources = interpolated(new, old)
    return [sources.index(unit) for unit in range(new)]


def choose(
    table: ChainTable, depths: Sequence[Depth], names: Sequence[str], rule: Rule
) -> tuple[list[KeptBlocks], list[str]]:
    """The chains that get shorter, and notes about what was left alone or rounded.

    Args:
        depths: a depth for a chain by name wins over one for all.
        names: names or globs of the chains that depths without a name are for; empty: every chain.

    Raises:
        PassOptionError: a name that no chain has, or chains that overlap.
        TargetError: a depth that the chain cannot have.
    """
    if depths and not len(table):
        raise TargetError(
            f"shrink: depth={depths[0].text}: this network has no chain of blocks; progc inspect --chains says why"
        )
    wanted: dict[str, Depth] = {}
    notes: list[str] = []
    named = {chain.name for name in names for chain in matching(table, name, "shrink")}
    general = [depth for depth in depths if depth.chain is None]
    if general:
        selected = [chain for chain in table if not names or chain.name in named]
        for chain in selected:
            outer = covering(chain, selected)
            if outer is None:
                wanted[chain.name] = general[-1]
            else:
                notes.append(f"{chain.name} keeps its depth: it overlaps {outer.name}, which shrinks; name it instead")
    for depth in depths:
        if depth.chain is not None:
            found = matching(table, depth.chain, "shrink")
            named.update(chain.name for chain in found)
            wanted.update({chain.name: depth for chain in found})
    kept = []
    for chain in table:
        if chain.name in wanted:
            blocks, note = _blocks(chain, wanted[chain.name], strict=chain.name in named)
            notes += [note] if note else []
            if blocks < len(chain.blocks):
                if blocks < (2 if chain.kind == "dense" else 1):
                    notes.append(f"too little of {chain.name} stays for grow-depth to find it again")
                kept.append(KeptBlocks(chain, tuple(_positions(chain, blocks, rule, notes))))
    _check_apart([one.chain for one in kept])
    return kept, notes


def _positions(chain: Chain, blocks: int, rule: Rule, notes: list[str]) -> list[int]:
    if chain.kind == "dense" and rule == "spread":
        notes.append(f"{chain.name}: its first {blocks} blocks stay, since dense chains grow at their end")
        rule = "first"
    units = kept_positions(len(chain.blocks) // chain.period, blocks // chain.period, rule)
    return [unit * chain.period + i for unit in units for i in range(chain.period)]


def least_depth(chain: Chain, again: bool) -> int:
    """The smallest depth of a chain, counted with its neighbours in the container.

    Args:
        again: whether growth is to find the chain again, which takes a block of it, two of a dense chain.
    """
    others, step = chain.siblings - len(chain.blocks), chain.period
    if again:
        return min(others + (2 if chain.kind == "dense" else step), chain.siblings)
    return others if others else step  # a chain may go entirely where other blocks of its container stay


def allowed_depths(chain: Chain, again: bool = True) -> list[int]:
    """Every depth that a chain can have, ascending; arguments as `least_depth`."""
    least = least_depth(chain, again)
    return [depth for depth in range(chain.siblings, 0, -chain.period) if depth >= least][::-1]


def covering(chain: Chain, selected: Sequence[Chain]) -> Chain | None:
    """The chain that shrinks in place of `chain` where a depth is for all of `selected`, if there is one."""
    return next((other for other in selected if _covers(other, chain, selected)), None)


def _blocks(chain: Chain, depth: Depth, strict: bool) -> tuple[int, str]:
    """Blocks of the chain at the wanted depth, which counts every numbered block of the container; with a note."""
    wanted = chain.siblings * depth.number if depth.relative else depth.number
    if wanted > chain.siblings:
        raise TargetError(
            f"shrink: chain {chain.name} has depth {chain.siblings}; depth {depth.text} is larger, use "
            f"grow-depth{{to={chain.name}:{depth.number}}}"
        )
    others, step = chain.siblings - len(chain.blocks), chain.period
    free = depth.relative and not strict
    least = least_depth(chain, free)
    lower = chain.siblings - -(-(chain.siblings - wanted) // step) * step
    if lower == wanted and wanted >= least:
        return int(wanted) - others, ""
    near = sorted({max(lower, least), min(max(lower + step, least), chain.siblings)})
    why = (
        f"at least {least} stay" if wanted < least else f"blocks repeat with period {step}" if step > 1 else
        "a depth is a whole number"
    )  # fmt: skip
    if not free:
        raise TargetError(
            f"shrink: chain {chain.name} cannot have depth {float(wanted):g} ({depth.text}): {why}; "
            f"{'the nearest is' if len(near) == 1 else 'the nearest are'} {' and '.join(map(str, near))}"
        )
    nearest = min(near, key=lambda size: (abs(size - wanted), -size))
    return nearest - others, f"{chain.name}: depth {float(wanted):g} of {chain.siblings} becomes {nearest}: {why}"


def _covers(other: Chain, chain: Chain, selected: Sequence[Chain]) -> bool:
    """Of chains inside one another the outer one shrinks, of several in one container the longest, last one."""
    if other is chain:
        return False
    if other.pattern != chain.pattern:
        return _inside(chain, other)
    rank = {id(one): (len(one.blocks), place) for place, one in enumerate(selected)}
    return rank[id(other)] > rank[id(chain)]


def _inside(chain: Chain, other: Chain) -> bool:
    nodes = {name for block in other.blocks for name in block.nodes["eval"]}
    return all(name in nodes for block in chain.blocks for name in block.nodes["eval"])


def _check_apart(chains: Sequence[Chain]) -> None:
    for chain in chains:
        for other in chains:
            if other is not chain and (_inside(chain, other) or other.pattern == chain.pattern):
                raise PassOptionError(
                    f"shrink: {chain.name} and {other.name} overlap; shrink them one after the other: "
                    f"shrink{{depth={chain.name}:...}},shrink{{depth={other.name}:...}}"
                )
