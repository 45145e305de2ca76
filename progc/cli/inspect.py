"""`progc inspect`: shows what progc finds in a model, or what an output folder, a plan or a run holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progc.checkpoints.searching import is_checkpoint
from progc.cli.checkpoint import print_checkpoint
from progc.cli.common import millions
from progc.cli.explained import ReasonChain
from progc.cli.terminal import Terminal
from progc.errors import InputError
from progc.files.reading import read_folder
from progc.files.writing import json_text
from progc.models.opening import open_source
from progc.models.source import of_library
from progc.runs.folder import is_run

if TYPE_CHECKING:
    from progc.ir.program import Program
    from progc.models.source import Source


def run_inspect(
    text: str, *, axes: bool, chains: bool, graph: bool, explain: str | None, stage: int | None, as_json: bool
) -> None:
    """Prints a summary, or the requested tables and graph. For a plan or a run, prints all of it or one stage.

    Raises:
        ProgcError: see the exit codes of `progc.cli`.
    """
    of_model = axes or chains or graph or explain is not None
    if text.endswith(".json") and not of_library(text) and not Path(text).is_dir():
        if of_model:
            raise InputError(f"{text} is a plan and holds no graph; give the model itself as SOURCE")
        _print_plan(Path(text), stage, as_json)
        return
    run = is_run(text)
    if stage is not None and not run:
        raise InputError(f"--stage {stage} needs a plan or a run, got {text}; give a file written by progc plan")
    if Path(text).is_dir() and not (run and of_model):
        if of_model:
            raise InputError(f"{text} is an output folder and holds no graph; give the model itself as SOURCE")
        if is_checkpoint(text) and stage is None:
            print_checkpoint(Path(text), as_json)
        elif run:
            from progc.cli.stored_run import print_run

            print_run(Path(text), stage, as_json)
        else:
            _print_folder(Path(text), as_json)
        return
    terminal = Terminal()
    make = _of_run(terminal, Path(text), stage) if run else _of_source(terminal, open_source(text))
    parts: dict[str, Any] = {}
    with terminal.running():
        program = make()
        from progc.analysis.axes import axes_of
        from progc.analysis.chains import chains_of

        everything = not (axes or chains or graph or explain is not None)
        with terminal.phase("analyse"):
            if axes or everything:
                parts["axes"] = axes_of(program)
            if chains or everything:
                parts["chains"] = chains_of(program)
            if explain is not None:
                parts["explain"] = ReasonChain.of(program, explain)
        if graph:
            from progc.ir.printer import print_graph

            parts["graph"] = print_graph(program, "eval")
    if as_json:
        shown = {name: part if isinstance(part, str) else part.to_json() for name, part in parts.items()}
        terminal.print(json_text({"source": text, **_facts(program), **shown}))
    elif everything:
        _print_summary(terminal, program)
    else:
        terminal.print("\n\n".join(str(part).rstrip("\n") for part in parts.values()))


def _of_source(terminal: Terminal, source: Source) -> Callable[[], Program]:
    """Captures the skeleton of a source."""

    def make() -> Program:
        from progc.capturing.capture import capture

        with terminal.phase("build"):
            model = source.build_skeleton()
            example = source.example(model)
        with terminal.phase("capture"):
            return capture(model, *example)

    return make


def _of_run(terminal: Terminal, path: Path, stage: int | None) -> Callable[[], Program]:
    """Opens a run, and makes the network of a stage without its weights; by default that of the newest weights."""
    from progc.runs.stored import StoredRun
    from progc.runs.trained import stage_program

    run = StoredRun.open(path)
    chosen = run.newest_stage() if stage is None else stage
    run.check_stage(chosen)
    terminal.note(f"stage {chosen} of {run.path}")
    return lambda: stage_program(run, chosen, phase=terminal.phase)


def _facts(program: Program) -> dict[str, Any]:
    return {
        "class": program.class_name,
        "params": program.num_parameters(),
        "inputs": [list(shape) if shape is not None else None for shape in program.signature.shapes],
        "dynamic_batch": any(program.signature.batch_dims),
        "nodes": {mode: len(graph.nodes) for mode, graph in program.graphs.items()},
    }


def _print_summary(terminal: Terminal, program: Program) -> None:
    facts = _facts(program)
    from progc.analysis.axes import axes_of
    from progc.analysis.chains import chains_of

    growable = sum(axis.growable for axis in axes_of(program).axes)
    chains = [f"{chain.name} ({len(chain.blocks)} blocks)" for chain in chains_of(program)]
    terminal.table(
        [
            ("class", facts["class"]),
            ("parameters", millions(facts["params"])),
            ("inputs", ", ".join("not a tensor" if shape is None else str(shape) for shape in facts["inputs"])),
            ("batch size", "free" if facts["dynamic_batch"] else "fixed by the model to that of the example inputs"),
            ("graph nodes", ", ".join(f"{mode} {count}" for mode, count in facts["nodes"].items())),
            ("axes", f"{growable} growable, {len(axes_of(program).axes) - growable} pinned (--axes)"),
            ("chains", ", ".join(chains) + " (--chains)" if chains else "none (--chains)"),
        ]
    )


def _print_plan(path: Path, stage: int | None, as_json: bool) -> None:
    from progc.cli.plan import described
    from progc.schedule.detail import stage_json, stage_text
    from progc.schedule.schedule import Schedule
    from progc.schedule.text import schedule_text

    schedule = Schedule.read(path)
    if as_json:
        content = described(schedule) if stage is None else stage_json(schedule, stage)
        Terminal().print(json_text(content))
    else:
        Terminal().print(schedule_text(schedule) if stage is None else stage_text(schedule, stage))


def _print_folder(path: Path, as_json: bool) -> None:
    terminal = Terminal()
    content = read_folder(path)
    if as_json:
        terminal.print(json_text(content))
        return
    report = content["report"]
    rows = [(name, _plain(value)) for name, value in report.items() if not isinstance(value, (list, dict))]
    rows += [(name, ", ".join(f"{k} {v}" for k, v in value.items())) for name, value in report.items() if _flat(value)]
    terminal.table(rows)
    for file, tensors in content["tensors"].items():
        terminal.print()
        terminal.print(f"{file}: {len(tensors)} tensors")
        terminal.table([(f"  {name}", f"{item['dtype']}{item['shape']}") for name, item in tensors.items()])


def _plain(value: Any) -> str:
    return {True: "yes", False: "no", None: "none"}.get(value, f"{value}") if _is_word(value) else str(value)


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _flat(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and not any(isinstance(v, (list, dict)) for v in value.values())
