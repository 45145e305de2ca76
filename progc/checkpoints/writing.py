"""Writes a checkpoint: under a temporary name, every file synced, the manifest last, then one rename."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import os
import platform
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from progc.checkpoints.manifest import NAME, FileEntry, Manifest, folder_name, read_manifest, sealed
from progc.checkpoints.searching import verify
from progc.checkpoints.sharded import Others
from progc.checkpoints.state import Snapshot
from progc.errors import InputError
from progc.files.writing import sync
from progc.ir.tensor_file import data_of, header_of
from progc.version import __version__

SAVING, REMOVING = ".saving-", ".removing-"
_OLD = 24 * 3600.0  # seconds after which a temporary folder of another machine counts as abandoned


def write(run: Path, snapshot: Snapshot, *, replace: bool = False, others: Others | None = None) -> Path:
    """Writes a snapshot as a new folder of `run`; returns the folder.

    The folder appears complete or not at all: a kill leaves a folder with a temporary name, which `clean` removes. If
    the step exists and is broken, the broken folder is renamed to `broken-...`. If it exists with the same contents, it
    is kept.

    Args:
        run: folder of the run; it is created if it does not exist.
        snapshot: the checkpoint in memory.
        replace: whether a whole checkpoint of this step with other contents may be replaced.
        others: the ranks that write into the same folder; None if only this one writes.

    Raises:
        InputError: the disk refuses, or the step exists with other contents.
    """
    name = folder_name(int(snapshot.facts["step"]))
    temporary = run / f"{SAVING}{name}-{_here()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        _make_folder(run)
        temporary.mkdir()
        with locked(temporary):
            files = _written(temporary, snapshot, others)
            facts: dict[str, Any] = {**snapshot.facts, "holds": tuple(snapshot.facts["holds"])}
            now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            versions = {"progc": __version__, "torch": torch.__version__, "python": platform.python_version()}
            manifest = Manifest(**facts, created=now, versions=versions, files=files)
            _write_file(temporary / NAME, [sealed(manifest.to_json()).encode()])
            sync(temporary)
            with locked(run):
                _place(temporary, run / name, manifest, replace)
                sync(run)
    except OSError as error:
        raise InputError(
            f"checkpoint {run / name} cannot be written: {error.strerror or error}; free space or choose another folder"
        ) from error
    finally:
        if others is not None:
            others.give_up()
        shutil.rmtree(temporary, ignore_errors=True)
    return run / name


def write_copy(source: Path, run: Path, texts: Mapping[str, str]) -> Path:
    """Writes a checkpoint of another run into `run`, with other contents in some of its JSON files.

    Args:
        source: folder of the checkpoint, which was verified.
        run: folder of the run.
        texts: the new text of files by name.

    Raises:
        InputError: the disk refuses, or the step exists with other contents.
    """
    manifest = read_manifest(source)
    temporary = run / f"{SAVING}{folder_name(manifest.step)}-{_here()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        temporary.mkdir()
        with locked(temporary):
            files = dict(manifest.files)
            for name in files:
                if name in texts:
                    files[name] = _write_file(temporary / name, [texts[name].encode()])
                else:
                    shutil.copyfile(source / name, temporary / name)
                    sync(temporary / name)
            manifest = dataclasses.replace(manifest, files=files)
            _write_file(temporary / NAME, [sealed(manifest.to_json()).encode()])
            sync(temporary)
            with locked(run):
                _place(temporary, run / folder_name(manifest.step), manifest, replace=False)
                sync(run)
    except OSError as error:
        raise InputError(f"{run} cannot be written: {error.strerror or error}; free space") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return run / folder_name(manifest.step)


def write_part(folder: Path, snapshot: Snapshot) -> dict[str, FileEntry]:
    """Writes the files of a rank other than 0 into the folder that rank 0 created; returns their entries by name.

    Raises:
        OSError: the disk refuses.
    """
    return dict(_write_files(folder, snapshot))


def _written(folder: Path, snapshot: Snapshot, others: Others | None) -> dict[str, FileEntry]:
    if others is None:
        return dict(_write_files(folder, snapshot))
    others.begin(folder)
    files: dict[str, FileEntry] = {}
    try:
        files.update(_write_files(folder, snapshot))
    finally:
        files.update(others.end())
    return files


def _write_files(folder: Path, snapshot: Snapshot) -> Iterator[tuple[str, FileEntry]]:
    for name, tensors in snapshot.tensors.items():
        yield name, _write_file(folder / name, _parts(tensors, name, snapshot.headers.get(name)))
    for name, text in snapshot.texts.items():
        yield name, _write_file(folder / name, [text.encode()])


def _parts(tensors: Mapping[str, torch.Tensor], name: str, more: Mapping[str, str] | None) -> Iterator[Any]:
    order, header = header_of(tensors, name, more)
    yield header
    for key in order:
        yield data_of(tensors[key])


def _write_file(path: Path, parts: Iterable[Any]) -> FileEntry:
    """Writes and syncs a file; the sha256 is over the data in memory, so that a faulty disk is noticed."""
    sha, size = hashlib.sha256(), 0
    with path.open("xb", buffering=0) as file:
        for part in parts:
            view = memoryview(part)
            sha.update(view)
            size += len(view)
            while view:  # one call writes at most 2 GiB
                view = view[file.write(view) :]
        os.fsync(file.fileno())
    return FileEntry(sha.hexdigest(), size)


def _place(temporary: Path, final: Path, manifest: Manifest, replace: bool) -> None:
    """Gives a complete folder its final name; an existing folder of that name is never written into."""
    if not os.path.lexists(final):
        os.rename(temporary, final)
        return
    aside = final.parent / f"broken-{final.name}-{uuid.uuid4().hex[:8]}"
    try:
        there = verify(final)
    except InputError:
        os.rename(final, aside)
        os.rename(temporary, final)
        return
    if there.files == manifest.files:
        return
    if not replace:
        raise InputError(
            f"checkpoint {final} already exists with other contents (saved {there.created}); "
            "give replace=True, or choose another run folder"
        )
    aside = final.parent / f"{REMOVING}{final.name}-{_here()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    os.rename(final, aside)
    os.rename(temporary, final)
    shutil.rmtree(aside, ignore_errors=True)


def remove(folder: Path) -> None:
    """Removes a checkpoint; it is renamed first, so that a kill leaves no partial checkpoint."""
    gone = folder.parent / f"{REMOVING}{folder.name}-{_here()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def clean(run: Path) -> list[str]:
    """Removes the temporary folders that killed processes left in a run.

    Returns:
        Names of the removed folders.
    """
    found = []
    for path in sorted(run.glob(".*-step-*")) if run.is_dir() else []:
        if not path.name.startswith((SAVING, REMOVING)) or path.is_symlink() or not path.is_dir():
            continue
        with contextlib.suppress(OSError):
            ours = f"-{_here()}-" in path.name and not _running(path.name)
            if (ours or time.time() - path.stat().st_mtime > _OLD) and _abandoned(path):
                shutil.rmtree(path)
                found.append(path.name)
    return found


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder; the lock ends with the process. Does nothing if the file system has no locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _abandoned(folder: Path) -> bool:
    """Whether no process holds the lock of a folder; without locks, whether it is a day old."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return time.time() - folder.stat().st_mtime > _OLD
    finally:
        os.close(descriptor)
    return True


def _running(name: str) -> bool:
    """Whether the process in a temporary name still runs; it may not have locked its new folder yet."""
    number = name.rsplit("-", 2)[1]
    try:
        os.kill(int(number) if number.isdecimal() else 0, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _make_folder(run: Path) -> None:
    missing = [path for path in (run, *run.parents) if not path.exists()]
    run.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def _here() -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in socket.gethostname())[:40] or "host"
