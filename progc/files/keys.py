"""Keys of a JSON object, checked against the fields of a dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from progc.errors import InputError


def known_fields(cls: Any, data: Mapping[str, Any], what: str) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(cls)]
    unknown = data.keys() - set(names)
    if unknown:
        raise InputError(f"{what}: unknown key `{sorted(unknown)[0]}`; keys are {', '.join(names)}")
    return dict(data)
