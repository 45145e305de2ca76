"""Which checkpoints of a run are whole. No torch."""

from __future__ import annotations

import dataclasses
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from progc.checkpoints.manifest import NAME, Manifest, NewerFormat, read_manifest, step_of
from progc.errors import InputError
from progc.files.reading import digest, read_header, read_object

Tell = Callable[[str], None]


def is_checkpoint(path: str | Path) -> bool:
    """Whether a folder says that it is a checkpoint; it may be damaged."""
    return (Path(path) / NAME).is_file() or step_of(Path(path).name) is not None


def verify(path: str | Path) -> Manifest:
    """Reads every byte of a checkpoint and compares it with its manifest.

    Raises:
        NewerFormat: written by a newer progc.
        InputError: a file is missing, changed, cut off, a link, or one too many; names the file and why.
    """
    folder = Path(path)
    manifest = check_files(folder)
    for name, entry in manifest.files.items():
        if digest(folder / name, entry.size) != entry.sha256:
            raise InputError(f"{folder / name} does not have the sha256 of the manifest: it was changed or swapped")
        if name.endswith(".safetensors"):
            read_header(folder / name)
        else:
            read_object(folder / name)
    return manifest


def check_files(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose folder holds the files that it lists, and nothing else; contents are not read.

    Raises:
        InputError: as `verify`.
    """
    try:
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            raise InputError(f"{folder} is no folder; expected a checkpoint")
        there = {entry.name: entry.is_file(follow_symlinks=False) for entry in os.scandir(folder)}
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    manifest = read_manifest(folder)
    for name in sorted({*manifest.files, *there} - {NAME}):
        if name not in there:
            raise InputError(f"{folder / name} is missing")
        if not there[name]:
            raise InputError(f"{folder / name} is a link or no file; expected a file of the folder itself")
        if name not in manifest.files:
            raise InputError(f"{folder / name} is not in the manifest; expected only what progc wrote")
    return manifest


def steps(run: str | Path) -> Iterator[tuple[int, Path]]:
    """Steps and folders of all checkpoints of a run, whole or not, newest first; links are none.

    Raises:
        InputError: the run is there and is no folder that can be read.
    """
    folder = Path(run)
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise InputError(
            f"run {folder} cannot be read: {getattr(error, 'strerror', None) or error}; expected a folder"
        ) from error
    found = [(step, name) for name in names if (step := step_of(name)) is not None]
    for step, name in sorted(found, reverse=True):
        yield step, folder / name


def latest(run: str | Path, *, tell: Tell | None = None) -> Path | None:
    """The newest checkpoint of a run that verifies; None if the run has none at all.

    Args:
        tell: is given a message for every newer one that is passed over; None: it becomes a warning.

    Raises:
        NewerFormat: the newest was written by a newer progc. Going on from an older one would fork the run.
        InputError: there are checkpoints, and not one of them verifies: a run never starts again by itself.
    """
    passed = []
    for _, folder in steps(run):
        try:
            verify(folder)
        except NewerFormat:
            raise
        except InputError as error:
            passed.append(str(error))
            continue
        for reason in passed:
            message = f"checkpoint passed over: {reason}; going on from {folder.name}"
            if tell is None:
                warnings.warn(message, stacklevel=2)
            else:
                tell(message)
        return folder
    if passed:
        raise InputError(
            f"run {run} has {len(passed)} checkpoints and none verifies, the newest since {passed[0]}; "
            "put a copy back, or give a new run folder to start again"
        )
    return None


def facts(path: str | Path) -> dict[str, Any]:
    """The manifest of a checkpoint as a JSON object, with the number of tensors of each file of tensors.

    Raises:
        InputError: it does not verify.
    """
    folder = Path(path)
    manifest = verify(folder)
    files: dict[str, Any] = {}
    for name, entry in manifest.files.items():
        files[name] = dataclasses.asdict(entry)
        if name.endswith(".safetensors"):
            files[name]["tensors"] = len(read_header(folder / name))
    return {"checkpoint": str(folder), **manifest.to_json(), "bytes": manifest.size, "verified": True, "files": files}
