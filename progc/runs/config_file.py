"""Makes a `Config` from what the user gives: a file or a source, flags and `--set`."""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from progc.errors import InputError, one_line
from progc.files.reading import read_text
from progc.files.values import key_values, literal
from progc.models.source import of_library
from progc.runs.config import Config, checked, keys, nullable, unknown

SUFFIXES = (".toml", ".yaml", ".yml", ".json")
MAX_BYTES = 1 << 20
"""Largest size of a config file in bytes."""
MAX_DEPTH = 64
MAX_TOKENS = 100_000
MAX_POINTS = 1000
"""Most dots on one line: parsing dotted TOML keys takes time that grows with the square of their depth."""


def configured(given: str, flags: Mapping[str, tuple[str, Any]], sets: Sequence[str] = ()) -> Config:
    """Returns the configuration of a run. `--set` overrides flags, and flags override the file.

    Args:
        given: a config file (with one of `SUFFIXES`), else a source, whose settings are flags and defaults only. A
            source such as `diffusers:PATH/config.json` is not a config file.
        flags: dotted keys with the flag and its value; the value is None where the flag was not given.
        sets: texts `key=value` of `--set`.

    Raises:
        InputError: as for `checked`, a file that cannot be read, or a text without `=`.
    """
    file = given.lower().endswith(SUFFIXES) and not of_library(given)
    data: dict[str, Any] = read(Path(given)) if file else {"source": given}
    origin: dict[str, str] = {}

    def put(key: str, value: Any, label: str) -> None:
        for one, other in (("epochs", "steps"), ("steps", "epochs")):
            if key == one and other not in origin:
                data.pop(other, None)  # a length on the command line replaces the one in the file
        table = data
        *path, last = key.split(".")
        for name in path:
            inner = table.setdefault(name, {})
            if not isinstance(inner, dict):
                raise InputError(f"{label}: `{name}` in {given} is not a table, so `{key}` cannot be set")
            table = inner
        table[last] = value
        origin[key] = label

    for key, (flag, value) in flags.items():
        if value is not None:
            if key == "plan.file":
                data["plan"] = {}
            put(key, str(value) if isinstance(value, Path) else value, flag)
    for key, text in key_values(sets, example="train.lr=0.001").items():
        label = f"--set {key}={text}"
        try:
            value = override(key, text)
        except InputError as error:
            raise InputError(f"{label}: {error}") from error
        put(key, value, label)
    return checked(data, origin, given if file else "command line")


def override(key: str, text: str) -> Any:
    """Returns the value that a `--set` option gives a key: a text where the key takes one, else a `literal`.

    Raises:
        InputError: there is no such key.
    """
    annotation = keys().get(key)
    if annotation is None:  # an entry of a table of free keys, such as plan.settings.batches
        table, dot, inner = key.rpartition(".")
        if not (dot and _is_table(keys().get(table)) and inner):
            raise InputError(unknown(key))
        return literal(text)
    if (set(typing.get_args(annotation)) or {annotation}) <= {str, type(None)}:
        return text
    value = literal(text)
    return text if value is None and not nullable(annotation) else value


def _is_table(annotation: Any) -> bool:
    kinds = (annotation, *typing.get_args(annotation))
    return any(typing.get_origin(kind) is dict for kind in kinds)


def read(path: Path) -> dict[str, Any]:
    """Returns the nested values of a config file.

    Raises:
        InputError: the file cannot be read, is too large, or is not valid TOML, YAML or JSON; names file and line.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such file; give a config file ({', '.join(SUFFIXES)}) or a source")
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: expected a config file of at most {MAX_BYTES >> 20} MiB")
        text = read_text(path, MAX_BYTES, links=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; expected a config file in UTF-8") from error
    kind = "TOML" if path.suffix.lower() == ".toml" else "YAML" if path.suffix.lower() != ".json" else "JSON"
    try:
        data = {"TOML": _toml, "YAML": _yaml, "JSON": _json}[kind](text)
        _check_values(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid {kind}: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected keys such as source and [train], got a {type(data).__name__}")
    return data


def _toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    if any(line.count(".") > MAX_POINTS for line in text.splitlines()):
        raise InputError(f"expected at most {MAX_POINTS} dots on a line of a config file")
    return tomllib.loads(text)


def _json(text: str) -> Any:
    import json

    return json.loads(text)


def _yaml(text: str) -> Any:
    """Reads YAML; refuses aliases (which can make a small file huge), duplicate keys, and Python objects."""
    import yaml

    try:
        _check_tokens(yaml.scan(text))
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_keys(tree)
        return _numbers(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from error


def _check_values(data: Any) -> None:
    """Refuses values that no message could show: very deep ones, and numbers of thousands of digits."""
    level = [data]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, (dict, list)):
                inner += [*value, *value.values()] if isinstance(value, dict) else value
            elif isinstance(value, int) and abs(value) >= 2**63:
                raise InputError("expected integers of at most 63 bits")
        level = inner
    if level:
        raise InputError(f"values are nested too deeply; expected at most {MAX_DEPTH} levels")


def _check_tokens(tokens: Iterable[Any]) -> None:
    """Refuses a text that would take very long to parse."""
    import yaml

    opening = (yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken, yaml.BlockSequenceStartToken)
    closing = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
    depth = 0
    for count, token in enumerate(tokens):
        if isinstance(token, yaml.AliasToken):
            raise InputError("YAML aliases (*name) are not supported; write the value out")
        depth += isinstance(token, (*opening, yaml.BlockMappingStartToken)) - isinstance(token, closing)
        if depth > MAX_DEPTH or count > MAX_TOKENS:
            raise InputError(f"expected at most {MAX_DEPTH} levels and {MAX_TOKENS:,} parts in a config file")


def _check_keys(node: Any) -> None:
    import yaml

    if isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            if isinstance(key.value, str):
                if key.value in names:
                    raise InputError(f"`{key.value}` is given twice; keep one of them")
                names.add(key.value)
            _check_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_keys(value)


def _numbers(value: Any) -> Any:
    """Turns texts such as 1e-3 into numbers: YAML 1.1 reads them as text for lack of a decimal point."""
    if isinstance(value, dict):
        return {str(key): _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and "e" in value.lower() and value[:1] in "+-.0123456789":
        try:
            return float(value)
        except ValueError:
            return value
    return value
