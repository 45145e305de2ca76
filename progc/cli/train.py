"""`progc train`: a configuration or a source, opened, planned and trained; the same command again goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progc.cli.common import captured, versions
from progc.cli.plan import _grown, _outline, _strengths, parse_settings
from progc.errors import InputError
from progc.save import json_text, write_file
from progc.sizes import Sizes
from progc.sources import Source, open_source, open_target
from progc.terminal import Terminal

if TYPE_CHECKING:
    from progc.program import Program
    from progc.schedule.schedule import Schedule
    from progc.task import Task
    from progc.train.config import Config
    from progc.train.parallel import Parallel
    from progc.train.trainer import Result

RECORD = "run.json"
FREE = ("train.workers", "train.log_every", "train.save_every", "train.validate_every", "train.keep", "trackers",
        "train.save_in_background", "train.ahead", "train.parallel", "train.device", "out")  # fmt: skip
"""Keys that may change while a run goes on."""


def run_train(given: str, *, sets: Sequence[str], flags: Mapping[str, Any], dry_run: bool, smoke: int | None,
              as_json: bool) -> int:  # fmt: skip
    """Trains; returns the exit code: 0, or 128 and the number of the signal that ended the run after it was saved.

    Args:
        given: a config file, or a source.
        sets: `a.b=v` texts.
        flags: dotted keys of the config to values; None: not given.

    Raises:
        ProgcError: see the exit codes of `progc.cli`.
    """
    config = _config(given, sets, flags)
    settings = config.settings
    if config.out is None and not dry_run and smoke is None:
        raise InputError("no folder for the run is given; add --out RUN, or the key out")
    opened = open_source(config.source)
    target = open_target(config.to) if config.to is not None else None
    if dry_run:
        return _dry_run(config, opened, target, as_json)
    from progc.train.parallel.processes import closed, opened_parallel

    parallel = opened_parallel(settings.parallel, settings.device)
    try:
        terminal = Terminal()
        with terminal.running():
            run = _Run(terminal, config, opened, target, parallel)
            if smoke is not None:
                return _smoke(run, smoke, as_json)
            assert config.out is not None
            _record(Path(config.out), config, parallel.rank)
            result = run.fit(Path(config.out))
        if parallel.rank == 0:
            terminal.print(json_text(_report(result, terminal)) if as_json else _text(result))
        return 0 if result.signal is None or result.finished else 128 + result.signal
    finally:
        closed()


class _Run:
    """Everything that a run is made of, opened."""

    def __init__(
        self, terminal: Terminal, config: Config, opened: Source, target: Sizes | Source | None, parallel: Parallel
    ) -> None:
        from progc.train.optimizer import maker

        self.terminal, self.config, self.parallel = terminal, config, parallel
        settings = config.settings
        weights = None if config.weights is None else Path(config.weights)
        self.make = maker(config.optimizer.name, settings.lr, config.optimizer.weight_decay, config.optimizer.options)
        self.source: Program | None = None
        self.program = captured(terminal, opened, weights, settings.seed)
        if target is not None:
            self.source = self.program
            self.program, notes = _grown(terminal, self.source, config.to or "", target, settings.seed, True)
            for note in notes:
                terminal.note(note)
        with terminal.phase("data"):
            self.task = _task(config, opened, self.program)
        with terminal.phase("plan"):
            self.schedule = _schedule(config, self.program, self.source, self.task, terminal)

    def fit(self, run: Path, schedule: Schedule | None = None, **changes: Any) -> Result:
        """Trains into a folder."""
        from progc.train.progress import Progress
        from progc.train.trainer import Trainer

        return Trainer(
            schedule or self.schedule, program=self.program, task=self.task, run=run,
            settings=dataclasses.replace(self.config.settings, **changes), source=self.source, optimizer=self.make,
            parallel=self.parallel, progress=Progress(sys.stderr, shows=self.parallel.rank == 0),
            config=self.config.to_json(), trackers=self.config.trackers.model_dump(),
        ).fit()  # fmt: skip


def _config(given: str, sets: Sequence[str], flags: Mapping[str, Any]) -> Config:
    from progc.train.config import SUFFIXES, read_file, resolved, texts

    is_file = given.endswith(SUFFIXES)
    values: dict[str, Any] = read_file(Path(given)) if is_file else {"source": given}
    overrides = {key: value for key, value in flags.items() if value is not None}
    return resolved(values, {**overrides, **parse_settings(sets, texts())}, given if is_file else "command line")


def _task(config: Config, opened: Source, program: Program) -> Task:
    from progc.taskfile import has_task, load_task

    if config.data is not None:
        from progc.datasets.opening import open_data

        return open_data(config.data, program)
    if opened.file is not None and has_task(opened.file):
        return load_task(opened.file)
    raise InputError(
        f"training {config.source} needs samples; give --data digits, imagefolder:PATH, hf:PATH or FILE.py with "
        "datasets()"
    )


def _schedule(
    config: Config, program: Program, source: Program | None, task: Task | None, terminal: Terminal
) -> Schedule:
    """The plan of a file, or one that is made; its length is known."""
    from progc.planning import plan
    from progc.schedule.schedule import Schedule

    total = config.settings.total
    if isinstance(config.plan, str):
        schedule = Schedule.read(config.plan)
    else:
        options = config.plan
        if options.epochs is not None and options.steps is not None:
            raise InputError("plan.epochs and plan.steps are both given; the length of a run is one of them")
        settings = {**options.settings, **({"sid": True} if options.sid else {})}
        schedule = plan(
            program, strategy=options.strategy, stages=options.stages, mode=options.mode, task=task,
            batch=config.settings.batch, seed=config.settings.seed, total=options.steps or options.epochs,
            unit="steps" if options.steps is not None else "epochs", regularise=_strengths(options.regularise),
            source=config.source, target=config.to, start=source, settings=settings, progress=terminal.note,
            depths=options.depths, widths=options.widths, resolutions=options.resolutions, unfreeze=options.unfreeze,
        )  # fmt: skip
    if total is None and schedule.total is None:
        raise InputError("the length of the run is not known; add --epochs N or --steps N")
    schedule.starts(total)
    return schedule


def _record(out: Path, config: Config, rank: int) -> None:
    """Writes command, versions and resolved configuration; refuses a folder of a run with another one.

    Raises:
        InputError: it holds another run; names the key that differs.
    """
    if rank != 0:
        return
    path = out / RECORD
    own = config.to_json()
    if path.exists():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))["config"]
            odd = sorted(key for key in _differing(known, own) if not key.startswith(FREE))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} cannot be read as the record of a run: {error}; choose another folder") from error
        if odd:
            raise InputError(
                f"{out} holds a run with another `{odd[0]}`; go on with the same values, or choose another folder"
            )
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run folder {out} cannot be made: {error.strerror or error}; choose another") from error
    write_file(path, {"command": shlex.join(sys.argv), "versions": versions(), "config": own})


def _differing(a: Any, b: Any, path: str = "") -> list[str]:
    """Dotted keys under which two nested values differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        found = []
        for key in {**a, **b}:
            inner = f"{path}.{key}" if path else str(key)
            found += _differing(a.get(key), b.get(key), inner)
        return found
    return [] if a == b else [path]


def _smoke(run: _Run, steps: int, as_json: bool) -> int:
    """A few steps of every stage with boundary, save and resume, in a folder that goes away."""
    schedule = run.schedule
    count = len(schedule.stages)
    shares = tuple(dataclasses.replace(stage, share=1 / count) for stage in schedule.stages)
    short = dataclasses.replace(schedule, stages=shares, total=steps * count, unit="steps", rules=())
    changes = {"total": None, "save_every": max(steps - 1, 1), "log_every": 1, "validate_every": None, "warmup": 0.0}
    with tempfile.TemporaryDirectory(prefix="progc-smoke-") as folder:
        place = Path(folder) / "run"
        first = run.fit(place, short, **changes)
        again = run.fit(place, short, **changes)
    if not (first.finished and again.finished) and first.signal is None:
        raise InputError("the smoke run did not come to its end; run it with --debug")
    text = f"smoke run: {first.step} steps in {count} stages, saved and gone on from"
    run.terminal.print(json_text({"steps": first.step, "stages": count, "finished": True}) if as_json else text)
    return 0 if first.signal is None else 128 + first.signal


def _dry_run(config: Config, opened: Source, target: Sizes | Source | None, as_json: bool) -> int:
    """What would train, from shapes alone."""
    from progc.train.dry_run import described, table

    terminal = Terminal()
    with terminal.running():
        settings = config.settings
        start = _outline(terminal, opened, settings.seed)
        full = start
        if target is not None:
            full, _ = _grown(terminal, start, config.to or "", target, settings.seed, False)
        with terminal.phase("plan"):
            schedule = _schedule(config, full, start if target is not None else None, None, terminal)
        with terminal.phase("stages"):
            found = described(full, schedule, settings, start if target is not None else None)
    terminal.print(json_text({"stages": found, "versions": versions()}) if as_json else table(found, schedule))
    return 0


def _report(result: Result, terminal: Terminal) -> dict[str, Any]:
    return {
        "run": str(result.run), "step": result.step, "finished": result.finished, "signal": result.signal,
        "metrics": dict(result.metrics), "train_seconds": result.seconds, "seconds": terminal.seconds,
        "versions": versions(),
    }  # fmt: skip


def _text(result: Result) -> str:
    state = "finished" if result.finished else f"ended by signal {result.signal}; the same command goes on"
    lines = [f"{result.run}: {state} at step {result.step}, {result.seconds:.1f} s of training"]
    lines += [f"{name:<24} {value:.4f}" for name, value in result.metrics.items()]
    if result.finished:
        lines.append(f"written: {result.run / 'model.safetensors'}")
    return os.linesep.join(lines)
