"""`remove-sid`: folds a stage identifier into the network's own parameters."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from progc.errors import NotLosslessError, TargetError
from progc.ir.program import Program
from progc.lift.entry import Add, TensorLift
from progc.lift.lift import Lift
from progc.pipeline.base import Pass, PassResult, option
from progc.transforms.sid.edit import without_sid
from progc.transforms.sid.folding import find_fold, targets_of

_KEEP = "keep the identifier and fix its stage with inject-sid{{dropout=0 stage={}}}"


@dataclasses.dataclass(frozen=True)
class RemoveSid(Pass):
    """Removes a stage identifier: the row of one stage becomes part of the network's own parameters.

    Idea: after the last stage the row is a constant. A constant that is added to a value can be added to the bias, the
    position table or the embedding that the value is a sum with. (AutoProg-Zero, Li et al. 2024, keeps the table.)
    Preserved: the function of the network at that stage, up to the rounding of one sum in the parameters' dtype.
    Needs: a parameter all of whose readers are on the way to the values that get the row.
    Leaves behind: the graphs, inputs and names that the network had before `inject-sid`, and a lift that folds the row
    of each averaged copy into that copy.
    """

    name: ClassVar[str] = "remove-sid"

    stage: int | None = option(
        None, help="which stage to keep, 0 to K-1, or K for the null row; none: the fixed one, else the last"
    )

    def run(self, program: Program) -> PassResult:
        """Removes the identifier; a program that has none stays unchanged.

        Raises:
            TargetError: no such stage.
            NotLosslessError: no parameter can absorb the row.
        """
        sid = program.sid
        if sid is None:
            return PassResult(program, changed=False, lossless=True)
        stage = self.stage
        if stage is None:
            stage = sid.stage if sid.stage is not None else sid.stages - 1
        if not 0 <= stage <= sid.null:
            raise TargetError(
                f"remove-sid: stage={stage}: expected 0 to {sid.stages - 1}, or {sid.null} for the null row"
            )
        if sid.form != "add":
            raise NotLosslessError(
                f"remove-sid: a token at {sid.site} cannot be folded into parameters; {_KEEP.format(stage)}"
            )
        plain, places = without_sid(program)
        fold = find_fold(plain, places)
        if not fold.targets:
            raise NotLosslessError(
                f"remove-sid: no parameter can absorb the row that is added at {sid.site}: {fold.reason}; "
                f"{_KEEP.format(stage)}"
            )
        entries = tuple(
            TensorLift(name, name, adds=(Add(sid.table, stage, dim),)) for name, dim in targets_of(fold, plain.tied)
        )
        lift = Lift(entries, removed=frozenset((sid.table,)))
        made = lift.apply(program.tensors)
        result = plain.replace(tensors={name: made[name] for name in plain.tensors})
        names = ", ".join(entry.name for entry in entries)
        notes = [f"stage {stage} folded into {names}"]
        if sid.input is not None:
            notes.append(f"the input `{sid.input}` was removed; the other stages are lost")
        dropped = f"samples no longer get the null row with probability {sid.dropout:g}"
        return PassResult(
            result,
            changed=True,
            counts={"parameters that took the row": len(entries)},
            lift=lift,
            notes=tuple(notes),
            lossless=None if sid.stage is None else stage == sid.stage,
            eval_only=(dropped,) if sid.dropout else (),
        )
