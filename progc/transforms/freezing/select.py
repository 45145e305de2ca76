"""Selects parameters by levels, a closed prefix, kinds, globs and functions, and returns a set of names."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Sequence

from progc.errors import PassOptionError, did_you_mean, first_of
from progc.ir.program import Program
from progc.transforms.freezing.blocks import Blocks, Unit
from progc.transforms.freezing.kinds import KINDS, Kinds
from progc.transforms.freezing.setting import can_train, fixed_parameters

_PLACE = re.compile(r"(?P<chain>.+)\[(?P<start>-?[0-9]*)(?P<colon>:?)(?P<stop>-?[0-9]*)\]")


@dataclasses.dataclass(frozen=True)
class Selection:
    """Describes the parameters that train, from coarse to fine; the fields are applied in this order.

    Attributes:
        level, of: block b trains if b mod `of` is less than `level`, counted over all blocks in execution order.
        prefix: number of frozen blocks from the start, with the layers between them.
        suffix: number of frozen blocks from the end.
        only: kinds that train inside of blocks (and outside, unless `rest` is set); everything else is frozen.
        rest: whether parameters outside of blocks train: "trainable", "frozen", or None: they train, except as `only`
            says.
        stem: whether everything before the first block is frozen.
        freeze: selectors of further parameters to freeze.
        train: selectors of parameters that train nevertheless; if given alone, nothing else trains.
    """

    level: int | None = None
    of: int = 4
    prefix: int | None = None
    suffix: int | None = None
    only: tuple[str, ...] = ()
    rest: str | None = None
    stem: bool = False
    freeze: tuple[str, ...] = ()
    train: tuple[str, ...] = ()

    def check(self) -> None:
        """Checks the numbers and kinds.

        Raises:
            PassOptionError: a value that no program could satisfy.
        """
        if self.of < 1:
            raise PassOptionError(f"freeze: of={self.of}: expected the number of levels, at least 1")
        if self.level is not None and not 1 <= self.level <= self.of:
            raise PassOptionError(f"freeze: level={self.level}: expected 1 to {self.of} (of={self.of})")
        for name, count in (("prefix", self.prefix), ("suffix", self.suffix)):
            if count is not None and count < 0:
                raise PassOptionError(f"freeze: {name}={count}: expected a number of blocks, at least 0")
        for kind in self.only:
            if kind not in KINDS:
                hint = did_you_mean(kind, KINDS) or f"; kinds are {', '.join(KINDS)}"
                raise PassOptionError(f"freeze: unknown kind `{kind}`{hint}")


@dataclasses.dataclass(frozen=True)
class Selected:
    """Canonical names of the parameters that train, and notes about the choice."""

    names: frozenset[str]
    notes: tuple[str, ...]


def select(program: Program, selection: Selection, blocks: Blocks | None = None) -> Selected:
    """Returns the parameters of a program that train.

    Parameters that did not train when the program was captured train only if `train` selects them.

    Raises:
        PassOptionError: a number out of range, a selector or kind that matches nothing, or nothing left to train.
    """
    selection.check()
    blocks = blocks or Blocks(program)
    units = blocks.units
    everything = frozenset(name for name, tensor in program.parameters() if can_train(tensor))
    fixed = fixed_parameters(program)
    frozen_units = _frozen_units(units, selection)
    alone = dataclasses.replace(selection, train=(), of=4) == Selection()
    names = frozenset() if selection.train and alone else everything - fixed
    for unit in frozen_units:
        names -= unit.parameters
    if selection.prefix:
        names -= blocks.between(selection.prefix)
    if selection.only:
        wanted = _of_kinds(program, blocks, selection.only)
        names -= (blocks.inside if selection.rest is not None else everything) - wanted
    if selection.rest == "frozen":
        names &= blocks.inside
    if selection.stem:
        names -= blocks.stem
    for selector in selection.freeze:
        names -= _matching(program, units, selector)
    for selector in selection.train:
        names |= _matching(program, units, selector) & everything
    if not names:
        raise PassOptionError("freeze: nothing is left to train; freeze fewer blocks, or select parameters with train=")
    return Selected(names, tuple(_notes(program, blocks, selection, names, fixed)))


def _frozen_units(units: Sequence[Unit], selection: Selection) -> list[Unit]:
    counted = [(name, getattr(selection, name)) for name in ("level", "prefix", "suffix")]
    asked = [name for name, count in counted if count is not None] + ["stem"] * selection.stem
    if asked and not units:
        raise PassOptionError(
            f"freeze: {asked[0]} counts blocks, and the program has no chain; use only=, freeze= or train="
        )
    for name, count in counted[1:]:
        if count is not None and count > len(units):
            raise PassOptionError(
                f"freeze: {name}={count}, but the program has {len(units)} blocks; expected 0 to {len(units)}"
            )
    frozen = [unit for b, unit in enumerate(units) if selection.level and b % selection.of >= selection.level]
    frozen += units[: selection.prefix or 0]
    return frozen + list(units[len(units) - (selection.suffix or 0) :])


def _of_kinds(program: Program, blocks: Blocks, kinds: Sequence[str]) -> frozenset[str]:
    found = Kinds(program, blocks).found
    for kind in kinds:
        if not found[kind]:
            there = ", ".join(name for name in KINDS if found[name])
            raise PassOptionError(f"freeze: only={kind} matches no parameter; this program has {there}")
    return frozenset().union(*(found[kind] for kind in kinds))


def _matching(program: Program, units: Sequence[Unit], selector: str) -> frozenset[str]:
    """Canonical names of the parameters that a selector matches: names, modules, chains, blocks of a chain."""
    names = [name for name, spec in program.specs.items() if spec.kind == "parameter"]
    place = _PLACE.fullmatch(selector)
    chains = {unit.chain for unit in units}
    if place is not None and place["chain"] in chains:
        own = [unit for unit in units if unit.chain == place["chain"]]
        inside = {name for unit in own[_slice(place)] for name in unit.parameters}
        if not inside:
            raise PassOptionError(f"freeze: `{selector}` matches nothing; chain {place['chain']} has {len(own)} blocks")
        return frozenset(inside)
    found = {name for name in names if any(fnmatch.fnmatchcase(name, text) for text in (selector, selector + ".*"))}
    found |= {name for unit in units if unit.chain == selector for name in unit.parameters}
    if not found:
        known = [*names, *chains, *(unit.label for unit in units)]
        hint = (
            did_you_mean(selector.partition("[")[0], known) or "; expected a name or glob of parameters, or chain[a:b]"
        )
        raise PassOptionError(f"freeze: `{selector}` matches no parameter, block or chain{hint}")
    return frozenset(program.tied.get(name, name) for name in found)


def _slice(place: re.Match[str]) -> slice:
    start = int(place["start"]) if place["start"] else None
    if place["colon"]:
        return slice(start, int(place["stop"]) if place["stop"] else None)
    return slice(start, start + 1 or None) if start is not None else slice(0)


def _notes(
    program: Program, blocks: Blocks, selection: Selection, names: frozenset[str], fixed: frozenset[str]
) -> list[str]:
    notes = []
    whole = [unit.label for unit in blocks.units if unit.parameters <= names | fixed]
    if selection.level or selection.prefix or selection.suffix:
        shown = ", ".join(whole) if len(whole) <= 8 else f"{', '.join(whole[:6])}, ..., {whole[-1]}"
        notes.append(f"{len(whole)} of {len(blocks.units)} blocks train completely: {shown or 'none'}")
    kept = sorted(fixed - names)
    if kept:
        notes.append(f"not trainable in the captured model, and left frozen: {first_of(kept, 3)}; train= selects them")
    if selection.stem:
        for alias, canonical in program.tied.items():
            if canonical in blocks.stem - names and not alias.startswith(canonical):
                notes.append(f"{canonical} is frozen with the stem, and so is {alias}, which is tied to it")
    return notes
