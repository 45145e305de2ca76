"""Loss and accuracy of runs over time and over steps, with the boundaries of their stages, out of their metrics."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from pathlib import Path
from typing import Any, cast

from progc.errors import InputError
from progc.files.reading import open_file
from progc.train.metrics import FILE, LONGEST, texts

_LIMIT = 1 << 30  # bytes; a line for each of a million steps takes a quarter of it
_LARGEST = 1e100  # of a value; beyond it the arithmetic of axes overflows


@dataclasses.dataclass(frozen=True)
class Points:
    """A curve: optimizer steps, seconds of training (without the time in which nothing ran), and values."""

    steps: list[int] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    values: list[float] = dataclasses.field(default_factory=list)

    def add(self, step: int, seconds: float, value: Any) -> None:
        """One more point; what is no number, or none that can be drawn, leaves a gap."""
        drawn = _is_number(value) and abs(value) <= _LARGEST
        self.steps.append(step)
        self.seconds.append(seconds)
        self.values.append(float(value) if drawn else math.nan)


@dataclasses.dataclass(frozen=True)
class Curves:
    """What one run's metrics say.

    Attributes:
        name: of the run's folder, with ? for what cannot be shown.
        loss: of training.
        validation: by name: `loss`, `top1`, `ema-0.999/top1`, ...
        boundaries: where stages begin; values are the indices of the stages.
    """

    name: str
    loss: Points
    validation: dict[str, Points]
    boundaries: Points

    @property
    def measure(self) -> str:
        """What tells how good the run is: `top1` where there is one."""
        return "top1" if "top1" in self.validation else "loss"

    def to_json(self) -> dict[str, Any]:
        """Plain data; gaps are null."""

        def plain(points: Points) -> dict[str, Any]:
            values = [None if math.isnan(value) else value for value in points.values]
            return {"steps": points.steps, "seconds": points.seconds, "values": values}

        return {
            "run": self.name,
            "loss": plain(self.loss),
            "validation": {name: plain(points) for name, points in self.validation.items()},
            "boundaries": plain(self.boundaries),
        }


def read_curves(run: Path) -> Curves:
    """The curves of a run.

    Raises:
        InputError: there are no metrics, or a line is none; the last one may be torn, since a run may be writing it.
    """
    path = run / FILE
    if run.is_dir() and not path.exists():
        raise InputError(f"{run} has no {FILE}; expected the folder of a run that progc train wrote")
    if not run.is_dir():
        raise InputError(f"{run} is no folder; expected one that progc train wrote")
    found = Curves(_shown(run.resolve().name or str(run)), Points(), {}, Points())
    wrong = None
    with open_file(path) as raw:
        size = os.fstat(raw.fileno()).st_size
    if size > _LIMIT:
        raise InputError(f"{path} has {size:,} bytes; expected at most {_LIMIT:,}")
    with open_file(path) as raw, io.BufferedReader(cast("io.RawIOBase", raw)) as file:
        for number, text in enumerate(texts(file), 1):
            if wrong is not None:
                raise InputError(f"{path}: line {wrong} is no line of metrics; expected what progc train wrote")
            line = _line(text)
            if line is None:
                wrong = number
            else:
                _add(found, line)
    if not found.loss.steps and not found.validation:
        raise InputError(f"{path} holds no losses yet; wait until the run has trained a few steps")
    return found


def _shown(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _line(text: bytes) -> dict[str, Any] | None:
    """A line of metrics: `kind`, `step` and seconds are what they ought to be."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("measured"), dict):
        return None
    step, seconds = line.get("step"), line["measured"].get("seconds")
    if not isinstance(line.get("kind"), str) or not isinstance(step, int) or isinstance(step, bool):
        return None
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        return None
    return line if 0 <= step < 2**53 and 0 <= seconds < LONGEST else None


def _add(found: Curves, line: dict[str, Any]) -> None:
    step, seconds = line["step"], float(line["measured"]["seconds"])
    if line["kind"] == "train":
        found.loss.add(step, seconds, line.get("loss"))
    elif line["kind"] == "boundary":
        found.boundaries.add(step, seconds, line.get("stage"))
    elif line["kind"] == "validation":
        for name, value in line.items():
            if name == "loss" or name.rpartition("/")[2] in ("loss", "top1", "top5"):
                found.validation.setdefault(name, Points()).add(step, seconds, value)
