"""docs/coverage.md from the rows of the coverage sweep."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench.common import machine

PAGE = Path(__file__).resolve().parent.parent / "docs/coverage.md"
GROWTHS = ("width*2", "width*1.5", "depth*2", "width*2,depth*2")
GOAL = 0.95
EXACT = ("lossless", "proved")

Row = dict[str, Any]


def summary(row: Row) -> str:
    """One line about a model, for progress."""
    if row.get("captured") is not True:
        return str(row.get("captured"))[:200]
    parts = [f"{row['share']:.1%} of {row['parameters'] / 1e6:.1f} M"]
    for target, entry in row["growths"].items():
        figure = f" {entry['eval']:.0e}" if "eval" in entry else ""
        wrong = " TRAIN" if entry["outcome"] == "lossless" and "reason" in entry else ""
        parts.append(f"{target} {entry['outcome']}{figure}{wrong}")
    return ", ".join(parts)


def totals(rows: list[Row]) -> dict[str, Any]:
    """Counts by library."""
    found: dict[str, Any] = {}
    for library in dict.fromkeys(row["library"] for row in rows):
        own = [row for row in rows if row["library"] == library]
        good = [row for row in own if row["captured"] is True]
        entry: dict[str, Any] = {
            "models": len(own),
            "captured": len(good),
            "share of parameters at least 95 %": sum(row["share"] >= GOAL for row in good),
            "models with a chain": sum(row["chains"] > 0 for row in good),
        }
        for target in GROWTHS:
            outcomes = [row["growths"][target]["outcome"] for row in good]
            entry[target] = {name: outcomes.count(name) for name in sorted(set(outcomes))}
        found[library] = entry
    return found


def write(rows: list[Row]) -> Path:
    """Writes the page; returns its path."""
    PAGE.write_text("\n".join(_page(rows)) + "\n", encoding="utf-8")
    return PAGE


def _page(rows: list[Row]) -> list[str]:
    where = machine()
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    lines = [
        "# Coverage",
        "",
        "How far progc can capture and grow every model family of timm, torchvision, diffusers and transformers.",
        "Written by `python bench/coverage.py`; all figures are in `bench/results/coverage.json`.",
        "",
        f"{where['date'][:10]}, {where['usable_cores']} cores, Python {where['python']}, {versions}.",
        "",
        "## Totals",
        "",
        "| | " + " | ".join(totals(rows)) + " |",
        "| --- |" + " --- |" * len(totals(rows)),
    ]
    lines += _totals_table(totals(rows))
    lines += ["", *_worst(rows), "", *_reading()]
    for library in dict.fromkeys(row["library"] for row in rows):
        lines += ["", f"## {library}", "", *_table([row for row in rows if row["library"] == library])]
    return [*lines, "", "## Refused, and why", "", *_refusals(rows), "", "## Parameters that stay", "", *_stay(rows)]


def _totals_table(found: dict[str, Any]) -> list[str]:
    lines = []
    for key in ("models", "captured", "share of parameters at least 95 %", "models with a chain"):
        lines.append(f"| {key} | " + " | ".join(str(entry[key]) for entry in found.values()) + " |")
    for target in GROWTHS:
        cells = [", ".join(f"{count} {name}" for name, count in entry[target].items()) for entry in found.values()]
        lines.append(f"| `{target}` | " + " | ".join(cells) + " |")
    return lines


def _worst(rows: list[Row]) -> list[str]:
    growths = [entry for row in rows for entry in row.get("growths", {}).values()]
    measured = [entry["eval"] for entry in growths if "eval" in entry]
    trained = [entry["train"] for entry in growths if entry.get("train") is not None]
    wrong = [entry for entry in growths if entry["outcome"] == "defect" or "train mode" in entry.get("reason", "")]
    seconds = sum(row["wall"] for row in rows)
    return [
        f"{len(growths)} growths; {len(measured)} carried out and compared in float64 in eval mode: largest relative",
        f"difference {max(measured, default=0):.1e}, median {statistics.median(measured or [0]):.1e}. "
        f"{len(trained)} compared in train mode too:",
        f"largest {max(trained, default=0):.1e}. Inexact although called lossless, or ended by an error: {len(wrong)}.",
        f"{seconds / 60:.0f} minutes of processes in all.",
    ]


def _reading() -> list[str]:
    return [
        "How to read the tables: *share* is the share of the parameters that lie on at least one axis that can grow;",
        "*seconds* are capture, analysis (axes and chains), growth and float64 check of `width*2`, on one core. A",
        "growth cell shows the factor of parameters and the largest relative difference in eval mode, then in train",
        "mode. A dash means that the growth was refused, for the reason listed at the end. *proved* means exact by",
        "analysis, not measured because of the size. Factors such as 1/sqrt(2) are rounded to the weights' dtype:",
        "differences around 1e-7 come from this, and differences around 1e-15 from the rounding of float64.",
    ]


def _table(rows: list[Row]) -> list[str]:
    lines = [
        "| family | model | M params | seconds | share | " + " | ".join(f"`{target}`" for target in GROWTHS) + " |",
        "| --- | --- | --: | --- | --: |" + " --- |" * len(GROWTHS),
    ]
    for row in rows:
        if row["captured"] is not True:
            lines.append(f"| {row['family']} | {row['model']} | | | | not captured: {row['captured']} | | | |")
            continue
        first = row["growths"]["width*2"]["seconds"]
        times = [row["seconds"]["capture"], row["seconds"]["analyse"], first.get("grow"), first.get("check")]
        seconds = ", ".join("-" if spent is None else f"{spent:.1f}" for spent in times)
        cells = [_cell(row["growths"][target]) for target in GROWTHS]
        lines.append(
            f"| {row['family']} | {row['model']} | {row['parameters'] / 1e6:.1f} | {seconds} | {row['share']:.1%} | "
            + " | ".join(cells)
            + " |"
        )
    return lines


def _cell(entry: dict[str, Any]) -> str:
    outcome = entry["outcome"]
    if outcome == "refused":
        return "-"
    if outcome == "proved":
        return f"x{entry['factor']:.2f} proved"
    if outcome != "lossless":
        return str(outcome)
    train = f", {entry['train']:.0e}" if entry.get("train") is not None else ""
    train = ", eval only" if "eval only" in entry else train
    return f"x{entry['factor']:.2f} {entry['eval']:.0e}{train}"


def _refusals(rows: list[Row]) -> list[str]:
    lines = []
    for row in rows:
        for target, entry in row.get("growths", {}).items():
            if entry["outcome"] in ("refused", "defect", "not run") or "train mode" in entry.get("reason", ""):
                lines.append(f"- {row['library']}:{row['model']} `{target}` {entry['outcome']}: {entry['reason']}")
    return lines or ["Nothing."]


def _stay(rows: list[Row]) -> list[str]:
    lines = []
    for row in rows:
        if row.get("captured") is True and row["share"] < 0.999:
            reasons = "; ".join(f"{count:,} ({reason})" for count, reason in row["pinned"][:3])
            lines.append(f"- {row['library']}:{row['model']}: {1 - row['share']:.2%}: {reasons}")
    return lines or ["None."]
