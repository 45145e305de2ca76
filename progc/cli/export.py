"""`progc export`: writes the network of a run for other programs."""

from __future__ import annotations

from pathlib import Path

from progc.cli.common import millions, versions
from progc.cli.terminal import Terminal
from progc.files.writing import json_text


def run_export(
    run: Path,
    *,
    average: float | None,
    stage: int | None,
    sid: str | None,
    form: str | None,
    to: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Exports the network, and prints what was written and how it was checked.

    Raises:
        ProgcError: see the exit codes of `progc.cli`. Mistakes in options are refused before any work.
    """
    from progc.runs.exporting.export import Request, export
    from progc.runs.trained import TrainedNetwork

    terminal = Terminal()
    with terminal.running():
        network = TrainedNetwork.open(run, stage=stage, average=average, note=terminal.note)
        request = Request.make(network, sid=sid, form=form, to=to, force=force)
        report = export(request, phase=terminal.phase, note=terminal.note)
    report = {**report, "seconds": terminal.seconds, "versions": versions()}
    if as_json:
        terminal.print(json_text(report))
        return
    whole = "finished" if report["finished"] else "not finished"
    step = "" if report["step"] is None else f", step {report['step']:,}"
    averages = ", ".join(map(repr, report["averages"])) or "none"
    rows = [
        ("run", f"{report['run']}, {whole}"),
        ("stage", f"{report['stage']} of stages 0 to {report['stages'] - 1}{step}"),
        ("weights", report["weights"]),
        ("average", f"none (there are: {averages})" if report["average"] is None else f"decay {report['average']!r}"),
        ("identifier", _identifier(report["sid"], report["folded_into"])),
        ("own class", report["class"] + (f": {report['class_reason']}" if report["class_reason"] else "")),
        ("difference", _difference(report["max_abs_diff"], report["max_rel_diff"])),
        ("parameters", millions(report["params"])),
        ("written", f"{report['path']} ({report['bytes']:,} bytes)"),
    ]
    terminal.table(rows)


def _identifier(sid: int | str | None, into: list[str]) -> str:
    if isinstance(sid, int):
        return f"row {sid} folded into {', '.join(into)}"
    return "none" if sid is None else "kept: the stage is an input of the network"


def _difference(absolute: float | None, relative: float | None) -> str:
    if absolute is None or relative is None:
        return "not measured"
    return f"max absolute {absolute:.2e}, relative {relative:.2e}, from the run's network (float64)"
