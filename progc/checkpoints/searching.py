"""Finds and verifies the checkpoints of a run. Does not import torch."""

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
    """Returns whether a folder is a checkpoint by its name or manifest; it may be damaged."""
    return (Path(path) / NAME).is_file() or step_of(Path(path).name) is not None


def verify(path: str | Path) -> Manifest:
    """Reads every byte of a checkpoint and compares it with its manifest.

    Raises:
        NewerFormat: the checkpoint has a newer format.
        InputError: a file is missing, changed, truncated, a link, or unexpected; names the file and the reason.
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
    """Checks that a folder holds exactly the files of its manifest, without reading them; returns the manifest.

    Raises:
        InputError: as for `verify`.
    """
    try:
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            raise InputError(f"{folder} is not a folder; expected a checkpoint")
        there = {entry.name: entry.is_file(follow_symlinks=False) for entry in os.scandir(folder)}
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    manifest = read_manifest(folder)
    for name in sorted({*manifest.files, *there} - {NAME}):
        if name not in there:
            raise InputError(f"{folder / name} is missing")
        if not there[name]:
            raise InputError(f"{folder / name} is not a regular file; expected a file in the folder itself")
        if name not in manifest.files:
            raise InputError(f"{folder / name} is not in the manifest; expected only files that progc wrote")
    return manifest


def steps(run: str | Path) -> Iterator[tuple[int, Path]]:
    """Yields steps and folders of all checkpoints of a run, whole or not, newest first; links are ignored.

    Raises:
        InputError: the run exists and is not a folder that can be read.
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
    """Returns the newest checkpoint of a run that verifies; None if the run has no checkpoints.

    Args:
        run: folder of the run.
        tell: called with a message for every newer checkpoint that is passed over; None issues a warning.

    Raises:
        NewerFormat: the newest checkpoint has a newer format. Resuming from an older one would fork the run.
        InputError: there are checkpoints, but none verifies: a run never starts again by itself.
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
            message = f"checkpoint passed over: {reason}; resuming from {folder.name}"
            if tell is None:
                warnings.warn(message, stacklevel=2)
            else:
                tell(message)
        return folder
    if passed:
        raise InputError(
            f"run {run} has {len(passed)} checkpoints, but none verifies (the newest: {passed[0]}); "
            "restore a copy, or choose a new run folder to start from scratch"
        )
    return None


def facts(path: str | Path) -> dict[str, Any]:
    """Returns the manifest of a checkpoint as a JSON object, with the number of tensors in each file of tensors.

    Raises:
        InputError: the checkpoint does not verify.
    """
    folder = Path(path)
    manifest = verify(folder)
    files: dict[str, Any] = {}
    for name, entry in manifest.files.items():
        files[name] = dataclasses.asdict(entry)
        if name.endswith(".safetensors"):
            files[name]["tensors"] = len(read_header(folder / name))
    return {"checkpoint": str(folder), **manifest.to_json(), "bytes": manifest.size, "verified": True, "files": files}
