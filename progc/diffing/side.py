"""One side of a comparison: a program, or a folder that is read as JSON and tensors; no code of the user runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from progc.diffing.facts import Facts, describe_program
from progc.errors import InputError
from progc.files.folder import read_folder
from progc.ir.program import Program
from progc.ir.tensor_file import open_tensors

_WEIGHTS = "model.safetensors"


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """What is compared.

    Attributes:
        name: what the user calls it.
        facts: what is known of the program.
        tensors: parameters and buffers by name, deferred where they lie in a file.
        saved: the names that a state dict holds.
        program: None for a folder, which holds no graph.
    """

    name: str
    facts: Facts
    tensors: Mapping[str, torch.Tensor]
    saved: frozenset[str]
    program: Program | None = None


def side_of(what: Program | Path | str, name: str | None = None) -> Side:
    """A program, or a folder written by `--out`, as a side.

    Raises:
        InputError: not such a folder, or a file in it is damaged.
    """
    if isinstance(what, Program):
        # Constants that capture lifted are numbered, not named: the graphs tell where they differ.
        tensors = {key: value for key, value in what.tensors.items() if what.specs[key].kind != "constant"}
        saved = frozenset(what.persistent()) & tensors.keys()
        return Side(name or what.class_name, describe_program(what), tensors, saved, what)
    return _folder(Path(what), name or str(what))


def _folder(path: Path, name: str) -> Side:
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; expected one written by --out, or a program")
    content = read_folder(path)
    if _WEIGHTS not in content["tensors"]:
        raise InputError(f"{path} holds no {_WEIGHTS}; expected a folder written by --out")
    tensors = open_tensors(path / _WEIGHTS)
    return Side(name, _facts(content), tensors, frozenset(tensors))


def _facts(content: Mapping[str, Any]) -> Facts:
    report, plan = content["report"], content["plan"] or {}
    if report.get("program") is not None:
        return Facts.from_json(report["program"])
    count, text = report.get("params_after"), report.get("pipeline", plan.get("pipeline"))
    return Facts(
        params=count if isinstance(count, int) else None,
        history=(text,) if isinstance(text, str) and text else (() if text == "" else None),
    )
