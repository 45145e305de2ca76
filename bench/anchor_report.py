"""docs/anchor.md from the rows of bench/anchor.py."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_TEXT = """# Side by side with Torch-Pruning

The closest relative of progc's analysis is the dependency graph of
[Torch-Pruning](https://github.com/VainF/Torch-Pruning) (Fang et al., CVPR 2023). Both find which dims of which
parameters belong together: Torch-Pruning to remove channels, progc to add them. This page is
written by `bench/anchor.py --report` from `bench/results/anchor.json`: {count} untrained models, both tools on the same
model in one run, one thread, CPU seconds.

| | progc | Torch-Pruning {version} |
| --- | --- | --- |
{summary}

- *structure found*: progc captures and analyses the model; Torch-Pruning traces it (`build_dependency`) and gives a
  pruning group for every convolution and linear layer.
- *parameters reached*: in progc, parameters on an axis that can grow; in Torch-Pruning, parameters in a pruning group.
- *factor of two holds*: in progc, growth to twice the width is lossless by analysis and in float64. In Torch-Pruning,
  its pruner runs at ratio 0.5 with default options and without the layers that make the network's outputs, and the
  pruned network still runs and returns outputs of the same shape. Users can give it options that this run does not
  give, such as the number of heads of each attention. That a network runs is a weaker requirement than that it computes
  the same function.
- *seconds*: progc traces twice (train and eval) with torch.export, which carries symbolic batch sizes; Torch-Pruning
  follows autograd through one forward. Groups are listed separately.

## What only one of them handles

{only}

## Every model

{table}

## Reasons

{reasons}
"""


def write_report(rows: list[dict[str, Any]]) -> None:
    """Writes the page."""
    import importlib.metadata

    try:
        version = importlib.metadata.version("torch-pruning")
    except importlib.metadata.PackageNotFoundError:
        version = ""
    ours, theirs = ([row[tool] for row in rows] for tool in ("progc", "torch_pruning"))
    summary = [
        ("models", str(len(ours)), str(len(theirs))),
        ("structure found", *(_share(one["ok"] for one in side) for side in (ours, theirs))),
        ("factor of two holds", *(_share(one.get("holds", False) for one in side) for side in (ours, theirs))),
        ("parameters reached, median", *(_median(side, "coverage", "{:.1%}") for side in (ours, theirs))),
        ("tracing, median seconds", _median(ours, "capture", "{:.2f}"), "with the analysis"),
        ("analysis, median seconds", *(_median(side, "analysis", "{:.3f}") for side in (ours, theirs))),
        ("groups of all layers, median seconds", "with the analysis", _median(theirs, "groups", "{:.3f}")),
    ]
    table = ["| model | reached | holds | capture, s | axes, s | reached | holds | build, s | groups, s |"]
    table += ["| --- | ---: | --- | ---: | ---: | ---: | --- | ---: | ---: |"]
    for row in rows:
        a, b = row["progc"], row["torch_pruning"]
        cells = [*_cells(a, ("capture", "analysis")), *_cells(b, ("analysis", "groups"))]
        table.append(f"| {row['model']} | {' | '.join(cells)} |")
    text = _TEXT.format(
        count=len(rows),
        version=version,
        summary="\n".join(f"| {' | '.join(cells)} |" for cells in summary),
        only="\n".join(_only(rows)),
        table="The left four columns are progc, the right four Torch-Pruning.\n\n" + "\n".join(table),
        reasons="\n".join(_reasons(rows)) or "None.",
    )
    (ROOT / "docs/anchor.md").write_text(text, encoding="utf-8")


def _share(flags: Any) -> str:
    found = list(flags)
    return f"{sum(map(bool, found))} of {len(found)}"


def _median(side: list[dict[str, Any]], key: str, form: str) -> str:
    values = [one[key] for one in side if key in one]
    return form.format(statistics.median(values)) if values else "none"


def _cells(one: dict[str, Any], keys: tuple[str, str]) -> list[str]:
    if "coverage" not in one:
        return ["failed", "no", "", ""]
    return [f"{one['coverage']:.1%}", "yes" if one["holds"] else "no", *(f"{one[key]:.3f}" for key in keys)]


def _only(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for label, question in (("structure found", "ok"), ("factor of two holds", "holds")):
        for tool, other, title in (("progc", "torch_pruning", "progc"), ("torch_pruning", "progc", "Torch-Pruning")):
            names = [row["model"] for row in rows if row[tool].get(question) and not row[other].get(question)]
            lines.append(f"- {label}, only {title} ({len(names)}): {', '.join(names) or 'none'}")
    more = [
        (row["model"], row["progc"]["coverage"], row["torch_pruning"]["coverage"])
        for row in rows
        if "coverage" in row["progc"] and "coverage" in row["torch_pruning"]
    ]
    for title, sign in (("progc", 1), ("Torch-Pruning", -1)):
        names = [f"{name} ({a:.0%} against {b:.0%})" for name, a, b in more if sign * (a - b) > 0.02]
        lines.append(f"- more parameters reached by {title} ({len(names)}): {', '.join(names) or 'none'}")
    return lines


def _reasons(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        for tool, title in (("progc", "progc"), ("torch_pruning", "Torch-Pruning")):
            one = row[tool]
            reason = one.get("failure") or ("" if one.get("holds") else one.get("why", ""))
            if reason:
                lines.append(f"- {row['model']}, {title}: {' '.join(reason.replace('|', '/').split())}")
    return lines
