"""Reads the curves of runs from their metrics, and draws them.

The figure shows the training loss above and the validation below, over time on the left and over optimizer steps on the
right, with the boundaries between stages.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from progc.errors import InputError
from progc.files.reading import open_file
from progc.files.writing import output_file
from progc.train.metrics import FILE, LONGEST, texts

_LIMIT = 1 << 30  # bytes; one line for each of a million steps takes a quarter of this
_LARGEST = 1e100  # larger values overflow in the arithmetic of axes


@dataclasses.dataclass(frozen=True)
class Points:
    """A curve: optimizer steps, seconds of training (without the time between two starts), and values."""

    steps: list[int] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    values: list[float] = dataclasses.field(default_factory=list)

    def add(self, step: int, seconds: float, value: Any) -> None:
        """Adds a point; a value that is not a number or cannot be drawn leaves a gap."""
        drawn = _is_number(value) and abs(value) <= _LARGEST
        self.steps.append(step)
        self.seconds.append(seconds)
        self.values.append(float(value) if drawn else math.nan)


@dataclasses.dataclass(frozen=True)
class Curves:
    """The curves of one run.

    Attributes:
        name: name of the run folder, with ? for characters that cannot be printed.
        loss: training loss.
        validation: validation curves by name: `loss`, `top1`, `ema-0.999/top1`, ...
        boundaries: where stages begin; values are the indices of the stages.
    """

    name: str
    loss: Points
    validation: dict[str, Points]
    boundaries: Points

    @property
    def measure(self) -> str:
        """The metric of the lower plots: `top1` if there is one, else `loss`."""
        return "top1" if "top1" in self.validation else "loss"

    def to_json(self) -> dict[str, Any]:
        """Returns JSON data; gaps are null."""

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
    """Reads the curves of a run.

    Raises:
        InputError: there are no metrics, or a line is invalid (the last may be incomplete: a run may be writing it).
    """
    path = run / FILE
    if run.is_dir() and not path.exists():
        raise InputError(f"{run} has no {FILE}; give the folder of a run that progc train wrote")
    if not run.is_dir():
        raise InputError(f"{run} is not a folder; give the folder of a run that progc train wrote")
    found = Curves(_shown(run.resolve().name or str(run)), Points(), {}, Points())
    wrong = None
    with open_file(path) as raw:
        size = os.fstat(raw.fileno()).st_size
    if size > _LIMIT:
        raise InputError(f"{path}: expected at most {_LIMIT:,} bytes, got {size:,}")
    with open_file(path) as raw, io.BufferedReader(cast("io.RawIOBase", raw)) as file:
        for number, text in enumerate(texts(file), 1):
            if wrong is not None:
                raise InputError(f"{path}: line {wrong} is not a line of metrics as progc train writes them")
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
    """A line of metrics with a valid `kind`, `step` and seconds; None if it is not one."""
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


SUFFIXES = (".png", ".svg", ".pdf")


def draw(runs: Sequence[Curves], path: Path) -> None:
    """Draws a figure and writes it atomically.

    Args:
        runs: the curves to draw.
        path: file that ends in .png, .svg or .pdf.

    Raises:
        InputError: matplotlib is missing, the suffix is unknown, or the file cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}, got {path.suffix or 'none'}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("matplotlib is not installed; pip install 'progc[plot]', or use --json") from error
    figure = Figure(figsize=(11, 7), layout="constrained")
    _fill(figure, runs)
    made = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # characters that the font lacks are drawn as boxes
        figure.savefig(made, dpi=150, format=path.suffix.lower()[1:])
    with output_file(path, "choose another --out") as temporary:
        temporary.write_bytes(made.getvalue())


def _fill(figure: Any, runs: Sequence[Curves]) -> None:
    measure = "top1" if any("top1" in run.validation for run in runs) else "loss"
    axes = figure.subplots(2, 2, sharex="col")
    unit, per = _unit(max((seconds for run in runs for seconds in _all_seconds(run)), default=0.0))
    legends: tuple[list[tuple[Any, str]], list[tuple[Any, str]]] = ([], [])
    for number, (run, name) in enumerate(zip(runs, _names(runs), strict=True)):
        colour = f"C{number % 10}"
        shown = run.validation.get(measure)
        averages = [key for key in run.validation if key.startswith("ema-") and key.endswith(f"/{measure}")]
        for column, over in enumerate(("time", "steps")):
            upper, lower = axes[0][column], axes[1][column]
            (line,) = upper.plot(_places(run.loss, over, per), run.loss.values, color=colour, linewidth=1)
            below = []
            if shown is not None:
                style: dict[str, Any] = {"color": colour, "marker": ".", "linewidth": 1.2}
                below.append((lower.plot(_places(shown, over, per), shown.values, **style)[0], name))
            for key in averages[-1:]:
                points = run.validation[key]
                (dots,) = lower.plot(_places(points, over, per), points.values, color=colour, linestyle=":")
                below.append((dots, f"{name}, {key.partition('/')[0]}"))
            if column == 0:
                legends[0].append((line, name))
                legends[1].extend(below)
            _boundaries(upper, lower, run.boundaries, _places(run.boundaries, over, per), colour)
    for column, label in enumerate((f"time of training ({unit})", "optimizer steps")):
        axes[0][column].set_ylabel("training loss")
        axes[1][column].set_ylabel("top-1 accuracy" if measure == "top1" else "validation loss")
        axes[1][column].set_xlabel(label)
        for row in axes:
            row[column].grid(alpha=0.25)
    for axis, entries in zip((axes[0][0], axes[1][0]), legends, strict=True):
        _legend(axis, entries)


def _boundaries(upper: Any, lower: Any, boundaries: Points, places: list[float], colour: str) -> None:
    for place, stage in zip(places, boundaries.values, strict=True):
        for axis in (upper, lower):
            axis.axvline(place, color=colour, linestyle="--", linewidth=0.7, alpha=0.6)
        if not math.isnan(stage):
            upper.annotate(
                f"stage {stage:g}", (place, 1.0), xycoords=("data", "axes fraction"), rotation=90,
                fontsize=7, color=colour, ha="right", va="top",
            )  # fmt: skip


def _legend(axis: Any, entries: Sequence[tuple[Any, str]]) -> None:
    """Shows names literally: matplotlib hides labels that begin with an underscore, and reads $ as a formula."""
    if not entries:
        return
    legend = axis.legend([line for line, _ in entries], ["run"] * len(entries), fontsize=8)
    for text, (_, name) in zip(legend.get_texts(), entries, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _names(runs: Sequence[Curves]) -> list[str]:
    """Names of runs, numbered where several have the same name."""
    several, seen, found = Counter(run.name for run in runs), Counter[str](), []
    for run in runs:
        seen[run.name] += 1
        found.append(run.name if several[run.name] == 1 else f"{run.name} ({seen[run.name]})")
    return found


def _all_seconds(run: Curves) -> list[float]:
    return [*run.loss.seconds, *(seconds for points in run.validation.values() for seconds in points.seconds)]


def _places(points: Points, over: str, per: float) -> list[float]:
    return [float(step) for step in points.steps] if over == "steps" else [seconds / per for seconds in points.seconds]


def _unit(seconds: float) -> tuple[str, float]:
    """Unit of a time axis of this length, and its seconds."""
    if seconds >= 2 * 3600:
        return "hours", 3600.0
    return ("minutes", 60.0) if seconds >= 120 else ("seconds", 1.0)
