"""Builds the deeper program: graphs with inserted blocks, names, ties and one lift per tensor.

With MoGrow, inserted blocks take their values from an averaged copy of the weights (AutoProg, Li et al., CVPR 2022).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from progc.analysis.chains import Chain
from progc.errors import PassOptionError, TargetError
from progc.ir.graphs import propagate
from progc.ir.program import Average, Program, TensorSpec
from progc.lift.entry import TensorLift
from progc.lift.lift import Lift
from progc.transforms.depth.dense import insert_dense
from progc.transforms.depth.insertion import Editor, Inserted
from progc.transforms.depth.naming import BlockPlace, Naming, in_order, name_places


class CannotGrow(TargetError):
    """A chain that cannot take more blocks, with any weights."""

    def __init__(self, chain: Chain, reason: str) -> None:
        super().__init__(reason)
        self.chain = chain


class GrownChains:
    """The draft of a deeper program.

    Attributes:
        inserted: inserted blocks in the order of data flow.
        lifts: tensor lifts by name after growth. Callers refine those of inserted blocks, then call `finish`.
        draft: the grown program with the old tensors under their new names. Its graphs, names, ties and shapes are
            final, its values are not.
    """

    def __init__(self, program: Program, growing: Sequence[tuple[Chain, Sequence[BlockPlace]]], random: bool) -> None:
        self._program = program
        self.lifts: dict[str, TensorLift] = {}
        self.inserted: list[Inserted] = []
        self._init = "random" if random else "copy"
        self._order: dict[str, tuple[int, int, int]] = {}
        self._renamed: dict[str, str] = {}
        self._tied: dict[str, str] = {}
        self._resized = False
        editor = Editor(program)
        namings = [name_places(program, chain, places) for chain, places in growing]
        for naming in namings:
            editor.rename(naming.tensors, naming.labels)
            self._renamed.update(naming.tensors)
            self._order.update(naming.order)
        self.lifts.update({new: TensorLift(new, old) for old, new in self._renamed.items()})
        for old, canonical in program.tied.items():
            self._tied[self._renamed.get(old, old)] = self._renamed.get(canonical, canonical)
        for (chain, places), naming in zip(growing, namings, strict=True):
            self._lift(editor, chain, places, naming)
            if chain.kind == "dense":
                try:
                    insert_dense(editor, chain, places, naming, self.lifts, random)
                except TargetError as error:
                    raise CannotGrow(chain, str(error)) from error
                self._resized = True
            else:
                self.inserted += editor.insert(chain, places, naming)
        self.draft = dataclasses.replace(
            program,
            graphs=editor.finish(),
            tensors={name: program.tensors[source] for name, source in self._origins().items()},
            specs=self._specs(),
            tied=self._tied,
        )

    def finish(self, seed: int, average: Average | None = None, everything: bool = False) -> tuple[Program, Lift]:
        """Returns the grown program and the lift that made its tensors.

        Args:
            seed: seed of new random weights.
            average: averaged copy that inserted tensors take their values from, instead of the program's weights.
            everything: whether all tensors take their values from `average`.
        """
        for alias, canonical in self._tied.items():
            if alias in self.lifts and self.lifts[alias].fresh:
                self.lifts[alias] = dataclasses.replace(self.lifts[canonical], name=alias)
        if average is not None:
            self.lifts.update(averaged_lifts(self._origins(), self.lifts, everything))
        names = set(self.draft.tensors)
        removed = frozenset(name for name in self._renamed if name not in names)
        lift = Lift(tuple(self.lifts.values()), seed=seed, removed=removed)
        made = lift.apply(self._program.tensors, None if average is None else average.tensors)
        tensors = {name: made[self._tied.get(name, name)] for name in self.draft.tensors}
        program = dataclasses.replace(self.draft, tensors=tensors)
        if self._resized:
            for mode, graph in program.graphs.items():
                propagate(program, graph, mode)
        return program, lift

    def _lift(self, editor: Editor, chain: Chain, places: Sequence[BlockPlace], naming: Naming) -> None:
        """Adds the lifts of inserted blocks: their own tensors are new, those tied to outside tensors stay tied."""
        program = self._program
        for place, names in zip(places, naming.copies, strict=True):
            owned = editor.owned(chain, place.source)
            for old, new in names.items():
                canonical = program.tied.get(old, old)
                if canonical in owned:
                    self.lifts[new] = TensorLift(new, old, fresh=True, init=self._init)
                    if canonical != old:
                        self._tied[new] = names[canonical]
                else:
                    self.lifts[new] = TensorLift(new, canonical)
                    self._tied[new] = self._renamed.get(canonical, canonical)

    def _origins(self) -> dict[str, str]:
        """Every new name, in the order of the user's class, with the old name it is made from."""
        origin = {self._renamed.get(old, old): old for old in self._program.tensors}
        origin.update({new: entry.source for new, entry in self.lifts.items()})
        ordered = in_order(list(self._program.tensors), origin, self._order)
        return {name: origin[name] for name in ordered}

    def _specs(self) -> dict[str, TensorSpec]:
        return {name: self._program.specs[source] for name, source in self._origins().items()}


def chosen_average(program: Program, decay: float | None) -> Average | None:
    """Returns the program's average of this decay, or the slowest one; None if it carries no average.

    Raises:
        PassOptionError: the program carries averages, but none of this decay.
    """
    if decay is None or not program.averages:
        # An average of unknown decay was read from a file, and is the only one.
        return max(program.averages, key=lambda average: average.decay or 0.0, default=None)
    found = next((average for average in program.averages if average.decay == decay), None)
    if found is None:
        known = ", ".join("unknown" if average.decay is None else f"{average.decay}" for average in program.averages)
        raise PassOptionError(f"grow-depth: ema={decay}: no averaged copy has this decay; the program carries {known}")
    return found


def averaged_note(average: Average | None, source: str) -> str:
    """Describes where the values of new blocks come from."""
    if average is None:
        return "mogrow: the program carries no averaged copy (EMA), so new blocks interpolate its own weights"
    of = "an average" if average.decay is None else f"the average with decay {average.decay}"
    return f"mogrow: {'all tensors' if source == 'all' else 'new blocks'} are taken from {of}"


def averaged_lifts(
    origins: Mapping[str, str], lifts: Mapping[str, TensorLift], everything: bool
) -> dict[str, TensorLift]:
    """Returns the lifts that read the average: those of inserted tensors, or of every tensor.

    Args:
        origins: every name after growth with the name it comes from.
        lifts: the existing lifts, by name after growth.
    """
    found = {name: entry for name, entry in lifts.items() if entry.fresh}
    if everything:
        found = {name: lifts.get(name, TensorLift(name, source)) for name, source in origins.items()}
    return {name: dataclasses.replace(entry, average=True) for name, entry in found.items()}
