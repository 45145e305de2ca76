"""Depth targets: reads `12`, `*2`, `0.5` or `layer3:23`, and finds the new number of blocks of every chain.

Growing and shrinking use the same rules. A depth counts every numbered block of the container, as users count it. A
depth for all chains skips a chain inside the blocks of another one, and all but the longest chain of one container.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Collection, Sequence
from fractions import Fraction

from progc.analysis.chains import Chain, ChainTable
from progc.errors import PassOptionError, TargetError, did_you_mean

_DEPTH = re.compile(r"(?:(?P<chain>.+):)?(?P<times>\*)?(?P<number>\d+(?:\.\d*)?|\.\d+)")


@dataclasses.dataclass(frozen=True)
class DepthSize:
    """A depth for one or for all chains.

    Attributes:
        chain: name or glob of the chains; None for all selected chains.
        number: number of blocks, or a factor of the present depth if `relative`.
        relative: whether `number` is a factor.
        text: the depth as the user wrote it.
    """

    chain: str | None
    number: Fraction
    relative: bool
    text: str


def parse_depth(text: str, *, shrink: bool = False) -> DepthSize:
    """Reads a depth such as `12`, `*2`, `*1.5`, `blocks:12` or `layers.*:*2`.

    Args:
        text: a number of blocks or a factor, for one chain with its name or glob and a colon before it.
        shrink: reads a depth of `shrink`, where a number with a point is a factor (`0.5`) and factors end at 1.

    Raises:
        PassOptionError: `text` is not a depth.
    """
    match = _DEPTH.fullmatch(text.strip())
    number = Fraction(match["number"]) if match else Fraction(0)
    point = match is not None and "." in match["number"]
    relative = match is not None and bool(match["times"] or (shrink and point))
    if number <= 0 or (not relative and number.denominator != 1) or (shrink and relative and number > 1):
        option, blocks, factor = ("shrink: depth", 6, "up to 1 (0.5)") if shrink else ("grow-depth: to", 12, "(*2)")
        raise PassOptionError(
            f"{option}={text}: expected a number of blocks ({blocks}), a factor {factor}, or either for one chain "
            f"(blocks:{blocks})"
        )
    assert match is not None
    return DepthSize(match["chain"], number, relative, text.strip())


@dataclasses.dataclass(frozen=True)
class DepthChoice:
    """The depths that a program's chains get.

    Attributes:
        blocks: new number of blocks for every chain that has a depth.
        unnamed: names of the chains that got the depth for all without being named. They may be left unchanged.
        notes: which chains were left unchanged, and which depths were rounded.
    """

    blocks: tuple[tuple[Chain, int], ...]
    unnamed: frozenset[str]
    notes: tuple[str, ...]


def choose(
    table: ChainTable,
    sizes: Sequence[DepthSize],
    names: Sequence[str] = (),
    without: Collection[str] = (),
    *,
    shrink: bool = False,
) -> DepthChoice:
    """Returns the new number of blocks of every chain that a depth is given for.

    Args:
        table: the program's chains.
        sizes: depths; a depth for a chain by name overrides one for all.
        names: names or globs of the chains that a depth for all applies to; empty: every chain.
        without: names of chains that a depth for all skips.
        shrink: the depths may only be smaller than the present ones; otherwise they may only be larger.

    Raises:
        PassOptionError: a name that no chain has, or chains that overlap.
        TargetError: a depth that the chain cannot have.
    """
    user, verb = ("shrink", "shrink") if shrink else ("grow-depth", "grow")
    if shrink and sizes and not len(table):
        raise TargetError(
            f"shrink: depth={sizes[0].text}: this network has no chain of blocks; progc inspect --chains says why"
        )
    chosen: dict[str, DepthSize] = {}
    notes: list[str] = []
    unnamed: set[str] = set()
    general = [size for size in sizes if size.chain is None]
    explicit = {chain.name for name in names for chain in matching(table, name, user)}
    if general:
        selected = [chain for chain in table if not names or chain.name in explicit]
        selected = [chain for chain in selected if chain.name not in without]
        for chain in selected:
            other = covering(chain, selected)
            if other is None:
                chosen[chain.name] = general[-1]
                unnamed.update([] if names else [chain.name])
            else:
                where = "lies inside blocks of" if _inside(chain, other) else "shares its container with"
                notes.append(f"{chain.name} {where} {other.name}, which {verb}s instead; name it to {verb} it")
    for size in sizes:
        if size.chain is not None:
            found = matching(table, size.chain, user)
            chosen.update({chain.name: size for chain in found})
            unnamed.difference_update(chain.name for chain in found)
    blocks: list[tuple[Chain, int]] = []
    for chain in table:
        if chain.name in chosen:
            number, note = _blocks(chain, chosen[chain.name], shrink, nearest=chain.name in unnamed)
            blocks.append((chain, number))
            notes += [note] if note else []
    _check_apart([chain for chain, number in blocks if number != len(chain.blocks)], shrink)
    return DepthChoice(tuple(blocks), frozenset(unnamed), tuple(notes))


def matching(table: ChainTable, name: str, user: str = "grow-depth") -> list[Chain]:
    """Returns the chains called `name`, else those that the glob `name` matches.

    Raises:
        PassOptionError: no chain matches. The message starts with `user`, the name of a pass.
    """
    found = [chain for chain in table if chain.name == name] or [
        chain for chain in table if fnmatch.fnmatchcase(chain.name, name)
    ]
    if not found:
        known = [chain.name for chain in table]
        hint = did_you_mean(name, known) or (f"; chains are {', '.join(known)}" if known else "; it has no chains")
        refused = next(
            (f"; {entry.name} is not a chain: {entry.reason}" for entry in table.refused if entry.name == name), ""
        )
        raise PassOptionError(f"{user}: the program has no chain `{name}`{refused or hint}")
    return found


def covering(chain: Chain, selected: Sequence[Chain]) -> Chain | None:
    """Returns the chain that changes in place of `chain` where one depth applies to all of `selected`, if any.

    A chain inside another one's blocks is covered by the outer one. Of the chains in one container the longest covers
    the others, the last one of equally long ones.
    """
    for other in selected:
        if other is not chain and _inside(chain, other):
            return other
    rivals = [other for other in selected if other.pattern == chain.pattern]
    best = max(enumerate(rivals), key=lambda item: (len(item[1].blocks), item[0]))[1] if rivals else chain
    return best if best is not chain else None


def least_depth(chain: Chain, regrowable: bool) -> int:
    """Returns the smallest depth that a chain can shrink to.

    Args:
        chain: the chain; the other blocks of its container count.
        regrowable: whether grow-depth must find the chain again, which needs one period, or two blocks if it is dense.
    """
    others, step = chain.siblings - len(chain.blocks), chain.period
    if regrowable:
        return min(others + (2 if chain.kind == "dense" else step), chain.siblings)
    return others if others else step  # a chain may go entirely where other blocks of its container stay


def allowed_depths(chain: Chain, regrowable: bool = True) -> list[int]:
    """Returns every depth that a chain can shrink to, ascending; arguments as for `least_depth`."""
    least = least_depth(chain, regrowable)
    return [depth for depth in range(chain.siblings, 0, -chain.period) if depth >= least][::-1]


def _check_apart(chains: Sequence[Chain], shrink: bool) -> None:
    verb, user, option = ("shrink", "shrink", "depth") if shrink else ("grow", "grow-depth", "to")
    for chain in chains:
        for other in chains:
            if other is not chain and (_inside(chain, other) or other.pattern == chain.pattern):
                raise PassOptionError(
                    f"{user}: {chain.name} and {other.name} overlap; {verb} them one after the other: "
                    f"{user}{{{option}={chain.name}:...}},{user}{{{option}={other.name}:...}}"
                )


def _inside(chain: Chain, other: Chain) -> bool:
    nodes = {name for block in other.blocks for name in block.nodes["eval"]}
    return all(name in nodes for block in chain.blocks for name in block.nodes["eval"])


def _blocks(chain: Chain, size: DepthSize, shrink: bool, nearest: bool) -> tuple[int, str]:
    """Returns the chain's number of blocks at a depth, and a note if the depth was rounded.

    Args:
        nearest: takes the nearest possible depth for a factor of `shrink`, instead of refusing it.
    """
    user = "shrink" if shrink else "grow-depth"
    others, step, present = chain.siblings - len(chain.blocks), chain.period, chain.siblings
    wanted = present * size.number if size.relative else size.number
    own = f"{chain.name}:{'*' if size.relative else ''}{float(size.number):g}"
    if wanted > present and shrink:
        raise TargetError(
            f"shrink: chain {chain.name} has depth {present}; depth {size.text} is larger, use grow-depth{{to={own}}}"
        )
    if wanted < present and not shrink:
        raise TargetError(
            f"grow-depth: chain {chain.name} has depth {present}; depth {size.text} is smaller, use "
            f"shrink{{depth={own}}}"
        )
    if not shrink and size.relative and others and (wanted - present) % step:
        grown = len(chain.blocks) * size.number
        if grown.denominator == 1 and not grown % step:
            return int(grown), ""  # the other modules of the container are not whole periods: they do not count
    rounding = shrink and size.relative and nearest
    least = least_depth(chain, regrowable=rounding) if shrink else present
    lower = present + math.floor((wanted - present) / step) * step
    if lower == wanted and wanted >= least:
        return int(wanted) - others, ""
    upper = min(lower + step, present) if shrink else lower + step
    near = sorted({max(lower, least), max(upper, least)})
    if wanted < least:
        why = f"at least {least} blocks must stay"
    else:
        why = f"its blocks repeat with period {step}" if step > 1 else "a depth is an integer"
    if not rounding:
        raise TargetError(
            f"{user}: chain {chain.name} cannot have depth {float(wanted):g} ({size.text}): {why}; "
            f"{'the nearest is' if len(near) == 1 else 'the nearest are'} {' and '.join(map(str, near))}"
        )
    best = min(near, key=lambda depth: (abs(depth - wanted), -depth))
    return best - others, f"{chain.name}: depth {float(wanted):g} of {present} becomes {best}: {why}"
