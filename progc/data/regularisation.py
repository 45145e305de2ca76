"""The regularisation of a stage, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from progc.errors import InputError
from progc.files.json import known_fields


@dataclasses.dataclass(frozen=True)
class Regularisation:
    """The strengths of regularisation in a stage; None keeps what model and recipe define.

    Attributes:
        drop_path: largest rate of stochastic depth (Huang et al. 2016); smaller rates keep their proportion to it.
        dropout: largest rate of dropout; smaller rates keep their proportion to it.
        rand_augment: magnitude of RandAugment, 0 to 10; 0 turns it off (Cubuk et al. 2020).
        random_erasing: probability of random erasing (Zhong et al. 2020).
        mixup: alpha of the beta distribution of mixup, at most 1e6; 0 turns it off (Zhang et al. 2018).
    """

    drop_path: float | None = None
    dropout: float | None = None
    rand_augment: float | None = None
    random_erasing: float | None = None
    mixup: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            top = {"rand_augment": 10.0, "mixup": 1e6}.get(field.name, 1.0)
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not 0 <= value <= top
                or value != value
            ):
                raise InputError(f"regularisation: {field.name}: expected a number from 0 to {top:g}, got {value!r}")
            object.__setattr__(self, field.name, float(value))

    @classmethod
    def parse(cls, text: str) -> Regularisation:
        """Parses fields and values such as `drop_path=0.1,rand_augment=9`.

        Raises:
            InputError: invalid text, an unknown field, a field given twice, or a value out of range.
        """
        found: dict[str, float] = {}
        known = [field.name for field in dataclasses.fields(cls)]
        for part in text.split(","):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            try:
                number = float(value)
            except ValueError:
                number = None
            if not equals or number is None or key in found:
                raise InputError(f"regularisation `{text}`: expected name=number, such as drop_path=0.1,rand_augment=9")
            if key not in known:
                raise InputError(f"regularisation: unknown name `{key}`; expected {', '.join(known)}")
            found[key] = number
        return cls(**found)

    def to_json(self) -> dict[str, float]:
        """Returns the strengths that are set."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Regularisation:
        """Reads what `to_json` returned.

        Raises:
            InputError: an unknown key or a value out of range.
        """
        return cls(**known_fields(cls, data, "regularisation"))

    def __str__(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in self.to_json().items())
