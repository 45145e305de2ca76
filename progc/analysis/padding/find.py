"""The entry point: how an axis can be padded, decided once per axis and valid for every new size."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING

from progc.analysis.axes.dims import Atom
from progc.analysis.padding import transfer as _transfer  # noqa: F401  importing it registers the transfer functions
from progc.analysis.padding.proof import Forward, Tensors
from progc.analysis.padding.reading import Key, Reading
from progc.analysis.padding.search import Search
from progc.analysis.padding.states import Differs, PaddingRefused, PadState
from progc.ir.operations import DemandRefused
from progc.ir.program import MODES, Program

if TYPE_CHECKING:
    from progc.analysis.axes import AxisTable


@dataclasses.dataclass(frozen=True)
class Padding:
    """How to pad one axis: the state of each of its tensor dims. Valid for every new size."""

    states: Mapping[Key, PadState]

    @property
    def means(self) -> bool:
        """True if new units hold means somewhere; False if they are zero at every normalisation."""
        return any(state.new == "mean" for state in self.states.values())


_known: weakref.WeakKeyDictionary[AxisTable, dict[Atom, Padding | str]] = weakref.WeakKeyDictionary()


def padding_of(table: AxisTable, atom: Atom) -> Padding:
    """Returns how to pad `atom`, an axis that statistics are taken over.

    Raises:
        PaddingRefused: padding is not exact; the message names the operation and the reason.
    """
    known = _known.setdefault(table, {})
    if atom not in known:
        try:
            known[atom] = _find(table.program, atom)
        except DemandRefused as refused:
            known[atom] = str(refused)
    found = known[atom]
    if isinstance(found, str):
        raise PaddingRefused(found)
    return found


def can_pad(table: AxisTable, atom: Atom) -> bool:
    """Returns whether `padding_of` succeeds; the axis can then grow to any size."""
    try:
        padding_of(table, atom)
    except PaddingRefused:
        return False
    return True


def _find(program: Program, atom: Atom) -> Padding:
    tensors = Tensors()
    readings = {mode: Reading(program, mode, atom) for mode in MODES}
    searches = {mode: Search(readings[mode], tensors) for mode in MODES}
    for search in searches.values():
        search.run()
    while True:
        chosen = Tensors(tensors.states)
        try:
            for mode in ("eval", "train"):
                Forward(readings[mode], chosen, searches[mode].want).run()
        except Differs as differs:
            # A value that nothing normalises (the last sum of a stage) has the factor too. Each round demands one more.
            searches[differs.mode].ask(differs.value, PadState(differs.power, "any"))
        else:
            return Padding(chosen.states)
