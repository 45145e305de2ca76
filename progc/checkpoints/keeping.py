"""Decides which checkpoints are kept: the newest that verify, and the best one. Imports torch for writing only."""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path

from progc.checkpoints.manifest import NAME, sealed, unsealed
from progc.checkpoints.searching import Tell, steps, verify
from progc.errors import InputError
from progc.files.reading import is_count, read_text
from progc.files.writing import output_file

BEST = "best.json"


@dataclasses.dataclass(frozen=True)
class Pruned:
    """The result of `prune`, as names of folders, newest first.

    Attributes:
        kept: checkpoints that verify and were kept.
        removed: older checkpoints that were removed.
        broken: checkpoints that do not verify; they were left alone.
    """

    kept: tuple[str, ...]
    removed: tuple[str, ...]
    broken: tuple[str, ...]


def prune(run: str | Path, *, keep: int, tell: Tell | None = None) -> Pruned:
    """Removes checkpoints older than the newest `keep` that verify. The best one is kept whatever its age.

    Only checkpoints that verify are counted and removed, so broken ones never push out a good one.

    Args:
        run: folder of the run.
        keep: number of checkpoints to keep, at least 1.
        tell: called with a message if a checkpoint could not be removed; None issues a warning.

    Raises:
        InputError: `keep` is below 1, or the run cannot be read.
    """
    from progc.checkpoints.writing import clean, locked, remove

    if keep < 1:
        raise InputError(f"keep {keep}: expected 1 or more checkpoints")
    folder = Path(run)
    if not folder.is_dir():
        return Pruned((), (), ())
    kept: list[str] = []
    removed: list[str] = []
    broken: list[str] = []
    with locked(folder):
        try:
            marked = _marked(folder)
        except InputError as error:
            message = f"no checkpoint was removed, since the best one is unknown: {error}; mark it again"
            _say(message, tell)
            return Pruned((), (), ())
        for step, path in steps(folder):
            try:
                verify(path)
            except InputError:
                broken.append(path.name)
                continue
            if len(kept) < keep or (marked is not None and marked[0] == step):
                kept.append(path.name)
            else:
                try:
                    remove(path)
                except OSError as error:
                    _say(f"checkpoint {path} cannot be removed: {error.strerror or error}; remove it by hand", tell)
                    continue
                removed.append(path.name)
    clean(folder)
    return Pruned(tuple(kept), tuple(removed), tuple(broken))


def mark_best(run: str | Path, step: int, metric: float | None = None) -> None:
    """Marks the checkpoint of this step as the best so far; `prune` keeps it from now on.

    Args:
        run: folder of the run.
        step: step of the checkpoint.
        metric: the value that makes it the best, for the record.

    Raises:
        InputError: the checkpoint does not verify, or the disk refuses.
    """
    from progc.checkpoints.manifest import folder_name
    from progc.files.reading import digest

    folder = Path(run) / folder_name(step)
    verify(folder)
    manifest = digest(folder / NAME, (folder / NAME).stat().st_size)
    value = {"step": step, "metric": None if metric is None else repr(float(metric)), "manifest": manifest}
    path = Path(run) / BEST
    with output_file(path, "free space") as temporary:
        temporary.write_text(sealed(value), encoding="utf-8")


def best(run: str | Path) -> Path | None:
    """Returns the checkpoint marked as best; None if none is marked.

    Raises:
        InputError: the mark or the checkpoint is damaged, or the checkpoint was replaced after it was marked.
    """
    from progc.checkpoints.manifest import folder_name
    from progc.files.reading import digest

    marked = _marked(Path(run))
    if marked is None:
        return None
    folder = Path(run) / folder_name(marked[0])
    verify(folder)
    if digest(folder / NAME, (folder / NAME).stat().st_size) != marked[1]:
        raise InputError(f"{folder} is not the checkpoint that was marked as best; mark it again")
    return folder


def _marked(run: Path) -> tuple[int, str] | None:
    """Step and sha256 of the manifest of the best checkpoint."""
    path = run / BEST
    if not os.path.lexists(path):
        return None
    value = unsealed(read_text(path), path)
    if not is_count(value.get("step")) or not isinstance(value.get("manifest"), str):
        raise InputError(f"{path} does not name a checkpoint; mark the best one again")
    return value["step"], value["manifest"]


def _say(message: str, tell: Tell | None) -> None:
    if tell is None:
        warnings.warn(message, stacklevel=3)
    else:
        tell(message)
