"""Finds the facts under which both graphs can be walked at the new size without a contradiction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from progc.errors import TargetError
from progc.ir.program import MODES, Mode, Program
from progc.lift.extents import Key
from progc.transforms.resolution import rules as _rules  # noqa: F401  importing the package registers the rules
from progc.transforms.resolution.values import Indivisible, SizeClash, SizeFacts
from progc.transforms.resolution.walk import Walk

_TRIES = 2000
"""Maximum number of walks. Every choice is turned at most twice, so only a very large network comes near."""

Inputs = Callable[[SizeFacts], Sequence[Any]]
"""Values of the inputs under some facts."""


@dataclasses.dataclass(frozen=True)
class Solution:
    """Facts without a contradiction, and the walks under them, by graph."""

    facts: SizeFacts
    walks: dict[Mode, Walk]

    @property
    def open(self) -> list[Key]:
        """Choices that nothing in the graphs confirms or contradicts."""
        found: list[Key] = []
        for walk in self.walks.values():
            decided = walk.turned | self.facts.settled | walk.confirmed
            cuts = [key for key, (outer, _, inner, _) in walk.windows.items() if outer > 1 and inner > 1]
            found += [key for key in cuts if key not in decided]
        return found


def solve(program: Program, inputs: Inputs, start: SizeFacts) -> Solution:
    """Repeats the walks until nothing changes.

    Args:
        start: initial choices; not modified.

    Raises:
        Clash: no choice avoids a contradiction.
        Indivisible: with the choices that fit, windows, patches or strides do not divide this size.
    """
    facts = SizeFacts(start.scale, set(start.turned), set(start.alike), set(start.settled))
    first: SizeClash | None = None
    for _ in range(_TRIES):
        walks: dict[Mode, Walk] = {}
        walk: Walk | None = None
        try:
            for mode in MODES:
                walk = walks[mode] = Walk(program, mode, facts, inputs(facts))
                walk.run()
        except SizeClash as clash:
            first = first or clash
            assert walk is not None
            if not _turn(facts, walk, clash):
                raise first from clash
            continue
        if not any(walk.changed for walk in walks.values()):
            return Solution(facts, walks)
    raise TargetError(f"no consistent sizes after {_TRIES} tries")


def _turn(facts: SizeFacts, walk: Walk, clash: SizeClash) -> bool:
    """Turns another choice that the clash depends on, the latest first; returns False if all were tried."""
    order = {key: place for place, key in enumerate(walk.cuts)}
    keys = sorted((key for key in clash.cuts if key in order), key=order.__getitem__, reverse=True)
    tried = walk.turned | facts.settled
    for key in keys:
        if key not in tried and key not in walk.confirmed:
            facts.turned.add(key)
            facts.alike.add(walk.likeness[key])
            facts.assigned.clear()
            return True
    for key in keys:
        if key in walk.turned and key not in walk.confirmed:
            facts.turned.discard(key)
            facts.settled.add(key)
            facts.assigned.clear()
            return True
    return False


def structure(program: Program, inputs_at: Callable[[int], Inputs], scale: bool) -> tuple[SizeFacts, list[Key]]:
    """Returns choices that do not depend on the size, found at multiples of the captured size, which windows divide.

    Returns:
        The facts, and the choices that nothing decides; neither if the network takes no such multiple.
    """
    for factor in (2, 3, 4):
        try:
            found = solve(program, inputs_at(factor), SizeFacts(scale))
        except (SizeClash, Indivisible):
            continue
        return found.facts, found.open
    return SizeFacts(scale), []
