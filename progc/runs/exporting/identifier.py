"""The stage identifier of a network that is exported: the row of one stage is folded into the weights, or it is kept.

Sampling with the row of the last stage is what AutoProg-Zero publishes (Li et al. 2024, arXiv 2410.00350).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from progc.errors import CheckError, InputError, NotLosslessError
from progc.schedule.schedule import Schedule

if TYPE_CHECKING:
    from progc.ir.program import Program

KEEP, NULL = "keep", "null"


@dataclasses.dataclass(frozen=True)
class Identifier:
    """What becomes of the stage identifier.

    Attributes:
        row: the row that is folded; None: the null row.
        kept: whether the network keeps its identifier, with the stage as an input.
    """

    row: int | None = None
    kept: bool = False

    @classmethod
    def choose(cls, text: str | None, schedule: Schedule, stage: int) -> Identifier | None:
        """Reads `--sid`; returns None if the network has no identifier.

        Args:
            text: `keep`, `null` or the number of a row; None: the row of `stage`.
            schedule: the stages of the run.
            stage: index of the stage that is exported.

        Raises:
            InputError: the run has no identifier, or no such row.
        """
        rows = [own.sid for own in schedule.stages if own.sid is not None]
        if not rows:
            if text is not None:
                raise InputError(f"--sid {text}: the stages of this run have no identifier; leave out --sid")
            return None
        if text is None:
            return cls(schedule.stages[stage].sid)  # a stage without a row of its own trains the null row
        if text in (KEEP, NULL):
            return cls(kept=text == KEEP)
        count = max(len(schedule.stages), *(row + 1 for row in rows))
        if not text.isdecimal() or int(text) >= count:
            raise InputError(f"--sid {text}: expected a row from 0 to {count - 1}, {NULL} or {KEEP}")
        return cls(int(text))


@dataclasses.dataclass(frozen=True)
class Folding:
    """A network that is ready to be exported.

    Attributes:
        program: the network.
        reference: what it must compute: the network of the run, with its stage fixed where it is folded.
        row: the row that was folded; None if none was.
        into: parameters that took the row.
        tolerance: largest relative difference between both, in float64.
        max_abs, max_rel: differences of outputs in float64; None if nothing was folded.
    """

    program: Program
    reference: Program
    row: int | None = None
    into: tuple[str, ...] = ()
    tolerance: float = 0.0
    max_abs: float | None = None
    max_rel: float | None = None


def folded(program: Program, identifier: Identifier | None, *, seed: int = 0) -> Folding:
    """Folds the identifier into the weights, and measures that nothing else changes.

    Args:
        program: the network of the run; its stage is an input if it has an identifier.
        identifier: what becomes of it; None if there is none.
        seed: seed of the inputs that are compared.

    Raises:
        NotLosslessError: no parameter can take the row.
        CheckError: the folded network computes something else, which is an error of progc.
    """
    from progc.lift.revert import TOLERANCE, measure, tolerance
    from progc.passes.inject_sid import InjectSid
    from progc.passes.remove_sid import RemoveSid
    from progc.pipeline.manager import apply, run

    sid = program.sid
    if identifier is None or identifier.kept or sid is None:
        return Folding(program, program, tolerance=TOLERANCE)
    row = sid.null if identifier.row is None else identifier.row
    fixed = apply(program, [InjectSid(stage=str(row), dropout=0.0)])
    try:
        result, (step,) = run(program, [RemoveSid(stage=row)])
    except NotLosslessError as error:
        reason = str(error).removeprefix("remove-sid: ").rpartition("; ")[0]
        raise NotLosslessError(f"{reason}; give --sid {KEEP} to export the network with its identifier") from error
    assert step.lift is not None
    lifts = [step.lift]
    difference, limit = measure(fixed, result, lifts, seed=seed), tolerance(lifts)
    if not difference.max_rel <= limit:
        raise CheckError(
            f"row {row} folded into the weights changes outputs by {difference.max_rel:.1e} (float64, relative; limit "
            f"{limit:g}); nothing was written; please report this"
        )
    into = tuple(entry.name for entry in step.lift.tensors)
    return Folding(result, fixed, row, into, limit, difference.max_abs, difference.max_rel)
