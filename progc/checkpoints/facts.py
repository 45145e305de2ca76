"""What a checkpoint says of itself, for people and programs that have no torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from progc.checkpoints.searching import verify
from progc.files.reading import read_header


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
