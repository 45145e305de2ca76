"""The configuration of a run: a TOML or YAML file, and values given on the command line over it.

Keys of `[train]` are the fields of `Settings`; their defaults and meaning are there and nowhere else.
"""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import pydantic
from pydantic import ConfigDict, Field

from progc.errors import InputError
from progc.suggestions import did_you_mean
from progc.train.settings import Settings

SUFFIXES = (".toml", ".yaml", ".yml")
_MAX_BYTES = 1 << 20


class _Table(pydantic.BaseModel):
    """A table of the file: an unknown key is an error, and `"8"` is no number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PlanOptions(_Table):
    """How the schedule is made where no plan file is given; as the options of `progc plan`."""

    strategy: str = "linear"
    stages: int = Field(default=4, ge=1, le=100)
    mode: str = "default"
    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    depths: str | None = None
    widths: str | None = None
    resolutions: str | None = None
    unfreeze: str | None = None
    regularise: str | None = None
    sid: bool = False
    settings: dict[str, Any] = {}


class OptimizerOptions(_Table):
    """Which optimizer: `adamw`, `sgd`, or another name that timm knows; further options go to its class."""

    name: str = "adamw"
    weight_decay: float = Field(default=0.05, ge=0)
    options: dict[str, Any] = {}


class TrackerOptions(_Table):
    """Where metrics go besides `metrics.jsonl`."""

    tensorboard: bool = False
    wandb: dict[str, Any] | None = None


_hints = get_type_hints(Settings)
_fields: dict[str, Any] = {field.name: (_hints[field.name], field.default) for field in dataclasses.fields(Settings)}
TrainOptions: Any = pydantic.create_model("TrainOptions", __base__=_Table, **_fields)
"""The fields of `Settings` as a table."""


class Config(_Table):
    """One run.

    Attributes:
        source: of the model, as everywhere.
        to: the full network, as for `progc grow`; None: the source itself.
        weights: of the source.
        data: `digits`, `imagefolder:PATH`, `hf:PATH` or `FILE.py`; None: the source's own file.
        out: folder of the run.
        plan: path of a plan, or how to make one.
        train: see `Settings`.
    """

    source: str
    to: str | None = None
    weights: str | None = None
    data: str | None = None
    out: str | None = None
    plan: str | PlanOptions = PlanOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    trackers: TrackerOptions = TrackerOptions()
    train: TrainOptions = TrainOptions()

    @property
    def settings(self) -> Settings:
        """The values of `[train]`.

        Raises:
            InputError: a value out of range.
        """
        return Settings(**self.train.model_dump())

    def to_json(self) -> dict[str, Any]:
        """Every key with its value, plain JSON data."""
        found: dict[str, Any] = self.model_dump(mode="json")
        return found


def read_file(path: Path) -> dict[str, Any]:
    """The tables of a TOML or YAML file; YAML makes plain data only.

    Raises:
        InputError: it cannot be read, is too large, or is none; names the file.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path} has {path.stat().st_size} bytes; a config has {_MAX_BYTES} at most")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"config {path} cannot be read: {reason}; expected a TOML or YAML file") from error
    try:
        found = _toml(text) if path.suffix == ".toml" else _yaml(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"config {path}: {' '.join(str(error).split())}; mend the file") from error
    if not isinstance(found, dict):
        raise InputError(f"config {path} holds a {type(found).__name__}; expected keys and values, such as source")
    return found


def resolved(values: Mapping[str, Any], sets: Mapping[str, Any], where: str) -> Config:
    """The configuration of nested values with `a.b` = v over them.

    Args:
        sets: dotted keys to values.
        where: what is named in messages: the file, or the command line.

    Raises:
        InputError: an unknown key (with the nearest one), or a value of another kind; names the key.
    """
    data = _copied(values)
    for dotted, value in sets.items():
        *path, last = dotted.split(".")
        table = data
        for key in path:
            inner = table.setdefault(key, {})
            if not isinstance(inner, dict):
                raise InputError(f"--set {dotted}: `{key}` is {inner!r} and no table; leave it out of {where}")
            table = inner
        table[last] = value
    try:
        return Config.model_validate(_lists_as_tuples(data))
    except pydantic.ValidationError as error:
        raise InputError(f"{where}: {_told(error)}") from error


def texts() -> set[str]:
    """Dotted keys whose values are texts: there `none` is a word, and 12 the text of a number."""
    found = {name for name, field in Config.model_fields.items() if str in _leaves(field.annotation)}
    return found | {
        f"plan.{name}" for name, field in PlanOptions.model_fields.items() if str in _leaves(field.annotation)
    }


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _lists_as_tuples(data: dict[str, Any]) -> dict[str, Any]:
    """Neither format has tuples, and whole numbers are fine where a fraction may be."""
    train = data.get("train")
    if not isinstance(train, dict):
        return data
    made = {}
    for key, value in train.items():
        value = tuple(value) if isinstance(value, list) else value
        takes_float = key in _hints and float in _leaves(_hints[key])
        whole = isinstance(value, int) and not isinstance(value, bool)
        made[key] = float(str(value)) if takes_float and whole and int not in _leaves(_hints[key]) else value
    return {**data, "train": made}


def _leaves(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(leaf for part in get_args(hint) for leaf in _leaves(part))
    return (hint,)


def _told(error: pydantic.ValidationError) -> str:
    """The first thing that is wrong, in one sentence."""
    found = error.errors(include_url=False, include_context=False)
    # Of a value that may be text or a table, the table's own complaint says more.
    first = max(found, key=lambda item: len(item["loc"])) if found[0]["loc"][:1] == ("plan",) else found[0]
    path = [str(part) for part in first["loc"] if part not in ("str", "PlanOptions")]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = _known(path[:-1])
        hint = did_you_mean(path[-1], known) or f"; keys are {', '.join(known)}"
        return f"there is no key `{key}`{hint}"
    if first["type"] == "missing":
        return f"the key `{key}` is missing; give it"
    return f"`{key}` is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _known(path: list[str]) -> list[str]:
    model: Any = Config
    for part in path:
        hint = model.model_fields[part].annotation
        tables = [leaf for leaf in _leaves(hint) if isinstance(leaf, type) and issubclass(leaf, pydantic.BaseModel)]
        model = tables[0]
    return list(model.model_fields)


def _toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]
    return tomllib.loads(text)


def _yaml(text: str) -> Any:
    import yaml  # type: ignore[import-untyped]

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
