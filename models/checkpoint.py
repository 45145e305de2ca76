"""Reads config files and checkpoint folders of diffusers and transformers: JSON files on the local disk only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from progc.errors import InputError
from progc.files.reading import MAX_GIVEN, read_text


def read_config(path: Path, parts: tuple[str, ...] = ()) -> tuple[Path, dict[str, Any]]:
    """Reads the config at `path`.

    Args:
        path: a config.json, or a folder that contains one.
        parts: subfolders to try in order if the folder itself has no config.json (a diffusers pipeline).

    Returns:
        The folder of the config, and the config.

    Raises:
        InputError: the file or folder does not exist, or the config is not a JSON object.
    """
    file = path
    if path.is_dir():
        candidates = [path / "config.json", *(path / part / "config.json" for part in parts)]
        file = next((candidate for candidate in candidates if candidate.is_file()), candidates[0])
    if not file.is_file():
        raise InputError(f"no such file: {file}; expected a config.json or a folder that holds one")
    try:
        config = json.loads(read_text(file, MAX_GIVEN, links=True))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{file} holds a {type(config).__name__}; expected a JSON object with the model's config")
    return file.parent, config


def has_weights(folder: Path) -> bool:
    """Returns whether the folder holds safetensors files. Pickled weights do not count, because they are not read."""
    return any(folder.glob("*.safetensors"))
