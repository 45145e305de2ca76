"""docs/pairs.md from the rows that bench/pairs.py records."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator
from typing import Any

_INTRO = """# Growth from model to model

Results of `progc grow SOURCE --to TARGET` for pairs of published sizes: {models} models in {families} families. This
page is written by `python bench/pairs.py`; do not edit it. Versions: {versions}.

"Lossless" means that analysis proves it, and that the grown graph equals the graph of the target, operation by
operation, constants and buffers included. "Measured" pairs were also run: the source has noise on every weight, the
grown weights are loaded strictly into the class that the library builds, and both run in float64 and eval mode; the
number is the largest relative difference of their outputs. Larger models were not run, only analysed.
"""

OUTCOMES = (
    "lossless, loads strictly",
    "lossless on the old classes",
    "lossless after options are matched",
    "refused",
    "failed",
)


def page(rows: list[dict[str, Any]]) -> str:
    """The whole page."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    models = {row[side] for row in rows for side in ("source", "target")}
    versions = rows[0]["version"].partition(" ")[2] if rows else "none"
    codes = collections.Counter(row["version"].partition(" ")[0] for row in rows)
    versions += "; digest of progc's code: " + ", ".join(f"{code} ({n} pairs)" for code, n in codes.most_common())
    lines = [_INTRO.format(models=len(models), families=len(families), versions=versions), "## Totals", ""]
    lines += ["| outcome | pairs | of these measured |", "| --- | --- | --- |"]
    for name in OUTCOMES:
        chosen = [row for row in rows if outcome(row) == name]
        if chosen or name != "failed":
            lines.append(f"| {name} | {len(chosen)} | {sum('measured' in row for row in chosen)} |")
    lines += [f"| all | {len(rows)} | {sum('measured' in row for row in rows)} |", ""]
    for family in families:
        lines += [f"## {family}", "", "| pair | parameters | outcome | measured |", "| --- | --- | --- | --- |"]
        lines += [_line(row) for row in rows if row["family"] == family]
        lines += [*_notes([row for row in rows if row["family"] == family]), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def outcome(row: dict[str, Any]) -> str:
    """The class of a row, as the totals name it."""
    if row["outcome"] != "lossless":
        return str(row["outcome"])
    if row.get("alike"):
        return "lossless after options are matched"
    return "lossless on the old classes" if row.get("compared") == "old classes" else "lossless, loads strictly"


def _line(row: dict[str, Any]) -> str:
    source, target = (row[side].partition(":")[2] for side in ("source", "target"))
    text = outcome(row)
    if row.get("alike"):
        text = f"lossless, loads strictly, with the target built with `{row['alike']}`"
    for note in row.get("notes", ()):
        if note.startswith("compared at"):
            text += f"; {note}"
    if row["outcome"] in ("refused", "failed"):
        text = f"**{row['outcome']}**: {_short(row['reason'])}"
    params = " -> ".join(f"{count / 1e6:.1f} M" for count in row["params"]) if "params" in row else ""
    measured = f"{row['measured']:.0e}" if "measured" in row else "no"
    if row.get("lossy_rel_diff") is not None:
        measured = f"`--lossy`: {row['lossy_rel_diff']:.1g}"
    return f"| {source} -> {target} | {params} | {_cell(text)} | {measured} |"


def _notes(rows: list[dict[str, Any]]) -> Iterator[str]:
    """As published, why a pair that needs options is refused."""
    told = [row for row in rows if row.get("refused_as_published") and row["outcome"] == "lossless"]
    if told:
        yield ""
        for row in told:
            name = row["target"].partition(":")[2]
            yield f"- {name} as published: {_cell(_short(row['refused_as_published']))}"


def _short(reason: str) -> str:
    """Without the class names that every message of a pair repeats."""
    return re.sub(r"^\S+ does not grow into \S+?[:;] ", "", reason)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
