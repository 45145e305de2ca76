"""`progc apply`: runs a pipeline of passes on a source."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progc.cli.averaged import with_average, write_average
from progc.cli.common import captured, millions, versions
from progc.cli.terminal import Terminal
from progc.errors import InputError, NotLosslessError
from progc.files.writing import check_output, json_text, output_folder, write_json
from progc.runs.sources import open_network, origin_of

if TYPE_CHECKING:
    from progc.ir.check import Difference
    from progc.ir.program import Program
    from progc.pipeline.base import Pass, PassResult


def run_apply(
    source: str,
    pipeline: str,
    *,
    weights: Path | None,
    average: float | None,
    ema: Path | None,
    init: str | None,
    out: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Runs the passes, writes the result, and prints what each pass did.

    Raises:
        ProgcError: see the exit codes of `progc.cli`. A pipeline that does not parse is refused before any work.
    """
    from progc.pipeline.base import to_text
    from progc.pipeline.text import parse, parse_inits

    terminal = Terminal()
    passes = parse(pipeline)
    if init is not None:
        passes = _with_inits(passes, init, parse_inits(init))
    opened = open_network(source, weights=weights, average=average, note=terminal.note)
    if out is not None:
        check_output(out)

    with terminal.running():
        program = captured(terminal, opened, weights, seed)
        if ema is not None:
            program = with_average(program, ema)
        with terminal.phase("passes"):
            from progc.pipeline.manager import run

            result, steps = run(program, passes)
        claims = [step.lossless for step in steps if step.lossless is not None]
        lossless = all(claims) if claims else None
        with terminal.phase("check"):
            # Outputs at another input size cannot be compared; an input that a pass added has an example.
            shapes = program.signature.shapes
            comparable = lossless is not None and result.signature.shapes[: len(shapes)] == shapes
            difference = _measured(program, result, steps, seed, to_text(passes)) if comparable else None
        report: dict[str, Any] = {
            "source": source,
            "pipeline": to_text(passes),
            "weights": origin_of(opened, weights),
            "ema": str(ema) if ema is not None else None,
            "seed": seed,
            "passes": [
                {
                    "pass": to_text([item]),
                    "changed": step.changed,
                    "counts": dict(step.counts),
                    "lossless": step.lossless,
                    "notes": list(step.notes),
                }
                for item, step in zip(passes, steps, strict=True)
            ],
            "params_before": program.num_parameters(),
            "params_after": result.num_parameters(),
            "lossless": lossless,
            "max_abs_diff": difference.max_abs if difference is not None else None,
            "max_rel_diff": difference.max_rel if difference is not None else None,
            "seconds": terminal.seconds,
            "versions": versions(),
        }
        if out is not None:
            from progc.diffing.facts import describe_program
            from progc.ir.tensor_file import write_tensors

            with terminal.phase("describe"):
                report["program"] = describe_program(result).to_json()
            with output_folder(out) as folder:
                with terminal.phase("write"):
                    write_tensors(folder / "model.safetensors", result.persistent())
                    if ema is not None:
                        write_average(folder, result)
                write_json(folder / "report.json", report)
    if as_json:
        terminal.print(json_text(report))
        return
    for entry in report["passes"]:
        counts = ", ".join(f"{what}: {count}" for what, count in entry["counts"].items())
        terminal.print(f"{entry['pass']}: {counts or 'changed' if entry['changed'] else 'unchanged'}")
        for note in entry["notes"]:
            terminal.print(f"    {note}")
    terminal.print(f"parameters: {millions(program.num_parameters())} -> {millions(result.num_parameters())}")
    if lossless is not None:
        terminal.print(f"lossless: {'yes' if lossless else 'no'}")
    if difference is not None:
        terminal.print(f"difference: max absolute {difference.max_abs:.2e}, relative {difference.max_rel:.2e}")
    if out is not None:
        terminal.print(f"written: {out}")


def _with_inits(passes: Sequence[Pass], text: str, inits: Mapping[str, str]) -> list[Pass]:
    """The passes, with these inits where they name none of their own.

    Raises:
        InputError: no pass grows what an init is for.
    """
    from progc.passes.grow_depth import GrowDepth
    from progc.passes.grow_width import GrowWidth
    from progc.pipeline.text import depth_options

    options: list[tuple[str, Pass, dict[str, Any]]] = [
        ("depth", GrowDepth(), depth_options(inits)),
        ("width", GrowWidth(), {"init": inits.get("width")}),
    ]
    found = list(passes)
    for kind, plain, values in options:
        own = [place for place, item in enumerate(found) if isinstance(item, type(plain))]
        if kind in inits and not own:
            raise InputError(f"--init {text}: the pipeline has no {plain.name}; add it, or remove {kind}= from --init")
        for place in own if kind in inits else ():
            if getattr(found[place], "init", None) == getattr(plain, "init", None):
                found[place] = dataclasses.replace(found[place], **values)
    return found


def _measured(before: Program, after: Program, steps: Sequence[PassResult], seed: int, text: str) -> Difference:
    """Compares the result with the source in float64.

    Raises:
        NotLosslessError: the passes claim to preserve the function, and the outputs differ.
    """
    from progc.lift.revert import measure, tolerance

    lifts = [step.lift for step in steps if step.lift is not None]
    difference = measure(before, after, lifts, seed=seed)
    limit = tolerance(lifts)
    claimed = all(step.lossless is not False for step in steps)
    if claimed and not difference.max_rel <= limit:
        raise NotLosslessError(
            f"{text} claims to be lossless, but outputs differ by {difference.max_rel:.2e} relative in float64 "
            f"(limit {limit:g}); report this together with the model"
        )
    return difference
