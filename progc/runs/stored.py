"""Reads the folder of a run, or one checkpoint of it: the configuration, the schedule, and where the weights are.

Nothing is built here, and no code of the user runs. A run may be finished, interrupted, or training in another process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from progc.checkpoints.manifest import NewerFormat, read_manifest
from progc.checkpoints.searching import is_checkpoint, steps, verify
from progc.errors import InputError
from progc.files.reading import MAX_GIVEN, read_object
from progc.runs.config import Config, checked
from progc.runs.folder import AVERAGE, CONFIG, WEIGHTS, is_run
from progc.schedule.schedule import PLAN, Schedule

if TYPE_CHECKING:
    import torch

    from progc.checkpoints import Manifest

_SCHEDULE = "schedule.json"
_UNNAMED = (
    "so the network of the run has no name that progc could open (it was trained from Python); load its weights into "
    "your own model with progc.checkpoints.load(CHECKPOINT).weights()"
)


@dataclasses.dataclass(frozen=True)
class StoredWeights:
    """The weights of one stage of a run, on disk.

    Attributes:
        path: `model.safetensors` of a finished run, or a checkpoint that verified.
        stage: index of the stage that they are of.
        step: optimizer steps done; None if no checkpoint tells it.
        decays: decays of the averaged copies, ascending.
        manifest: manifest of the checkpoint; None for a file of weights.
    """

    path: Path
    stage: int
    step: int | None
    decays: tuple[float, ...]
    manifest: Manifest | None = None

    def tensors(self, average: float | None = None) -> dict[str, torch.Tensor]:
        """Returns all tensors by name, on the CPU.

        Args:
            average: decay of the averaged copy to take instead of the weights.

        Raises:
            InputError: there is no such average, or a file is damaged.
        """
        self.check_average(average)
        if self.manifest is not None:
            from progc.checkpoints.loading import Checkpoint

            checkpoint = Checkpoint(self.path, self.manifest)
            return checkpoint.weights() if average is None else checkpoint.average(average)
        return _read(self.file(average))

    def file(self, average: float | None = None) -> Path:
        """Returns the file or the checkpoint that holds the weights, or the average of this decay."""
        if average is None or self.manifest is not None:
            return self.path
        return _average_file(self.path.parent, average)

    def check_average(self, average: float | None) -> None:
        """Checks that there is an averaged copy of this decay.

        Raises:
            InputError: there is none; the message lists the decays.
        """
        if average is None or average in self.decays:
            return
        known = f"it has {', '.join(map(repr, self.decays))}" if self.decays else "it has none (train.ema was empty)"
        raise InputError(f"{self.path} has no average of decay {average!r}; {known}")


@dataclasses.dataclass(frozen=True)
class StoredRun:
    """A run on disk.

    Attributes:
        path: the folder that was given: of a run, or of one checkpoint.
        config: the configuration.
        schedule: the stages.
    """

    path: Path
    config: Config
    schedule: Schedule

    @classmethod
    def open(cls, path: str | Path) -> StoredRun:
        """Reads configuration and schedule.

        Raises:
            InputError: the folder is not that of a run, it was trained from Python, or a file is damaged.
        """
        folder = Path(path)
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise InputError(f"{folder} {what}; expected the folder of a run that progc train wrote")
        plan = folder / (_SCHEDULE if is_checkpoint(folder) else PLAN)
        if not (folder / CONFIG).is_file():
            if is_run(folder):
                raise InputError(f"{folder} holds no {CONFIG}, {_UNNAMED}")
            raise InputError(f"{folder} has no {CONFIG}, so it is not a run; expected a folder that progc train wrote")
        config = checked(read_object(folder / CONFIG, MAX_GIVEN), where=str(folder / CONFIG))
        if not plan.is_file():
            raise InputError(f"{folder} has no {plan.name}, so it is not a run; expected a folder of progc train")
        return cls(folder, config, Schedule.read(plan))

    @property
    def finished(self) -> bool:
        """Whether the run wrote the weights of its last stage; False for a checkpoint."""
        return not is_checkpoint(self.path) and (self.path / WEIGHTS).is_file()

    def checkpoints(self) -> Iterator[tuple[int, Path]]:
        """Yields steps and folders of the checkpoints, newest first; they are not verified."""
        if is_checkpoint(self.path):
            yield read_manifest(self.path).step, self.path
        else:
            yield from steps(self.path)

    def manifests(self) -> Iterator[tuple[int, Path, Manifest | InputError]]:
        """Yields the checkpoints, newest first, each with its manifest, or with the reason why that cannot be read."""
        for step, folder in self.checkpoints():
            try:
                yield step, folder, read_manifest(folder)
            except NewerFormat:
                raise
            except InputError as error:
                yield step, folder, error

    def newest_stage(self) -> int:
        """Returns the stage of the newest weights by their manifest, which is not verified; 0 if there are none."""
        if self.finished:
            return len(self.schedule.stages) - 1
        known = (manifest.stage for _, _, manifest in self.manifests() if not isinstance(manifest, InputError))
        stage = next(known, 0)
        self.check_stage(stage)
        return stage

    def check_stage(self, stage: int) -> None:
        """Checks that the schedule has a stage of this index.

        Raises:
            InputError: it has none.
        """
        number = len(self.schedule.stages)
        if not 0 <= stage < number:
            known = f"stages 0 to {number - 1}" if number > 1 else "stage 0 only"
            raise InputError(f"{self.path} has no stage {stage}; it has {known}")

    def weights(self, stage: int | None = None, note: Callable[[str], None] = lambda text: None) -> StoredWeights:
        """Finds the newest weights: those of a finished run, else those of the newest checkpoint that verifies.

        Args:
            stage: take the newest weights of this stage instead.
            note: called with a sentence for every checkpoint that is passed over because it is damaged.

        Raises:
            InputError: there are none, or not of this stage; the message gives the stages that are kept.
        """
        if stage is not None:
            self.check_stage(stage)
        last = len(self.schedule.stages) - 1
        if self.finished and stage in (None, last):
            step = next((step for step, _ in self.checkpoints()), None)
            return StoredWeights(self.path / WEIGHTS, last, step, _file_averages(self.path))
        kept, damaged = set(), []
        for step, folder, found in self.manifests():
            try:
                if isinstance(found, InputError):
                    raise found
                kept.add(found.stage)
                if stage is not None and found.stage != stage:
                    continue
                manifest = verify(folder)
            except NewerFormat:
                raise
            except InputError as error:
                damaged.append(str(error))
                note(f"checkpoint passed over: {error}")
                continue
            self.check_stage(manifest.stage)
            return StoredWeights(folder, manifest.stage, step, _checkpoint_averages(folder, manifest), manifest)
        if stage is not None and kept - {stage}:
            have = ", ".join(map(str, sorted(kept)))
            raise InputError(
                f"{self.path} holds no checkpoint of stage {stage}, only of {have}; train with --set train.keep=none "
                "to keep all"
            )
        if damaged:
            raise InputError(f"{self.path} has no checkpoint that verifies (the newest: {damaged[0]}); restore a copy")
        raise InputError(f"{self.path} holds no weights yet; run progc train again until it saves a checkpoint")


def _read(path: Path) -> dict[str, torch.Tensor]:
    from progc.ir.deferred import all_values
    from progc.ir.tensor_file import open_tensors

    return all_values(open_tensors(path))


def _average_file(folder: Path, decay: float) -> Path:
    return folder / f"{AVERAGE}{decay!r}.safetensors"


def _file_averages(folder: Path) -> tuple[float, ...]:
    found = []
    for path in folder.glob(f"{AVERAGE}*.safetensors"):
        try:
            decay = float(path.name.removeprefix(AVERAGE).removesuffix(".safetensors"))
        except ValueError:
            continue
        if _average_file(folder, decay) == path:
            found.append(decay)
    return tuple(sorted(found))


def _checkpoint_averages(folder: Path, manifest: Manifest) -> tuple[float, ...]:
    from progc.checkpoints.loading import Checkpoint

    return tuple(sorted(Checkpoint(folder, manifest).decays))
