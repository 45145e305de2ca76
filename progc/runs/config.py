"""The configuration of a run: every key with its type, in sections (docs/training.md explains each key).

The keys of `[train]` are made from the fields of `progc.train.settings.Settings`, so that each default is written once.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import pydantic

from progc.errors import InputError, did_you_mean
from progc.models.arguments import joined
from progc.pipeline.text import parse_inits
from progc.schedule.stage_shares import DEFAULT_STAGES
from progc.search.strategies import check_strategy
from progc.train.settings import Settings

Levels: TypeAlias = str | int | float | list[Any] | dict[str, Any] | None


class Section(pydantic.BaseModel):
    """A table of keys; unknown keys are refused, and types are strict (a number is not text)."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


class PlanSection(Section):
    """Either `file`, a finished plan, or the options of `progc plan`."""

    file: str | None = None
    strategy: str = "linear"
    decide: Literal["before", "training"] = "training"
    stages: int | Literal["auto"] | None = None
    shares: str | list[float] | None = None
    rules: list[str | dict[str, Any]] = []
    mode: Literal["default", "reference"] = "default"
    depths: Levels = None
    widths: Levels = None
    resolutions: Levels = None
    unfreeze: Levels = None
    regularise: str | None = None
    sid: bool = False
    sid_init: Literal["zero", "normal"] | None = None
    batch: int | None = None
    trained: bool | None = None
    settings: dict[str, Any] = {}


class OptimizerSection(Section):
    """The optimizer; its learning rate is `train.lr`."""

    name: str = "adamw"
    weight_decay: float = 0.05
    decay_vectors: bool = False
    options: dict[str, Any] = {}


class TrackersSection(Section):
    """Where metrics go in addition to `metrics.jsonl`."""

    tensorboard: bool = False
    wandb: dict[str, Any] | None = None


_HINTS = typing.get_type_hints(Settings)
_FIELDS: dict[str, Any] = {
    field.name: (_HINTS[field.name], field.default) for field in dataclasses.fields(Settings) if field.name != "total"
}
TrainSection: type[Section] = pydantic.create_model("TrainSection", __base__=Section, **_FIELDS)


class Config(Section):
    """The configuration of a whole run."""

    source: str
    source_args: dict[str, Any] = {}
    to: str | None = None
    weights: str | None = None
    init: str | None = None
    data: str | None = None
    out: str | None = None
    epochs: int | None = None
    steps: int | None = None
    plan: PlanSection = PlanSection()
    optimizer: OptimizerSection = OptimizerSection()
    train: TrainSection = TrainSection()  # type: ignore[valid-type]
    trackers: TrackersSection = TrackersSection()

    @property
    def model(self) -> str:
        """The source with its arguments, as one text."""
        return joined(self.source, self.source_args)

    @property
    def settings(self) -> Settings:
        """The settings of the trainer; `total` is `epochs` or `steps`."""
        total = self.epochs if self.epochs is not None else self.steps
        return Settings(total=total, **self.train.model_dump())  # type: ignore[attr-defined]

    def to_json(self) -> dict[str, Any]:
        """Returns all keys with their values, including defaults: a JSON object."""
        return self.model_dump(mode="json")


MAY_CHANGE = (
    "out", "trackers", "train.accumulate", "train.ahead", "train.compile", "train.cudnn_benchmark", "train.device",
    "train.keep", "train.log_every", "train.max_skipped", "train.nan", "train.parallel", "train.profile",
    "train.recompute", "train.save_every", "train.save_in_background", "train.spike", "train.tf32",
    "train.validate_every", "train.workers",
)  # fmt: skip
"""Keys, and sections, that may change when a run resumes: what was trained so far does not depend on them.

They say how a step is computed, what is saved and shown, or what becomes of a step that goes wrong.
"""

MAY_FORK = (
    "epochs", "steps", "train.clip", "train.decay", "train.lr", "train.lr_schedule", "train.min_lr", "train.rewarm",
    "train.stage_lr", "train.validate_full", "train.warmup", "train.warmup_floor",
)  # fmt: skip
"""Keys that may also change in a forked run (`--from`). They do not alter the steps that the checkpoint has taken."""

FOLDERS = ("diffusers", "hf", "imagefolder", "transformers")
"""Kinds of sources and data whose name may be a path."""

PATHS = ("source", "to", "weights", "data", "plan.file")
"""Keys whose value may be the path of a file, which has several names."""


def checked(data: Mapping[str, Any], origin: Mapping[str, str] | None = None, where: str = "config") -> Config:
    """Returns the configuration made from nested values.

    Args:
        data: sections and keys.
        origin: dotted keys with where their value comes from, such as `--batch`; all others come from `where`.
        where: where the values come from, such as the name of the file.

    Raises:
        InputError: an unknown key (with the nearest known one) or an invalid value; names its origin and the key.
    """
    import json

    given = _without_none(data)

    def told(key: str, text: str) -> InputError:
        return InputError(f"{(origin or {}).get(key, where)}: {text}")

    try:
        # In JSON mode a list is valid for a tuple and an integer for a float, but text is still not a number.
        config = Config.model_validate_json(json.dumps(given))
    except (TypeError, ValueError, RecursionError) as error:
        if not isinstance(error, pydantic.ValidationError):
            raise InputError(f"{where}: expected text, numbers, lists and tables as values ({error})") from error
        first = error.errors()[0]
        key = _key(first["loc"])
        raise told(key, _complaint(key, first)) from error
    for key in ("epochs", "steps"):
        value = getattr(config, key)
        if value is not None and value < 1:
            raise told(key, f"`{key}`: expected an integer of at least 1, got {value}")
    try:
        _ = config.settings
    except InputError as error:
        name, _, problem = str(error).partition(": ")
        raise told(f"train.{name}", f"`train.{name}`: {problem}") from error
    try:
        check_strategy(config.plan.strategy)
    except InputError as error:
        raise told("plan.strategy", f"`plan.strategy`: {error}") from error
    if config.epochs is not None and config.steps is not None:
        raise told("steps", "`epochs` and `steps` are both given; the length of the run is one of them")
    if config.plan.file is not None and (more := sorted(config.plan.model_fields_set - {"file", "trained"})):
        other = f"plan.{more[0]}"
        raise told(other, f"`plan.file` is a finished plan; leave out `{other}`, or leave out `plan.file`")
    try:
        _ = config.model
    except InputError as error:
        raise told("source_args", f"`source_args`: {error}") from error
    if config.init is not None:
        try:
            parse_inits(config.init)
        except InputError as error:
            raise told("init", f"`init`: {error}") from error
    return config


def keys(model: type[pydantic.BaseModel] = Config, prefix: str = "") -> dict[str, Any]:
    """Returns every dotted key with its type."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, pydantic.BaseModel):
            found.update(keys(inner, f"{prefix}{name}."))
        else:
            found[prefix + name] = inner
    return found


def unknown(key: str) -> str:
    """Returns the message for a key that does not exist, with the key that may be meant."""
    known = keys()
    last = key.rpartition(".")[2]
    meant = did_you_mean(key, [*known, *Config.model_fields])
    if key in Config.model_fields:
        inner = ", ".join(name for name in known if name.startswith(f"{key}."))
        return f"`{key}` is a table; set one of its keys, {inner}"
    same = [name for name in known if name.rpartition(".")[2] == last]
    if not same and not meant:
        near = difflib.get_close_matches(last, {name.rpartition(".")[2] for name in known}, 1, cutoff=0.7)
        same = [name for name in known if near and name.rpartition(".")[2] == near[0]]
    if same:
        meant = f"; did you mean {', '.join(same)}?"
    section = key.rpartition(".")[0]
    inside = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section]
    return f"unknown key `{key}`{meant or '; known keys are ' + ', '.join(inside or Config.model_fields)}"


def difference(before: Mapping[str, Any], now: Config) -> str | None:
    """Returns the first key that differs from the start of the run and must not, with both values; else None.

    Args:
        before: what `to_json` returned at the start; a missing key had its default.
        now: the configuration with which the run resumes.
    """
    for key, (was, will) in differences(before, now).items():
        if not _among(key, MAY_CHANGE):
            return f"`{key}` was {_shown(was)} and is {_shown(will)} now"
    return None


def differences(before: Mapping[str, Any], now: Config) -> dict[str, tuple[Any, Any]]:
    """Returns the keys that differ, with the values before and now.

    Args:
        before: what `to_json` returned for the other configuration; a missing key had its default.
        now: the configuration.
    """
    old, new = dict(flat(before)), dict(flat(now.to_json()))
    default = dict(flat(Config(source="").to_json()))
    found = {}
    for key in [*new, *(key for key in old if key not in new)]:
        was, will = old.get(key, default.get(key)), new.get(key, default.get(key))
        if key == "plan.stages":  # runs of earlier versions have the number that is now the default
            was, will = was or DEFAULT_STAGES, will or DEFAULT_STAGES
        if was != will and not (key in PATHS and _one_name(was) == _one_name(will)):
            found[key] = was, will
    return found


def forks(key: str) -> bool:
    """Returns whether a key may change in a forked run (`--from`)."""
    return _among(key, MAY_CHANGE) or key in MAY_FORK


def _among(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _one_name(value: Any) -> Any:
    """The value with a path in it written in one way: `./net.py:big` as `net.py:big`, or a path from the root."""
    if not isinstance(value, str):
        return value
    path, suffix, more = value.partition(".py")
    kind, colon, place = value.partition(":")
    if suffix and (not more or more[0] in ":?"):
        return f"{os.path.abspath(path + suffix)}{more}"
    if colon and place and ("/" in place or os.path.exists(place)) and kind in FOLDERS:
        path, mark, more = place.partition("?")
        return f"{kind}:{os.path.abspath(path)}{mark}{more}"
    return os.path.abspath(value) if not colon and os.path.exists(value) else value


def flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted keys and values of nested tables; tables that are values stay whole."""
    known = keys()
    for name, value in data.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key not in known:
            yield from flat(value, f"{key}.")
        else:
            yield key, value


def _key(loc: tuple[int | str, ...]) -> str:
    """The key of a validation error, without the place in a list or the variant of the type that follows it."""
    known = keys()
    parts = [str(part) for part in loc]
    for end in range(1, len(parts) + 1):
        if ".".join(parts[:end]) in known:
            return ".".join(parts[:end])
    return ".".join(parts)


def _complaint(key: str, error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return unknown(key)
    if error["type"] == "missing":
        return f"`{key}` is missing; name the model to train, such as source = 'model.py:Net'"
    known = keys()
    if key not in known:
        return f"`{key}`: expected a table of keys, got {_shown(error['input'])}"
    return f"`{key}`: expected {expected(known[key])}, got {_shown(error['input'])}"


def expected(annotation: Any) -> str:
    """Describes the values of a type in words."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        words = [expected(item) for item in inner if item is not type(None)]
        return " or ".join(dict.fromkeys([*words, *(["left out"] if type(None) in inner else [])]))
    if origin is Literal:
        words = [*map(str, inner)]
        return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    if origin in (list, tuple):
        return "a list of numbers" if float in inner else "a list of integers" if int in inner else "a list"
    plain = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
    return plain.get(annotation, "a table")


def nullable(annotation: Any) -> bool:
    """Returns whether a key may be empty and does not take text, so that the word `none` means empty."""
    inner = typing.get_args(annotation)
    return type(None) in inner and str not in inner


def _without_none(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Replaces the word `none` by None where a key may be empty: TOML has no such value."""
    known = keys()
    made: dict[str, Any] = {}
    for name, value in data.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key not in known:
            value = _without_none(value, f"{key}.")
        elif isinstance(value, str) and value.lower() == "none" and key in known and nullable(known[key]):
            value = None
        made[str(name)] = value
    return made


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else "none" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
