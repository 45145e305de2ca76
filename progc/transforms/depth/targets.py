"""How deep: `12`, `*2`, `layer3:23` for the chains of a program."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Collection, Sequence

from progc.analysis.chains import Chain, ChainTable
from progc.errors import PassOptionError, TargetError, did_you_mean

DEPTH = re.compile(r"(?:(?P<chain>.+):)?(?P<times>\*)?(?P<number>\d+(?:\.\d+)?|\.\d+)")


@dataclasses.dataclass(frozen=True)
class DepthSize:
    """A depth for the chains that match `chain` (None: all selected ones), absolute or relative."""

    chain: str | None
    number: float
    relative: bool


def parse_size(text: str) -> DepthSize:
    """`12`, `*2`, `*1.5`, `blocks:12`, `layers.*:*2`.

    Raises:
        PassOptionError: anything else.
    """
    match = DEPTH.fullmatch(text.strip())
    if match is None or not (match["times"] or float(match["number"]).is_integer()) or not float(match["number"]):
        raise PassOptionError(
            f"grow-depth: to={text} is no depth; write a number of blocks (12), a factor (*2), or either for one "
            "chain (blocks:12)"
        )
    return DepthSize(match["chain"], float(match["number"]), bool(match["times"]))


@dataclasses.dataclass(frozen=True)
class DepthChoice:
    """What grows.

    Attributes:
        blocks: new number of blocks for every chain that has a size.
        unnamed: names of the chains that got the size for all, without being named: they may be left alone.
        notes: about what was left alone.
    """

    blocks: tuple[tuple[Chain, int], ...]
    unnamed: frozenset[str]
    notes: tuple[str, ...]


def choose(
    table: ChainTable, sizes: Sequence[DepthSize], names: Sequence[str] = (), without: Collection[str] = ()
) -> DepthChoice:
    """New number of blocks for every chain that grows.

    Args:
        table: the program's chains.
        sizes: a size for a chain by name wins over one for all.
        names: names or globs that the sizes without a name apply to; empty: every chain.
        without: names of chains that a size for all leaves alone.

    Raises:
        PassOptionError: a name that no chain has.
        TargetError: a depth that the chain cannot reach.
    """
    chosen: dict[str, DepthSize] = {}
    notes: list[str] = []
    unnamed: set[str] = set()
    general = [size for size in sizes if size.chain is None]
    if general:
        explicit = {chain.name for name in names for chain in matching(table, name)}
        selected = [chain for chain in table if not names or chain.name in explicit]
        selected = [chain for chain in selected if chain.name not in without]
        for chain in selected:
            reason = _left_alone(chain, selected)
            if reason is None:
                chosen[chain.name] = general[-1]
                unnamed.update([] if names else [chain.name])
            else:
                notes.append(reason)
    for size in sizes:
        if size.chain is not None:
            chosen.update({chain.name: size for chain in matching(table, size.chain)})
            unnamed.difference_update(chain.name for chain in matching(table, size.chain))
    grown = [(chain, _blocks(chain, chosen[chain.name])) for chain in table if chain.name in chosen]
    _check_apart([chain for chain, blocks in grown if blocks != len(chain.blocks)])
    return DepthChoice(tuple(grown), frozenset(unnamed), tuple(notes))


def matching(table: ChainTable, name: str, user: str = "grow-depth") -> list[Chain]:
    """The chains of that name, else those that the glob `name` matches.

    Raises:
        PassOptionError: no chain matches; `user`, a pass, begins the message.
    """
    found = [chain for chain in table if chain.name == name] or [
        chain for chain in table if fnmatch.fnmatchcase(chain.name, name)
    ]
    if not found:
        known = [chain.name for chain in table]
        hint = did_you_mean(name, known) or (f"; chains are {', '.join(known)}" if known else "; it has no chains")
        refused = next(
            (f"; {entry.name} is no chain: {entry.reason}" for entry in table.refused if entry.name == name), ""
        )
        raise PassOptionError(f"{user}: the program has no chain `{name}`{refused or hint}")
    return found


def _left_alone(chain: Chain, selected: Sequence[Chain]) -> str | None:
    """Of chains inside one another the outer one grows, of several in one container the longest, last one."""
    for other in selected:
        if other is not chain and _inside(chain, other):
            return f"{chain.name} lies inside blocks of {other.name}, which grows instead; name it to grow it"
    rivals = [other for other in selected if other.pattern == chain.pattern]
    best = max(enumerate(rivals), key=lambda item: (len(item[1].blocks), item[0]))[1]
    if best is not chain:
        return f"{chain.name} shares its container with {best.name}, which grows instead; name it to grow it"
    return None


def _check_apart(chains: Sequence[Chain]) -> None:
    for chain in chains:
        for other in chains:
            if other is not chain and (_inside(chain, other) or other.pattern == chain.pattern):
                raise PassOptionError(
                    f"grow-depth: {chain.name} and {other.name} overlap; grow them one after the other: "
                    f"grow-depth{{to={chain.name}:...}},grow-depth{{to={other.name}:...}}"
                )


def _inside(chain: Chain, other: Chain) -> bool:
    nodes = {name for block in other.blocks for name in block.nodes["eval"]}
    return all(name in nodes for block in chain.blocks for name in block.nodes["eval"])


def _blocks(chain: Chain, size: DepthSize) -> int:
    """Number of blocks of the chain at the wanted depth, which counts every numbered block of the container."""
    others = chain.siblings - len(chain.blocks)
    wanted = chain.siblings * size.number if size.relative else size.number
    text = f"{'*' if size.relative else ''}{size.number:g}"
    if wanted < chain.siblings:
        raise TargetError(
            f"chain {chain.name} has depth {chain.siblings}; depth {text} would shrink it, and grow-depth only grows"
        )
    step = chain.period
    own = len(chain.blocks) * size.number
    if size.relative and others and (wanted - chain.siblings) % step and own.is_integer() and not own % step:
        return int(own)  # the modules beside the chain are no whole periods of it: they do not count
    lower = chain.siblings + math.floor((wanted - chain.siblings) / step) * step
    if lower != wanted:
        why = f"its blocks repeat with period {step}" if step > 1 else "a depth is a whole number"
        raise TargetError(
            f"chain {chain.name} cannot have depth {wanted:g} ({text}): {why}; "
            f"the nearest are {lower} and {lower + step}"
        )
    return int(wanted) - others
