"""What a run folder says about its run: the configuration, the schedule, and with what software it was started.

A second start in the same folder goes on with the run that is there, so it has to be the same run.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from progc.errors import InputError
from progc.files.reading import read_object
from progc.files.writing import check_output, write_file
from progc.ranks.gathering import agreed, rank, world
from progc.runs.config import Config, difference
from progc.runs.opening import PLAN
from progc.schedule.schedule import Schedule
from progc.train.run_folder import LOCK

CONFIG = "config.json"
RUN = "run.json"
LIBRARIES = ("torch", "numpy", "safetensors", "timm", "torchvision", "transformers", "diffusers")


def check(run: Path, config: Config) -> bool:
    """Whether the folder holds this run already; False: it is new, or empty.

    Raises:
        InputError: another run is there (with the key that differs), something that is no run, or the folder cannot be
            made.
    """
    if run.exists() and not run.is_dir():
        raise InputError(f"run folder {run} is a file; give --out another name")
    if not run.exists():
        if "\0" in str(run):  # no system has such names, and Python fails at them in its own ways
            raise InputError(f"run folder {str(run)!r} has a NUL in its name; give --out another name")
        check_output(run)
        return False
    if all(path.name == LOCK for path in run.iterdir()):
        return False
    if not (run / CONFIG).is_file():
        raise InputError(f"folder {run} is not empty and has no {CONFIG}, so it is no run; give --out another folder")
    found = difference(read_object(run / CONFIG), config)
    if found is not None:
        raise InputError(f"{run} holds another run: {found}; give --out another folder, or the same value to go on")
    if (run / RUN).is_file():
        read_object(run / RUN)
    return True


def write(run: Path, config: Config, schedule: Schedule, command: Sequence[str]) -> None:
    """Writes the run's files on rank 0; the schedule only once, each start of the run as one more entry.

    To be called while the folder is held: what another process has written since `check` is looked at again.

    Raises:
        InputError: the folder cannot be written, or another run was begun there in the meantime.
    """
    failure: Exception | None = None
    if rank() == 0:
        try:
            _write(run, config, schedule, command)
        except OSError as error:
            failure = InputError(f"run folder {run} cannot be written: {error.strerror or error}; choose another place")
        except InputError as error:
            failure = error
    agreed(failure)


def _write(run: Path, config: Config, schedule: Schedule, command: Sequence[str]) -> None:
    check(run, config)
    if (run / PLAN).exists() and Schedule.read(run / PLAN).to_json() != schedule.to_json():
        raise InputError(f"{run} holds another schedule by now; give the same command again to go on with that")
    write_file(run / CONFIG, config.to_json())  # first: with it the folder is this run's, whatever happens next
    path = run / RUN
    before = read_object(path).get("starts") if path.is_file() else None
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
    write_file(path, {"starts": starts})


def versions() -> dict[str, str]:
    """Of progc, Python and the libraries that are installed; no library is imported."""
    from progc.version import __version__

    found = {"progc": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
