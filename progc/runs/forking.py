"""Forks a run: a new run starts from a checkpoint of another run, with other settings. Both runs record the fork.

The checkpoint is copied into the new folder, with the schedule and the settings of the new run. From then on the new
run needs nothing of the old one, and resumes as any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from progc.checkpoints.manifest import Manifest, folder_name, step_of
from progc.checkpoints.searching import is_checkpoint, latest, verify
from progc.checkpoints.writing import write_copy
from progc.errors import InputError
from progc.files.reading import read_object
from progc.files.writing import json_text, replace_json
from progc.ranks.agreeing import raise_together, rank
from progc.runs.config import Config, differences, forks
from progc.runs.record import RUN, trained
from progc.runs.stored import StoredRun
from progc.schedule.schedule import Schedule
from progc.search.options import run_length
from progc.train.metrics import FILE

SCHEDULE, CONFIG, OPTIMIZER = "schedule.json", "config.json", "optimizer.json"


@dataclasses.dataclass(frozen=True)
class Fork:
    """A new run that starts from a checkpoint of another run.

    Attributes:
        origin: folder of the other run.
        checkpoint: folder of the checkpoint.
        manifest: manifest of the checkpoint.
        changed: keys that differ, with the values before and now.
        schedule: schedule of the new run.
    """

    origin: Path
    checkpoint: Path
    manifest: Manifest
    changed: dict[str, tuple[Any, Any]]
    schedule: Schedule

    @classmethod
    def of(cls, text: str, config: Config) -> Fork:
        """Finds the checkpoint, and checks that the new settings leave its past as it was.

        Args:
            text: `RUN`, which takes its newest checkpoint, or `RUN:STEP`.
            config: configuration of the new run.

        Raises:
            InputError: there is no such checkpoint, or a key differs on which what was trained depends.
        """
        origin, step = place(text)
        stored = StoredRun.open(origin)
        folder = latest(origin, tell=lambda _: None) if step is None else origin / folder_name(step)
        if folder is None or not folder.is_dir():
            kept = ", ".join(str(number) for number, _ in stored.checkpoints()) or "none"
            raise InputError(f"--from {text}: there is no such checkpoint; {origin} keeps those of the steps {kept}")
        manifest = verify(folder)
        changed = {
            key: pair for key, pair in differences(stored.config.to_json(), config).items()
            if key not in ("out", "trackers")
        }  # fmt: skip
        for key, (was, will) in changed.items():
            if not forks(key):
                raise InputError(
                    f"--from {text}: `{key}` was {was!r} and would be {will!r}, but the checkpoint depends on it; use "
                    f"the same value, or start a new run with --weights {folder / 'model.safetensors'}"
                )
        schedule = Schedule.read(folder / SCHEDULE)
        before, now = (run_length(own.epochs, own.steps) for own in (stored.config, config))
        if now != before and now[0] is not None:
            more = now[0] + config.settings.cooldown
            schedule = lengthened(schedule, manifest, more, now[1])
        return cls(origin, folder, manifest, changed, schedule)

    def write(self, run: Path, config: Config, schedule: Schedule) -> None:
        """Writes the first checkpoint of the new run and its metrics so far, and records the fork in both runs.

        Call it on every rank while the folder is locked; rank 0 writes.

        Args:
            run: folder of the new run.
            config: configuration of the new run.
            schedule: its schedule, as the trainer gets it.

        Raises:
            InputError: the disk refuses.
        """
        failure: Exception | None = None
        if rank() == 0:
            try:
                self._write(run, config, schedule)
            except OSError as error:
                failure = InputError(f"run folder {run} cannot be written: {error.strerror or error}; free space")
                failure.__cause__ = error
            except InputError as error:
                failure = error
        raise_together(failure)

    def _write(self, run: Path, config: Config, schedule: Schedule) -> None:
        texts = {SCHEDULE: json_text(schedule.to_json()) + "\n", CONFIG: _json(config.to_json())}
        was, will = self.changed.get("train.lr", (1.0, 1.0))
        if was != will:
            texts[OPTIMIZER] = _json(_with_rates(read_object(self.checkpoint / OPTIMIZER), will / was))
        if (self.origin / FILE).is_file():
            shutil.copyfile(self.origin / FILE, run / FILE)  # the trainer cuts it at the step
        facts = {"step": self.manifest.step, "changed": {key: list(pair) for key, pair in self.changed.items()}}
        own = read_object(run / RUN)
        replace_json(run / RUN, {**own, "from": {"run": str(self.origin.resolve()), **facts}})
        with contextlib.suppress(InputError, OSError):  # the other run may belong to somebody else
            theirs = read_object(self.origin / RUN)
            known = theirs.get("forks")
            known = known if isinstance(known, list) else []
            replace_json(self.origin / RUN, {**theirs, "forks": [*known, {"run": str(run.resolve()), **facts}]})
        write_copy(self.checkpoint, run, texts)  # last: with it, the run is one that resumes


def place(text: str) -> tuple[Path, int | None]:
    """Returns the folder of a run and the step in a text `RUN` or `RUN:STEP`; a checkpoint's folder has both."""
    head, colon, tail = text.rpartition(":")
    if colon and tail.isdecimal() and not Path(text).exists():
        return Path(head), int(tail)
    folder = Path(text)
    if is_checkpoint(folder):
        return folder.parent, step_of(folder.name)
    return folder, None


def unfinished(run: Path) -> str | None:
    """Returns what `--from` was for a run that was killed before it had its first checkpoint; None for other runs."""
    if trained(run) or not (run / RUN).is_file():
        return None
    found = read_object(run / RUN).get("from")
    return f"{found['run']}:{found['step']}" if isinstance(found, dict) and {"run", "step"} <= found.keys() else None


def lengthened(schedule: Schedule, manifest: Manifest, total: int, unit: str) -> Schedule:
    """Returns a schedule of another length: the stages that are over stay, the others share what is left as before.

    Args:
        schedule: the schedule.
        manifest: manifest of the checkpoint, which tells the stage.
        total: the new length.
        unit: `epochs` or `steps`.

    Raises:
        InputError: the schedule counts another unit, has rules or open stages, or is over before the new length.
    """
    if schedule.total is None or unit != schedule.unit:
        raise InputError(f"the length of the run was given in {schedule.unit}, got {unit}; give it in {schedule.unit}")
    if schedule.rules or schedule.open:
        what = "rules that end stages" if schedule.rules else "stages that a search has yet to decide"
        raise InputError(f"the plan has {what}, so its length cannot change; use the same epochs or steps")
    begins = schedule.starts()
    here = begins[manifest.stage]
    done = manifest.epoch if unit == "epochs" else manifest.step
    if total <= max(done, here):
        raise InputError(f"{total} {unit}: the checkpoint is already at {max(done, here)}; give a larger number")
    ratio = (total - here) / (schedule.total - here)
    moved = [begin if begin <= here else here + round((begin - here) * ratio) for begin in begins]
    ends = [*moved[1:], total]
    stages = tuple(
        dataclasses.replace(stage, share=(end - begin) / total)
        for stage, begin, end in zip(schedule.stages, moved, ends, strict=True)
    )
    found = dataclasses.replace(schedule, stages=stages, total=total)
    found.starts()
    return found


def _with_rates(data: dict[str, Any], ratio: float) -> dict[str, Any]:
    """The optimizer's JSON object with all peak learning rates multiplied; `progc.files.json` tags its values."""
    for group in data["held"]["dict"]["groups"]["list"]:
        options = group["dict"]["options"]["dict"]
        for key in ("lr", "initial_lr"):
            if key in options and not isinstance(options[key], float):
                raise InputError(f"--from: the optimizer keeps {key} as a tensor, so train.lr cannot change here")
            if key in options:
                options[key] *= ratio
    return data


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
