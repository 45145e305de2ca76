"""Prints schedules in a terminal: the stages and their costs, the speedup, what a search decided. Imports no torch."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from progc.data.regularisation import Regularisation
from progc.files.text import aligned
from progc.schedule.point import Point, size_text
from progc.schedule.schedule import Candidate, Decision, Schedule
from progc.schedule.stage import COUNTED, MEASURED, PREDICTED, Stage, bound, sample_shares, speedups, time_shares

FULL = "full"
LINE = 100
"""Number of columns that text is wrapped to; tables of usual networks are narrower."""
_WORDS = {COUNTED: "in FLOPs", PREDICTED: "in predicted time", MEASURED: "in measured time"}
_MANY = 3  # at most this many chains or keys of width are listed in a cell

_DECIDED = {"plan": "by the plan", "open": "in training", "training": "in training *"}

Column = tuple[str, str, list[str]]


def schedule_text(schedule: Schedule) -> str:
    """Returns the whole schedule as text: one line per stage, facts about all of them, and the searches."""
    parts = [_head(schedule), _stages_table(schedule), _facts(schedule)]
    parts += [decision_text(decision) for decision in schedule.decisions]
    return "\n\n".join(part for part in parts if part)


def _head(schedule: Schedule) -> str:
    model, number = schedule.model, len(schedule.stages)
    made_of = " ".join(filter(None, (model.source, model.target and f"grown to {model.target}")))
    lines = [f"{model.class_name}, {model.parameters:,} parameters" + (f" ({made_of})" if made_of else "")]
    mode = f", {schedule.mode} mode" if schedule.strategy != "linear" or schedule.mode != "default" else ""
    lines.append(f"{schedule.strategy}{mode}, {number} stage{'s' * (number != 1)}, seed {schedule.seed}")
    return "\n".join(lines)


# --- stages ---------------------------------------------------------------------------------------------------------


def _stages_table(schedule: Schedule) -> str:
    stages = schedule.stages
    columns: list[Column] = [("", "stage", [str(stage.index) for stage in stages])]
    columns.append(("share", "of run", [percent(stage.share) for stage in stages]))
    if any(stage.decided != "plan" for stage in stages):
        columns.append(("", "decided", [_DECIDED[stage.decided] for stage in stages]))
    columns += point_columns([stage.point for stage in stages])
    costs = [stage.cost for stage in stages]
    if any(stage.batch is not None for stage in stages):
        columns.append(("", "batch", ["of the run" if stage.batch is None else str(stage.batch) for stage in stages]))
    columns.append(("", "trains", [_trains(stage) for stage in stages]))
    if any(costs):
        empty = ["-"] * len(stages)

        def of(read: Any) -> list[str]:
            return [blank if cost is None else read(cost) for blank, cost in zip(empty, costs, strict=True)]

        columns.append(("", "params", of(lambda cost: f"{figure(cost.parameters / 1e6)} M")))
        unit, scale = _flops_unit(stages)
        columns.append((unit, "forward", of(lambda cost: figure(cost.forward_flops / cost.batch / scale))))
        columns.append((unit, "backward", of(lambda cost: figure(cost.backward_flops / cost.batch / scale))))
        columns.append(("", "memory", of(lambda cost: memory(cost.memory))))
        shares = time_shares(stages, unit=schedule.unit)
        columns.append(("share", "of time", [percent(share) for share in shares] if shares else empty))
        if any(cost is not None and cost.seconds is not None for cost in costs):
            seconds = of(lambda cost: "-" if cost.seconds is None else figure(cost.seconds))
            columns.append(("seconds", "per step", seconds))
    return table(columns)


def point_columns(points: Sequence[Point]) -> list[Column]:
    """Returns a column for each dimension that varies among points."""
    columns: list[Column] = []
    if any(point.resolution for point in points):
        columns.append(("", "pixels", [size_text(p.resolution) if p.resolution else FULL for p in points]))
    if any(point.depths for point in points):
        columns.append(("", "depth", [_depth(point) for point in points]))
    if any(point.widths for point in points):
        columns.append(("", "width", [_width(point, points[-1]) for point in points]))
    if any(point.unfreeze for point in points):
        columns.append(("", "unfreeze", [str(p.unfreeze) if p.unfreeze else "all" for p in points]))
    return columns


def _depth(point: Point) -> str:
    depths = list(point.depths.values())
    if not depths:
        return FULL
    return "+".join(map(str, depths)) if len(depths) <= _MANY else str(sum(depths))


def _width(point: Point, last: Point) -> str:
    if not point.widths:
        return FULL
    if len(point.widths) <= _MANY:
        return "/".join(map(str, point.widths.values()))
    return percent(sum(point.widths.values()) / max(sum(last.widths.values()), 1))


def _trains(stage: Stage) -> str:
    if stage.cost is not None and stage.cost.parameters:
        return percent(stage.cost.trainable / stage.cost.parameters)
    return percent(float(stage.point.unfreeze.share)) if stage.point.unfreeze else "100 %"


def _flops_unit(stages: Sequence[Stage]) -> tuple[str, float]:
    """Name and size of the unit in which the largest stage has at least one."""
    most = max((cost.flops / cost.batch for stage in stages if (cost := stage.cost) is not None), default=0)
    return ("GFLOPs", 1e9) if most >= 1e9 else ("MFLOPs", 1e6)


def _facts(schedule: Schedule) -> str:
    stages = schedule.stages
    rows: list[tuple[str, str]] = []
    found = speedups(stages, schedule.unit)
    if found:
        gains = [f"{found[basis]:.2f}x {word}" for basis, word in _WORDS.items() if basis in found]
        rows.append(("speedup", f"{', '.join(gains)}, over training the full network throughout"))
        if len(stages) > 1:
            text = f"below {bound(stages, schedule.unit):.3g}x, because the last stage trains the full network"
            rows.append(("bound", f"{text} for {_last_part(schedule)}"))
    rows.append(("length", _length(schedule)))
    if schedule.open:
        text = f"stages {_and([str(index) for index in schedule.open])} are decided in training by {schedule.strategy}"
        rows.append(("search", f"{text}; the table shows the linear schedule in their place"))
    if any(stage.decided == "training" for stage in stages):
        rows.append(("*", "decided by a search during the run, shown below"))
    last, points = stages[-1].point, [stage.point for stage in stages]
    if len(last.depths) > 1:
        names = " + ".join(last.depths) if len(last.depths) <= _MANY else f"blocks of {len(last.depths)} chains"
        rows.append(("depth", names))
    if last.widths and list(last.widths) != ["width"]:
        few, text = len(last.widths) <= _MANY, f"units of {len(last.widths)} axes, as a part of the full network's"
        rows.append(("width", " / ".join(last.widths) if few else text))
    still = [
        what
        for what, values in (
            ("resolution", [point.resolution for point in points]),
            ("depth", [point.depths for point in points]),
            ("width", [point.widths for point in points]),
        )
        if not any(values)
    ]
    if still:
        rows.append(("fixed", f"{_and(still)}, as in the full network"))
    rows.append(("regularisation", _ramp([stage.regularisation for stage in stages])))
    sids = ["-" if stage.sid is None else str(stage.sid) for stage in stages]
    rows.append(("stage identifier", f"rows {' '.join(sids)}" if set(sids) != {"-"} else "none"))
    costs = [stage.cost for stage in stages if stage.cost is not None]
    if costs:
        rows.append((_flops_unit(stages)[0], "per sample; a multiply-add counts as two"))
        same = len({cost.batch for cost in costs}) == 1
        size = f"batch size {costs[0].batch}" if same else "the batch size of each stage"
        text = f"activations, parameters, gradients and optimizer state at {size}"
        rows.append(("memory", text))
    rows += [("rule", _rule(rule.to_json())) for rule in getattr(schedule, "rules", ())]
    rows += [("note", str(note)) for note in getattr(schedule, "notes", ())]
    return pairs(rows)


def _last_part(schedule: Schedule) -> str:
    """The part of the run that the last stage takes, or that of the samples where a step has other samples in it."""
    share, part = schedule.stages[-1].share, sample_shares(schedule.stages, schedule.unit)[-1]
    return f"{percent(share)} of the run" if part == share else f"{percent(part)} of the samples"


def _rule(data: Mapping[str, Any]) -> str:
    """A rule as text: `plateau: least 0.5, most 2, window 100, ...`."""
    rest = ", ".join(f"{key} {_setting(value)}" for key, value in data.items() if key != "kind")
    return f"{data.get('kind')}: {rest}"


def _length(schedule: Schedule) -> str:
    if schedule.total is None:
        return "not set; give it when training starts"
    starts = ", ".join(map(str, schedule.starts()))
    return f"{schedule.total} {schedule.unit}; stages start at {starts}"


def _ramp(levels: Sequence[Regularisation]) -> str:
    values = [level.to_json() for level in levels]
    names = list(dict.fromkeys(name for value in values for name in value))
    found = []
    for name in names:
        steps = ["not set" if name not in value else f"{value[name]:.3g}" for value in values]
        found.append(f"{name.replace('_', ' ')} {' '.join(steps) if len(set(steps)) > 1 else steps[0]}")
    return "; ".join(found) or "not set by the plan"


# --- searches -------------------------------------------------------------------------------------------------------


def decision_text(decision: Decision) -> str:
    """Returns a search at one stage as text: candidates with scores, ranks (`#`) and totals; `*` marks the winner."""
    candidates = decision.candidates
    number = len(candidates)
    took = f", {figure(decision.seconds)} s" if decision.seconds is not None else ""
    head = f"search at stage {decision.stage}: {number} candidate{'s' * (number != 1)}{took}"
    columns: list[Column] = [("", "", ["*" if place == decision.winner else "" for place in range(number)])]
    columns += point_columns([candidate.point for candidate in candidates])
    for name in dict.fromkeys(name for candidate in candidates for name in candidate.scores):
        columns.append(("", _score_name(name), [_score(candidate, name) for candidate in candidates]))
        if any(name in candidate.ranks for candidate in candidates):
            columns.append(("", "#", [_rank(candidate, name) for candidate in candidates]))
    columns.append(("", "total", [_plain(candidate.total) for candidate in candidates]))
    lines = [head, table(columns), _wrapped(f"chosen: {decision.reason}", 8)]
    if decision.settings:
        settings = [f"{key} {_setting(value)}" for key, value in decision.settings.items()]
        lines.append(_wrapped(f"with {', '.join(settings)}", 5))
    return "\n".join(lines)


def _score_name(name: str) -> str:
    return f"{name} s" if name in ("time", "seconds") else name.replace("_", " ")


def _score(candidate: Candidate, name: str) -> str:
    return _plain(candidate.scores[name]) if name in candidate.scores else "-"


def _rank(candidate: Candidate, name: str) -> str:
    return f"{candidate.ranks[name]:g}" if name in candidate.ranks else "-"


def _plain(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value + 0.0:.4g}"


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {_setting(item)}" for key, item in value.items()) + ")" if value else "none"
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(_setting(item) for item in value) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- figures and columns --------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    """Returns a share as text: `25 %`, with one decimal below 10 %."""
    return f"{100 * share:.{0 if share >= 0.0995 or share == 0 else 1}f} %"


def figure(value: float) -> str:
    """Returns a number with three digits, without an exponent above 0.001: `1,234`, `12.3`, `1.23`, `0.0123`."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def memory(count: int) -> str:
    """Returns a number of bytes as text: `1.21 GiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{figure(count / size)} {unit}"
    return f"{count} B"


def table(columns: Sequence[Column]) -> str:
    """Returns columns with two heading lines, aligned to the right; an empty upper heading line is left out."""
    heads = [[top for top, _, _ in columns]] if any(top for top, _, _ in columns) else []
    rows = [*heads, [name for _, name, _ in columns], *map(list, zip(*(cells for _, _, cells in columns), strict=True))]
    return aligned(rows, right=True)


def pairs(rows: Sequence[tuple[str, str]], whole: Sequence[str] = ()) -> str:
    """Returns lines of a name and a text; long texts are wrapped, except for the names in `whole`."""
    width = max((len(name) for name, _ in rows), default=0)
    lines = []
    for name, text in rows:
        line = f"{name.ljust(width)}  {text}".rstrip()
        lines.append(line if name in whole else _wrapped(line, width + 2))
    return "\n".join(lines)


def _wrapped(line: str, indent: int) -> str:
    return textwrap.fill(
        line, LINE, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False,
        drop_whitespace=True, replace_whitespace=False,
    )  # fmt: skip


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
