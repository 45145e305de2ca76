"""Loss and accuracy of runs over time and over steps, with the boundaries of their stages."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from progc.checkpoints.reading import read_text
from progc.errors import InputError
from progc.train.metrics import FILE, LONGEST

SUFFIXES = (".png", ".svg", ".pdf")
_LIMIT = 1 << 30  # bytes; a line for each of a million steps takes a quarter of it


@dataclasses.dataclass(frozen=True)
class Points:
    """A curve: optimizer steps, seconds of training (without the time in which nothing ran), and values."""

    steps: list[int] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    values: list[float] = dataclasses.field(default_factory=list)

    def add(self, step: int, seconds: float, value: Any) -> None:
        """One more point; what is no finite number leaves a gap."""
        number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
        self.steps.append(step)
        self.seconds.append(seconds)
        self.values.append(number if math.isfinite(number) else math.nan)


@dataclasses.dataclass(frozen=True)
class Curves:
    """What one run's metrics say.

    Attributes:
        name: of the run's folder.
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
    found = Curves(run.resolve().name, Points(), {}, Points())
    lines = read_text(path, _LIMIT).splitlines()
    for number, text in enumerate(lines, 1):
        line = _line(text)
        if line is None:
            if number == len(lines):
                break
            raise InputError(f"{path}: line {number} is no line of metrics; expected what progc train wrote")
        _add(found, line)
    if not found.loss.steps and not found.validation:
        raise InputError(f"{path} holds no losses yet; wait until the run has trained a few steps")
    return found


def _line(text: str) -> dict[str, Any] | None:
    """A line of metrics: `kind`, `step` and seconds are what they ought to be."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("measured"), dict):
        return None
    step, seconds = line.get("step"), line["measured"].get("seconds")
    if not isinstance(line.get("kind"), str) or not isinstance(step, int) or not isinstance(seconds, (int, float)):
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


def draw(runs: Sequence[Curves], path: Path) -> None:
    """Writes a figure: training loss above, the measure of validation below; over time left, over steps right.

    Args:
        path: ends in .png, .svg or .pdf.

    Raises:
        InputError: matplotlib is missing, another ending, or the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} ends in {path.suffix or 'nothing'}; expected {', '.join(SUFFIXES)}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("matplotlib is not installed; pip install 'progc[plot]', or use --json") from error
    measure = "top1" if any("top1" in run.validation for run in runs) else "loss"
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col")
    unit, per = _unit(max((seconds for run in runs for seconds in _all_seconds(run)), default=0.0))
    for number, run in enumerate(runs):
        colour = f"C{number % 10}"
        shown = run.validation.get(measure)
        averages = [name for name in run.validation if name.startswith("ema-") and name.endswith(f"/{measure}")]
        for column, over in enumerate(("time", "steps")):
            upper, lower = axes[0][column], axes[1][column]
            upper.plot(_places(run.loss, over, per), run.loss.values, color=colour, linewidth=1, label=run.name)
            if shown is not None:
                style = {"color": colour, "marker": ".", "linewidth": 1.2, "label": run.name}
                lower.plot(_places(shown, over, per), shown.values, **style)
            for name in averages[-1:]:
                points = run.validation[name]
                label = f"{run.name}, {name.partition('/')[0]}"
                lower.plot(_places(points, over, per), points.values, color=colour, linestyle=":", label=label)
            for place, stage in zip(_places(run.boundaries, over, per), run.boundaries.values, strict=True):
                for axis in (upper, lower):
                    axis.axvline(place, color=colour, linestyle="--", linewidth=0.7, alpha=0.6)
                if not math.isnan(stage):
                    upper.annotate(
                        f"stage {int(stage)}", (place, 1.0), xycoords=("data", "axes fraction"), rotation=90,
                        fontsize=7, color=colour, ha="right", va="top",
                    )  # fmt: skip
    for column, label in enumerate((f"time of training ({unit})", "optimizer steps")):
        axes[0][column].set_ylabel("training loss")
        axes[1][column].set_ylabel("top-1 accuracy" if measure == "top1" else "validation loss")
        axes[1][column].set_xlabel(label)
        for row in axes:
            row[column].grid(alpha=0.25)
    for axis in (axes[0][0], axes[1][0]):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}; choose another --out") from error


def _all_seconds(run: Curves) -> list[float]:
    return [*run.loss.seconds, *(seconds for points in run.validation.values() for seconds in points.seconds)]


def _places(points: Points, over: str, per: float) -> list[float]:
    return [float(step) for step in points.steps] if over == "steps" else [seconds / per for seconds in points.seconds]


def _unit(seconds: float) -> tuple[str, float]:
    """The unit for a time axis of this length, and its seconds."""
    if seconds >= 2 * 3600:
        return "hours", 3600.0
    return ("minutes", 60.0) if seconds >= 120 else ("seconds", 1.0)
