"""Records a run in its folder: the configuration, the schedule, and the software of every start.

A second start in the same folder resumes the run, so it must be the same run.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from progc.checkpoints.searching import steps
from progc.errors import InputError
from progc.files.reading import read_object
from progc.files.writing import check_output, replace_json
from progc.ranks.agreeing import raise_together, rank, world
from progc.runs.config import Config, difference
from progc.runs.folder import CONFIG, WEIGHTS
from progc.schedule.schedule import PLAN, Schedule
from progc.train.run_folder import LOCK

RUN = "run.json"
LIBRARIES = ("torch", "numpy", "safetensors", "timm", "torchvision", "transformers", "diffusers")


def check(run: Path, config: Config) -> bool:
    """Returns whether the folder already holds this run; False if it is new or empty.

    A run without a checkpoint, such as one that failed before its first step, would begin again. So another run may
    take its folder.

    Raises:
        InputError: the folder holds another run (the message names the key that differs), or holds something else, or
            cannot be created.
    """
    if run.exists() and not run.is_dir():
        raise InputError(f"run folder {run} is a file; choose another --out")
    if not run.exists():
        if "\0" in str(run):  # no system allows such names, and Python raises other errors for them
            raise InputError(f"run folder {str(run)!r} has a NUL in its name; choose another --out")
        check_output(run)
        return False
    if all(path.name == LOCK for path in run.iterdir()):
        return False
    if not (run / CONFIG).is_file():
        raise InputError(f"folder {run} is not empty and has no {CONFIG}, so it is not a run; choose another --out")
    found = difference(read_object(run / CONFIG), config)
    if found is not None and not trained(run):
        return False
    if found is not None:
        raise InputError(
            f"{run} holds another run: {found}; choose another --out, use the same value to resume, or continue from "
            f"its checkpoint with --from {run} --out NEW"
        )
    if (run / RUN).is_file():
        read_object(run / RUN)
    return True


def trained(run: Path) -> bool:
    """Returns whether a run has something to resume from, or is finished."""
    return (run / WEIGHTS).exists() or next(steps(run), None) is not None


def write(run: Path, config: Config, schedule: Schedule, command: Sequence[str]) -> None:
    """Writes the files of the run on rank 0: the schedule once, and an entry for each start.

    Call it while the folder is locked; it checks again what another process may have written since `check`.

    Args:
        run: folder of the run.
        config: configuration of the run.
        schedule: schedule of the run.
        command: command line of this start.

    Raises:
        InputError: the folder cannot be written, or another run was started in it in the meantime.
    """
    failure: Exception | None = None
    if rank() == 0:
        try:
            _write(run, config, schedule, command)
        except OSError as error:
            failure = InputError(f"run folder {run} cannot be written: {error.strerror or error}; choose another --out")
        except InputError as error:
            failure = error
    raise_together(failure)


def _write(run: Path, config: Config, schedule: Schedule, command: Sequence[str]) -> None:
    if not check(run, config):
        (run / PLAN).unlink(missing_ok=True)  # that of a run which failed before its first checkpoint
    if (run / PLAN).exists() and Schedule.read(run / PLAN).to_json() != schedule.to_json():
        raise InputError(f"{run} now holds another schedule; run the same command again to resume with it")
    replace_json(run / CONFIG, config.to_json())  # first: from here on the folder belongs to this run
    path = run / RUN
    known = read_object(path) if path.is_file() else {}
    before = known.get("starts")
    starts: list[Any] = before if isinstance(before, list) else []
    starts.append(
        {
            "command": list(command),
            "at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "world": world(),
            "versions": versions(),
        }
    )
    if not (run / PLAN).exists():
        schedule.write(run / PLAN)
    replace_json(path, {**known, "starts": starts})


def versions() -> dict[str, str]:
    """Returns the versions of progc, Python and the installed libraries, without importing them."""
    from progc.version import __version__

    found = {"progc": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
