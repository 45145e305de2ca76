"""The manifest of a checkpoint: what it holds, with sha256 and size of every file, sealed by a sha256 over itself.

Its text is canonical: `sealed` applied to what was read gives the same text again, so a change of any bit is noticed.
Does not import torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from progc.errors import InputError
from progc.files.reading import is_count, parse_object, read_text

FORMAT = "progc checkpoint"
VERSION = 1
NAME = "manifest.json"
_MAX_MANIFEST = 16 << 20
_STEP = re.compile(r"step-(\d{8,18})")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.(?:safetensors|json)")
_SHA = re.compile(r"[0-9a-f]{64}")


class NewerFormat(InputError):
    """A whole checkpoint in the format of a newer progc."""


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """sha256 (hex) and size in bytes of one file."""

    sha256: str
    size: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Facts about a checkpoint.

    Attributes:
        step: optimizer steps done when it was saved.
        epoch: epoch in which it was saved, counted from 0.
        stage: index of the stage of the schedule.
        run: identifier of the run, empty if it has none.
        world: number of ranks that saved it.
        holds: parts that it holds, such as `model`, `ema`, `optimizer`.
        created: date and time (UTC).
        versions: versions of progc, torch and Python.
        files: every file except the manifest.
    """

    step: int
    epoch: int
    stage: int
    run: str
    world: int
    holds: tuple[str, ...]
    created: str
    versions: Mapping[str, str]
    files: Mapping[str, FileEntry]

    @property
    def size(self) -> int:
        """Bytes of all files except the manifest."""
        return sum(entry.size for entry in self.files.values())

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON object."""
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self), "holds": list(self.holds)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Reads what `to_json` returned.

        Raises:
            NewerFormat: the manifest has a newer version.
            InputError: it is invalid, such as a file name that leads out of the folder.
        """
        if data.get("format") != FORMAT:
            raise InputError(f"format: expected {FORMAT!r}, got {str(data.get('format'))[:40]!r}")
        version = data.get("version")
        if not is_count(version):
            raise InputError(f"version: expected an integer, got {str(version)[:40]!r}")
        if version != VERSION:
            raise NewerFormat(f"version {version} is newer than {VERSION}, the last this progc reads; update progc")
        wanted = {field.name for field in dataclasses.fields(cls)} | {"format", "version"}
        if data.keys() != wanted:
            odd = sorted(data.keys() ^ wanted)[0]
            raise InputError(f"key {odd[:40]!r} is {'unknown' if odd in data else 'missing'}")
        for key in ("step", "epoch", "stage", "world"):
            if not is_count(data[key]):
                raise InputError(f"{key}: expected an integer of at least 0, got {str(data[key])[:40]!r}")
        for key in ("run", "created"):
            if not _is_text(data[key]):
                raise InputError(f"{key}: expected printable text")
        holds, versions, files = data["holds"], data["versions"], data["files"]
        if not isinstance(holds, list) or not all(map(_is_text, holds)):
            raise InputError("holds: expected a list of names")
        if not isinstance(versions, dict) or not all(map(_is_text, [*versions, *versions.values()])):
            raise InputError("versions: expected names and versions")
        if not isinstance(files, dict):
            raise InputError("files: expected a table of files")
        found = {name: _entry(name, item) for name, item in files.items()}
        numbers = {key: data[key] for key in ("step", "epoch", "stage", "world")}
        return cls(
            **numbers, run=data["run"], holds=tuple(holds), created=data["created"], versions=versions, files=found
        )


def _is_text(value: Any) -> bool:
    """Whether it is text that is safe to print."""
    return isinstance(value, str) and value.isprintable()


def _entry(name: str, item: Any) -> FileEntry:
    if not _FILE.fullmatch(name) or name == NAME:
        raise InputError(f"files: expected .safetensors and .json files in the folder itself, got {name[:80]!r}")
    known = isinstance(item, dict) and item.keys() == {"sha256", "size"} and is_count(item["size"])
    if not known or not isinstance(item["sha256"], str) or not _SHA.fullmatch(item["sha256"]):
        raise InputError(f"files: {name} has no valid sha256 and size")
    return FileEntry(item["sha256"], item["size"])


def folder_name(step: int) -> str:
    """Returns the name of the folder of a step."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """Returns the step in the name of a folder; None if it is not the name of a checkpoint."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match and folder_name(int(match[1])) == name else None


def sealed(value: Mapping[str, Any]) -> str:
    """Returns the JSON text of an object, with the sha256 of the rest as its last key."""
    return _text({**value, "seal": hashlib.sha256(_text(value).encode()).hexdigest()})


def unsealed(text: str, path: Path) -> dict[str, Any]:
    """Returns the object that was given to `sealed`.

    Raises:
        InputError: the text was changed or was never sealed; names `path`.
    """
    value = parse_object(text, path)
    rest = {key: item for key, item in value.items() if key != "seal"}
    if sealed(rest) != text:
        raise InputError(f"{path} does not have the seal of its contents: it was changed after it was written")
    return rest


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a checkpoint; `verify` checks the files too.

    Raises:
        NewerFormat: the checkpoint has a newer format.
        InputError: the manifest is missing, damaged, or of another step than the name of the folder; names the file.
    """
    path = folder / NAME
    data = unsealed(read_text(path, _MAX_MANIFEST), path)
    try:
        found = Manifest.from_json(data)
    except NewerFormat as error:
        raise NewerFormat(f"{path}: {error}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if step_of(folder.name) not in (None, found.step):
        raise InputError(f"{path} belongs to step {found.step}, not to {folder.name}: folders were swapped")
    return found
