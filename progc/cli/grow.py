"""`progc grow`: grows a source to a target, and writes weights, plan and report."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progc.cli.averaged import with_average, write_average
from progc.cli.common import captured, millions, versions
from progc.cli.explained import Explainer
from progc.cli.terminal import Terminal
from progc.errors import CheckError, TargetError
from progc.files.writing import check_output, json_text, output_folder, write_json
from progc.models.opening import open_target, resolve_target
from progc.models.sizes import Sizes
from progc.pipeline.text import parse_inits
from progc.runs.sources import open_network, origin_of

if TYPE_CHECKING:
    from progc.ir.program import Program


def run_grow(
    source: str,
    to: str,
    *,
    weights: Path | None,
    ema: Path | None,
    init: str | None,
    lossy: bool,
    explain: str | None,
    out: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Grows, checks, writes, and prints the report. Mistakes in arguments are refused before any work.

    Raises:
        ProgcError: see the exit codes of `progc.cli`.
    """
    terminal = Terminal()
    inits = parse_inits(init) if init is not None else {}
    target = open_target(to)
    opened = open_network(source, weights=weights, note=terminal.note)
    if out is not None:
        check_output(out)

    with terminal.running():
        program = captured(terminal, opened, weights, seed)
        if ema is not None:
            program = with_average(program, ema)
        notes: list[str] = []
        if not isinstance(target, Sizes):
            with terminal.phase("target"):
                aim = resolve_target(to, source=program, seed=seed, notes=notes)
        else:
            aim = target
        from progc.diffing.facts import describe_program
        from progc.growth.grow import grow_with_report

        explainer = Explainer(program, explain, inits.get("width", "copy")) if explain is not None else None
        # Weights are made one tensor at a time and written at once; the check reads them back. If the check fails, the
        # folder is removed.
        with output_folder(out) if out is not None else contextlib.nullcontext() as folder:
            try:
                growth = grow_with_report(
                    program,
                    aim,
                    inits=inits,
                    lossy=lossy,
                    seed=seed,
                    progress=terminal.phase,
                    notes=notes,
                    place=lambda grown: _written(grown, folder),
                    watch=explainer.watch if explainer is not None else None,
                )
            except (CheckError, TargetError):  # the reasons come first, so that the refusal is the last line
                if explainer is not None:
                    chain = explainer.refused()
                    refusal = {"source": source, "target": to, "axes": chain.to_json()}
                    terminal.print(json_text(refusal) if as_json else str(chain))
                raise
            report = {
                "source": source,
                "target": to,
                "weights": origin_of(opened, weights),
                "ema": str(ema) if ema is not None else None,
                "init": dict(growth.plan.inits),
                "lossy": lossy,
                "seed": seed,
                **growth.report,
                "versions": versions(),
            }
            if folder is not None:
                if ema is not None:
                    with terminal.phase("write"):
                        write_average(folder, growth.program)
                with terminal.phase("describe"):
                    report["program"] = describe_program(growth.program).to_json()
                write_json(folder / "plan.json", growth.plan.to_json())
                report["seconds"] = dict(terminal.seconds)
                write_json(folder / "report.json", report)
        report["seconds"] = dict(terminal.seconds)
    if as_json:
        terminal.print(json_text(report))
    else:
        terminal.print(str(growth.plan).rstrip("\n"))
        for note in growth.plan.notes:
            terminal.print(f"  note: {note}")
        if explainer is not None:
            terminal.print(f"\n{explainer.grown(growth)}")
        terminal.print()
        terminal.table(list(_summary(report, out)))


def _written(grown: Program, folder: Path | None) -> Program:
    """Writes the weights to the output folder; the returned program reads them from there when needed."""
    if folder is None:
        return grown
    from progc.ir.tensor_file import read_deferred, write_tensors

    path = folder / "model.safetensors"
    write_tensors(path, grown.persistent())
    stored = read_deferred(path, grown.persistent())
    return grown.replace(tensors={**grown.tensors, **stored})


def _summary(report: Mapping[str, Any], out: Path | None) -> list[tuple[str, str]]:
    before, after = report["params_before"], report["params_after"]
    rows = [
        ("parameters", f"{millions(before)} -> {millions(after)}"),
        ("lossless", _lossless(report)),
        ("difference", f"max absolute {_number(report['max_abs_diff'])}, relative {_number(report['max_rel_diff'])}"),
        ("seconds", ", ".join(f"{name} {spent:.1f}" for name, spent in report["seconds"].items())),
    ]
    if out is not None:
        rows.append(("written", str(out)))
    return rows


def _lossless(report: Mapping[str, Any]) -> str:
    if report["lossless"]:
        what = "" if report["compared"] == "all outputs" else f"lossless on the {report['compared']}, "
        return f"yes, {what}by analysis and by running both in float64"
    return f"no: {'; '.join(report['reasons'])}"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2e}"
