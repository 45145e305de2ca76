"""The manifest of a checkpoint: what it holds, with sha256 and size of every file, sealed by a sha256 of its own.

It is canonical: the text that `sealed` makes of what was read is the text that was read, so a change of any bit shows.
No torch.
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
    """A checkpoint that is whole, written by a newer progc."""


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """sha256 (hex) and size in bytes of one file."""

    sha256: str
    size: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Facts of a checkpoint.

    Attributes:
        step: optimizer steps done when it was saved.
        epoch: epochs begun before the present one.
        stage: index of the stage of the schedule.
        run: identifier of the run, empty if it has none.
        world: how many ranks saved it.
        holds: parts that are in it, such as `model`, `ema`, `optimizer`.
        created: date and time (UTC).
        versions: of progc, torch and Python.
        files: every file but the manifest.
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
        """Bytes of all files but the manifest."""
        return sum(entry.size for entry in self.files.values())

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self), "holds": list(self.holds)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """What `to_json` gave.

        Raises:
            NewerFormat: of a newer version.
            InputError: anything that is none, a name of a file that leads out of the folder among them.
        """
        if data.get("format") != FORMAT:
            raise InputError(f"its format is {str(data.get('format'))[:40]!r}, expected {FORMAT!r}")
        version = data.get("version")
        if not is_count(version):
            raise InputError(f"its version is {str(version)[:40]!r}, expected a number")
        if version != VERSION:
            raise NewerFormat(f"it has version {version}, this progc reads up to {VERSION}; update progc")
        wanted = {field.name for field in dataclasses.fields(cls)} | {"format", "version"}
        if data.keys() != wanted:
            odd = sorted(data.keys() ^ wanted)[0]
            raise InputError(f"key {odd[:40]!r} is {'unknown' if odd in data else 'missing'}")
        for key in ("step", "epoch", "stage", "world"):
            if not is_count(data[key]):
                raise InputError(f"{key} is {str(data[key])[:40]!r}, expected a number of at least 0")
        for key in ("run", "created"):
            if not _is_text(data[key]):
                raise InputError(f"{key} is no text")
        holds, versions, files = data["holds"], data["versions"], data["files"]
        if not isinstance(holds, list) or not all(map(_is_text, holds)):
            raise InputError("holds is no list of names")
        if not isinstance(versions, dict) or not all(map(_is_text, [*versions, *versions.values()])):
            raise InputError("versions are none")
        if not isinstance(files, dict):
            raise InputError("files are none")
        found = {name: _entry(name, item) for name, item in files.items()}
        numbers = {key: data[key] for key in ("step", "epoch", "stage", "world")}
        return cls(
            **numbers, run=data["run"], holds=tuple(holds), created=data["created"], versions=versions, files=found
        )


def _is_text(value: Any) -> bool:
    """Whether it is text that a terminal may be shown."""
    return isinstance(value, str) and value.isprintable()


def _entry(name: str, item: Any) -> FileEntry:
    if not _FILE.fullmatch(name) or name == NAME:
        raise InputError(
            f"it lists a file {name[:80]!r}; expected names of .safetensors and .json files in the folder itself"
        )
    known = isinstance(item, dict) and item.keys() == {"sha256", "size"} and is_count(item["size"])
    if not known or not isinstance(item["sha256"], str) or not _SHA.fullmatch(item["sha256"]):
        raise InputError(f"sha256 or size of {name} is none")
    return FileEntry(item["sha256"], item["size"])


def folder_name(step: int) -> str:
    """The folder of a step in its run."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step that a folder's name tells, None if it is no such name."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match and folder_name(int(match[1])) == name else None


def sealed(value: Mapping[str, Any]) -> str:
    """JSON text of an object with the sha256 of the rest as its last key."""
    return _text({**value, "seal": hashlib.sha256(_text(value).encode()).hexdigest()})


def unsealed(text: str, path: Path) -> dict[str, Any]:
    """The object that `sealed` was given.

    Raises:
        InputError: a bit was changed, or it never was one; names `path`.
    """
    value = parse_object(text, path)
    rest = {key: item for key, item in value.items() if key != "seal"}
    if sealed(rest) != text:
        raise InputError(f"{path} does not have the seal of its contents: it was changed after it was written")
    return rest


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint; whether the files are as it says is another question (`verify`).

    Raises:
        NewerFormat: written by a newer progc.
        InputError: it is missing, damaged, or of another step than the folder's name says; names the file and why.
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
        raise InputError(f"{path} is of step {found.step}, not of {folder.name}: folders were swapped")
    return found
