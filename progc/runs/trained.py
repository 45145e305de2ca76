"""The network of a run as a program: its graph from configuration and schedule, its weights from the run's folder.

The graph of a stage is the one that the trainer trains: the source is built and captured again, and the stage is cut
out of it on shapes (`progc.schedule.stage_programs`). All tensors that a state dict holds then come from the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from progc.errors import InputError
from progc.runs.folder import CONFIG
from progc.runs.networks import ModelAndData, Note, Phase
from progc.runs.stored import StoredRun, StoredWeights

if TYPE_CHECKING:
    import torch

    from progc.ir.program import Program


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """One stage's network of a run, with the weights that it has there.

    Attributes:
        run: the run.
        weights: where the weights are.
        average: decay of the averaged copy that stands for the weights; None: the weights themselves.
    """

    run: StoredRun
    weights: StoredWeights
    average: float | None = None

    @classmethod
    def open(
        cls, path: str | Path, *, stage: int | None = None, average: float | None = None, note: Note = lambda text: None
    ) -> TrainedNetwork:
        """Finds the weights of a run; builds and imports nothing.

        Args:
            path: folder of the run, or of a checkpoint.
            stage: the stage; None: that of the newest weights.
            average: decay of the averaged copy to take.
            note: called with a sentence for every damaged checkpoint that is passed over.

        Raises:
            InputError: the folder holds no run, or no such stage or average.
        """
        run = StoredRun.open(path)
        weights = run.weights(stage, note)
        weights.check_average(average)
        return cls(run, weights, average)

    @property
    def origin(self) -> str:
        """Where the weights come from, as text: the path of a file, or of a checkpoint."""
        return str(self.weights.file(self.average))

    def program(self, *, phase: Phase, note: Note) -> Program:
        """Builds the program of the stage, with the weights of the run.

        Raises:
            InputError: the source cannot be built or is not the network of the run any more, or the weights do not fit.
            CaptureError, TargetError: as for training.
        """
        found = stage_program(self.run, self.weights.stage, phase=phase)
        average = f", average of decay {self.average!r}" if self.average is not None else ""
        note(f"weights of {self.run.path}: stage {self.weights.stage}, from {self.origin}{average}")
        with phase("weights"):
            return with_tensors(found, self.weights.tensors(self.average), self.weights.file(self.average))


def stage_program(run: StoredRun, index: int, *, phase: Phase) -> Program:
    """Returns the program of a stage of a run; its parameters have shapes only.

    Raises:
        InputError: the source cannot be built, or is not the network of the run any more, or the run has not yet
            decided the stage.
        CaptureError, TargetError: as for training.
    """
    from progc.schedule.stage_programs import StagePrograms

    config = run.config
    if index in run.schedule.open:
        raise InputError(
            f"{run.path}: the search of stage {index} has not yet chosen its network; resume the run, or take an "
            "earlier stage with --stage"
        )
    try:
        # The weights that the run started from are not needed; all others come from the run itself.
        named = dataclasses.replace(ModelAndData.of(config, run.schedule), weights=None)
    except InputError as error:
        text = f"{run.path}: {error} (names in its {CONFIG} are relative to the folder in which it was trained)"
        raise InputError(text) from error
    # Built for real: a skeleton draws no random numbers, and a buffer that no state dict holds may be random.
    start = named.captured(real=True, phase=phase, note=lambda text: None)
    full = named.grown(start, real=False, phase=phase, note=lambda text: None)
    try:
        run.schedule.check(full)
    except InputError as error:
        known = run.schedule.model
        raise InputError(
            f"{config.source} is not the network that {run.path} trained ({known.class_name} with {known.parameters:,} "
            f"parameters, now {full.class_name} with {full.num_parameters():,}); restore its code of that time"
        ) from error
    with phase("stages"):
        return StagePrograms.of(full, run.schedule).outline(index)


def with_tensors(program: Program, tensors: Mapping[str, torch.Tensor], origin: Path) -> Program:
    """Returns the program with the persistent tensors replaced by values that were stored.

    Args:
        program: the program; values of its other tensors are kept.
        tensors: the tensors by name. One of several tied names is enough.
        origin: where they come from, for the message.

    Raises:
        InputError: names or shapes differ.
    """
    from torch import nn

    from progc.files.weights import check_fit
    from progc.ir.deferred import values

    own = program.persistent()
    first = {name: program.tied.get(name, name) for name in own}
    found: dict[str, torch.Tensor] = {}
    for name in own:
        if name in tensors:
            found.setdefault(first[name], tensors[name])
    optional = {name for name in own if first[name] in found}
    check_fit(origin, tensors, own, program.class_name.rpartition(".")[2], optional)
    made: dict[str, torch.Tensor] = {}
    for name, old in program.tensors.items():
        canonical = program.tied.get(name, name)
        if canonical not in made:
            # A copy: tensors of a checkpoint are parts of one buffer, which would be saved and kept in memory whole.
            new = found[canonical].to(old.dtype, copy=True) if canonical in found else values(old)
            if isinstance(old, nn.Parameter) and not isinstance(new, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad)
            made[canonical] = new
    return program.replace(tensors={name: made[program.tied.get(name, name)] for name in program.tensors}, averages=())
