"""docs/cost.md and docs/cost.svg from the rows of bench/cost.py."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_COLORS = {"vit": "#1f77b4", "resnet": "#d62728"}
# What is drawn: title, unit of x, x of a row, y of a row.
_PANELS = (
    ("analysis: axes and chains, CPU seconds", "graph nodes", "nodes", ("axes", "chains")),
    ("capture, CPU seconds", "parameters", "parameters", ("capture",)),
    ("making and writing grown weights, CPU seconds", "grown parameters", "grown_parameters", ("write",)),
)
_TEXT = """# What it costs

Time and memory against size, {count} networks from {least} to {most} parameters. Written by `bench/cost.py --report`
from `bench/results/cost.json`; untrained timm models at 224 pixels, one thread, CPU seconds on a machine with other
work. The table names the growth of each network. Networks are captured with their weights, grown into a safetensors
file and checked in float64 at batch 1.

![seconds against size](cost.svg)

## Seconds

{table}

`plan` grows graphs and shapes in depth and width, with all verification. `write` makes every grown tensor and writes
it. `check` runs the source and the grown network in float64.

Scaling of each part, as the exponent k of seconds ~ size^k (1 is linear):

{fits}

Analysis depends on the graph, not on the parameters: deeper networks have more nodes, wider ones do not.

## Memory

Peak resident memory above that of the process after its imports, over the bytes of the grown weights. The grown network
never exists in memory: parameters of the grown program are deferred (`progc/ir/deferred.py`). Each one is made when
the file is written (`progc/ir/tensor_file.py`) and read back when the check reaches it. What stays is the source, the
tensors at work, and a constant part (tracing, activations) that small networks show.

{memory}
"""


def write_report(rows: list[dict[str, Any]]) -> None:
    """Writes both files."""
    failed = [row for row in rows if "error" in row]
    rows = sorted((row for row in rows if "error" not in row), key=lambda row: (row["series"], row["parameters"]))
    header = ["model", "parameters", "nodes", "growth", "to", *PHASES]
    table = [
        [
            row["model"],
            _count(row["parameters"]),
            str(row["nodes"]),
            f"`{row['growth']}`",
            _count(row["grown_parameters"]),
        ]
        + [f"{row['seconds'][phase]:.2f}" for phase in PHASES]
        for row in rows
    ]
    memory = [
        [
            row["model"],
            *(f"{row['bytes'][key] / 1e6:,.0f}" for key in ("source", "grown", "largest_tensor", "peak")),
            f"{row['bytes']['peak'] / row['bytes']['grown']:.2f}",
        ]
        for row in rows
    ]
    sizes = [row["parameters"] for row in rows] + [row["grown_parameters"] for row in rows]
    text = _TEXT.format(
        count=len(rows),
        least=_count(min(sizes)),
        most=_count(max(sizes)),
        table=_table(header, table),
        fits=_table(["part", "against", *_COLORS], list(_fits(rows))),
        memory=_table(["model", "source, MB", "grown, MB", "largest tensor, MB", "peak, MB", "peak / grown"], memory),
    )
    text += "".join(f"\nNot measured: {row['model']}: {row['error']}.\n" for row in failed)
    (ROOT / "docs/cost.md").write_text(text, encoding="utf-8")
    (ROOT / "docs/cost.svg").write_text(_svg(rows), encoding="utf-8")


def _fits(rows: list[dict[str, Any]]) -> Iterable[list[str]]:
    parts = {
        "capture": ("nodes", ("capture",)),
        "axes and chains": ("nodes", ("axes", "chains")),
        "plan": ("nodes", ("plan",)),
        "write": ("grown_parameters", ("write",)),
        "check": ("grown_parameters", ("check",)),
    }
    for name, (x, phases) in parts.items():
        # One kind of growth per fit: seconds of others are not comparable.
        chosen = [row for row in rows if row["growth"] == "width*2" or phases[0] in ("capture", "axes")]
        found = [slope([row for row in chosen if row["series"] == series], x, phases) for series in _COLORS]
        yield [name, x.replace("_", " "), *("too few" if k is None else f"{k:.2f}" for k in found)]


def _count(value: int) -> str:
    return f"{value / 1e9:.2f} B" if value >= 1e9 else f"{value / 1e6:.1f} M"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _svg(rows: list[dict[str, Any]]) -> str:
    """Three log-log panels, one line per series."""
    width, height = 330, 260
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width * len(_PANELS)} {height + 20}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width * len(_PANELS)}" height="{height + 20}" fill="white"/>',
    ]
    for number, panel in enumerate(_PANELS):
        parts += _panel(rows, panel, number * width, width, height)
    for number, (series, color) in enumerate(_COLORS.items()):
        x = 50 + 90 * number
        parts.append(f'<rect x="{x}" y="{height + 4}" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{x + 15}" y="{height + 13}">{series}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(rows: list[dict[str, Any]], panel: Any, left: int, width: int, height: int) -> list[str]:
    title, unit, key, phases = panel
    chosen = [row for row in rows if row["growth"] == "width*2" or "write" not in phases]
    points = [(row["series"], row[key], sum(row["seconds"][phase] for phase in phases)) for row in chosen]
    box = (left + 50, 30, left + width - 15, height - 35)
    spans = [_span([point[axis] for point in points]) for axis in (1, 2)]

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = ((math.log10(value) - low) / (top - low) for value, (low, top) in zip((x, y), spans, strict=True))
        return box[0] + across * (box[2] - box[0]), box[3] - up * (box[3] - box[1])

    wide, high = box[2] - box[0], box[3] - box[1]
    lines = [
        f'<text x="{box[0]}" y="18" font-weight="bold">{title}</text>',
        f'<text x="{(box[0] + box[2]) / 2}" y="{box[3] + 30}" text-anchor="middle">{unit}</text>',
        f'<rect x="{box[0]}" y="{box[1]}" width="{wide}" height="{high}" fill="none" stroke="#999"/>',
    ]
    for value in _ticks(spans[0]):
        x, _ = place(value, 10 ** spans[1][0])
        lines.append(f'<text x="{x:.1f}" y="{box[3] + 14}" text-anchor="middle">{_short(value)}</text>')
    for value in _ticks(spans[1]):
        _, y = place(10 ** spans[0][0], value)
        lines.append(f'<line x1="{box[0]}" x2="{box[2]}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/>')
        lines.append(f'<text x="{box[0] - 4}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for series, color in _COLORS.items():
        own = [place(x, y) for name, x, y in sorted(points) if name == series]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in own)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-opacity="0.4"/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in own]
    return lines


def _span(values: list[float]) -> tuple[float, float]:
    low, high = math.log10(min(values)), math.log10(max(values))
    return low - 0.1, high + 0.1


def _ticks(span: tuple[float, float]) -> list[float]:
    """Ones, twos and fives of each decade; ones alone where those are enough."""
    decades = range(math.floor(span[0]), math.ceil(span[1]) + 1)
    found = [factor * 10.0**k for k in decades for factor in (1, 2, 5)]
    inside = [value for value in found if span[0] <= math.log10(value) <= span[1]]
    ones = [value for value in inside if abs(math.log10(value) % 1) < 1e-9 or abs(math.log10(value) % 1 - 1) < 1e-9]
    return ones if len(ones) > 2 else inside


def _short(value: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


PHASES = ("capture", "axes", "chains", "plan", "write", "check")


def slope(rows: list[dict[str, Any]], x: str, phases: tuple[str, ...]) -> float | None:
    """Exponent k of seconds ~ x^k by least squares on logarithms; None for fewer than three sizes."""
    points = [(math.log(row[x]), math.log(sum(row["seconds"][phase] for phase in phases))) for row in rows]
    if len({a for a, _ in points}) < 3:
        return None
    mx, my = (sum(values) / len(points) for values in zip(*points, strict=True))
    return sum((a - mx) * (b - my) for a, b in points) / sum((a - mx) ** 2 for a, _ in points)
