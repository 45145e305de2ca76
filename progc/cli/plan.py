"""`progc plan`: a schedule for a model, printed and written as one JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progc.cli.common import captured, versions
from progc.cli.terminal import Terminal
from progc.data.regularisation import Regularisation
from progc.errors import InputError, did_you_mean
from progc.files.writing import check_file, json_text
from progc.models.opening import open_source, open_target, resolve_target
from progc.models.sizes import Sizes
from progc.models.source import Source
from progc.runs.config_file import key_values, literal
from progc.schedule.schedule import MODES, STRATEGIES, Schedule
from progc.schedule.shares import time_shares
from progc.schedule.text import schedule_text

if TYPE_CHECKING:
    from progc.data.task import Task
    from progc.ir.program import Program

MAX_STAGES = 100


def run_plan(
    source: str,
    *,
    to: str | None,
    strategy: str,
    stages: int,
    mode: str,
    space: Mapping[str, str | None],
    epochs: int | None,
    steps: int | None,
    batch: int | None,
    data: Path | None,
    weights: Path | None,
    seed: int,
    measure: bool,
    settings: Sequence[str],
    sid: bool,
    regularise: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Plans, writes, and prints; cheap mistakes are found before any work.

    Args:
        space: `depths`, `widths`, `resolutions`, `unfreeze` to the text that narrows them, None where none was given.

    Raises:
        ProgcError: see the exit codes of `progc.cli`.
    """
    terminal = Terminal()
    for what, value, known in (("strategy", strategy, STRATEGIES), ("mode", mode, MODES)):
        if value not in known:
            hint = did_you_mean(value, known) or f"; expected {', '.join(known[:-1])} or {known[-1]}"
            raise InputError(f"there is no {what} `{value}`{hint}")
    total, unit = _length(stages, epochs, steps)
    options = {key: literal(text) for key, text in key_values(settings, example="batches=4").items()}
    if options and strategy == "linear":
        raise InputError(f"--set {settings[0]}: a linear plan has no settings; choose --strategy one-shot or zero-shot")
    if sid:
        options["sid"] = True
    strengths = _strengths(regularise)
    searching = strategy != "linear" and stages > 1
    if data is not None and not (searching or measure):
        raise InputError(f"--data {data} is for a search and for --measure; a linear plan needs no samples")
    opened = open_source(source)
    target = open_target(to) if to is not None else None
    if out is not None:
        check_file(out)

    with terminal.running():
        task = None
        if searching or measure:
            with terminal.phase("data"):
                task = _task(opened, data, f"strategy {strategy}" if searching else "--measure")
        real = searching or measure or weights is not None
        start = captured(terminal, opened, weights, seed) if real else _outline(terminal, opened, seed)
        full, notes = (start, []) if target is None else _grown(terminal, start, to or "", target, seed, real)
        with terminal.phase("plan"):
            from progc.search.plan import plan

            schedule = plan(
                full,
                strategy=strategy,
                stages=stages,
                mode=mode,
                task=task,
                batch=batch,
                seed=seed,
                total=total,
                unit=unit,
                measure=measure,
                regularise=strengths,
                source=source,
                target=to,
                start=start if target is not None else None,
                settings=options,
                progress=terminal.note,
                depths=space.get("depths"),
                widths=space.get("widths"),
                resolutions=space.get("resolutions"),
                unfreeze=space.get("unfreeze"),
            )
            if total is not None:
                schedule.starts()  # refuses a run that is too short before anything is written
        for note in notes:
            terminal.note(note)
        if out is not None:
            schedule.write(out)
    if as_json:
        terminal.print(json_text({**described(schedule), "seconds": terminal.seconds, "versions": versions()}))
        return
    terminal.print(schedule_text(schedule))
    if out is not None:
        terminal.print(f"\nwritten: {out}")


def described(schedule: Schedule) -> dict[str, Any]:
    """The schedule as JSON, with what follows from it."""
    return {**schedule.to_json(), "speedup": schedule.speedup, "time_shares": time_shares(schedule.stages)}


def _strengths(text: str | None) -> bool | Regularisation:
    """What `plan` takes for --regularise."""
    if text is None:
        return True
    return False if text.strip().lower() == "none" else Regularisation.parse(text)


def _length(stages: int, epochs: int | None, steps: int | None) -> tuple[int | None, str]:
    """Length of the run and its unit."""
    if not 1 <= stages <= MAX_STAGES:
        raise InputError(f"--stages {stages}: expected a number from 1 to {MAX_STAGES}")
    if epochs is not None and steps is not None:
        raise InputError("--epochs and --steps are both given; the length of a run is one of them")
    total, unit = (steps, "steps") if steps is not None else (epochs, "epochs")
    if total is not None and total < stages:
        raise InputError(f"--{unit} {total}: too few for {stages} stages; give at least one for each")
    return total, unit


def _task(opened: Source, data: Path | None, what: str) -> Task:
    """Samples and loss: from --data, else from the source's own file.

    Raises:
        InputError: there are none.
    """
    from progc.data.taskfile import has_task, load_task

    if data is not None:
        return load_task(data)
    path = opened.file
    if path is not None and has_task(path):
        return load_task(path)
    where = f"{path}, or in a file given by --data" if path is not None else "a file and give it by --data FILE.py"
    raise InputError(
        f"{what} needs samples and a loss; write def datasets(): return train, validation and "
        f"def loss(outputs, batch) in {where}"
    )


def _outline(terminal: Terminal, opened: Source, seed: int) -> Program:
    """The source without weights: nothing that is planned linearly depends on them."""
    from progc.capturing.capture import capture_deferred

    with terminal.phase("build"):
        model = opened.build_skeleton(seed, allocate=False)
        example = opened.example(model)
    with terminal.phase("capture"):
        return capture_deferred(model, *example)


def _grown(
    terminal: Terminal, start: Program, to: str, target: Sizes | Source, seed: int, real: bool
) -> tuple[Program, list[str]]:
    """The source grown to `--to`, without weights if there are none to grow."""
    from progc.growth.grow import grow_with_report

    notes: list[str] = []
    aim: Sizes | Program
    if isinstance(target, Sizes):
        aim = target
    else:
        with terminal.phase("target"):
            aim = resolve_target(to, source=start, seed=seed, notes=notes)
    with terminal.phase("grow"):
        grown = grow_with_report(start, aim, seed=seed, check=real)
    return grown.program, notes
