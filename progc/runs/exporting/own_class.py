"""Loads exported weights into the user's own class, strictly, and compares what it computes with the run's network."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from progc.errors import CaptureError, CheckError
from progc.models.source import Source
from progc.runs.exporting.identifier import Folding
from progc.runs.networks import ModelAndData, Phase
from progc.runs.stored import StoredRun

if TYPE_CHECKING:
    from torch import nn

    from progc.ir.check import Difference

EQUAL, NOT_TRIED = "equal", "not tried"


@dataclasses.dataclass(frozen=True)
class OwnClass:
    """What the user's class does with the exported weights.

    Attributes:
        status: `equal`: they load strictly and it computes what the run's network computes; or `not tried`.
        reason: why it was not tried.
        model: the module with the weights.
        difference: differences of outputs, in float64.
    """

    status: str
    reason: str = ""
    model: nn.Module | None = None
    difference: Difference | None = None


def full_source(run: StoredRun) -> Source | None:
    """Returns the source whose class the full network of a run has; None if the run grows to sizes of its own.

    Raises:
        InputError: the source or the target does not exist.
    """
    named = ModelAndData.of(run.config, run.schedule)
    if named.to is None:
        return named.source
    return named.target if isinstance(named.target, Source) else None


def in_own_class(run: StoredRun, stage: int, folding: Folding, *, phase: Phase, seed: int = 0) -> OwnClass:
    """Builds the class of the full network, loads the weights, and compares outputs in float64.

    A stage that is smaller than the full network fits the class built at the sizes of that stage, which progc cannot
    build; then nothing is compared.

    Args:
        run: the run.
        stage: index of the stage that the weights are of.
        folding: the network that is exported.
        phase: shows the work.
        seed: seed of the inputs.

    Raises:
        InputError, CaptureError: the class cannot be built or captured.
        CheckError: the weights do not load into it though the stage is the full network, or it computes something else.
    """
    from progc.capturing.capture import capture
    from progc.ir.check import compare

    source = full_source(run)
    if source is None:
        to = run.config.to if run.config.to is not None else run.schedule.model.target
        return OwnClass(NOT_TRIED, f"progc cannot build the class at the sizes {to}")
    program = folding.program
    with phase("class"):
        model = source.build(run.config.settings.seed)
        own, state = model.state_dict(), program.state_dict()
        odd = sorted({*own} ^ {*state}) or [name for name in own if own[name].shape != state[name].shape]
        if odd:
            point = run.schedule.stages[stage].point
            if stage + 1 == len(run.schedule.stages):
                raise CheckError(
                    f"the weights do not load into {type(model).__name__} of {source.text}: {odd[0]} differs; nothing "
                    "was written; please report this"
                )
            return OwnClass(
                NOT_TRIED,
                f"stage {stage} ({point.network}) is smaller than {source.text}; its weights load into the class built "
                "at these sizes",
            )
        model.load_state_dict(state, strict=True)
        try:
            captured = capture(model, *program.example)
        except CaptureError as error:
            if stage + 1 == len(run.schedule.stages):
                raise
            return OwnClass(NOT_TRIED, f"{source.text} does not take the inputs of stage {stage}: {error}")
        found = compare(folding.reference, captured, seed=seed)
    if not found.max_rel <= folding.tolerance:
        raise CheckError(
            f"{type(model).__name__} of {source.text} with the exported weights differs from the run's network by "
            f"{found.max_rel:.1e} (float64, relative); nothing was written; its code may have changed since it trained"
        )
    return OwnClass(EQUAL, model=model.eval(), difference=found)
