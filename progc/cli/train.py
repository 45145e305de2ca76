"""`progc train`: starts a run from a configuration, or resumes the run in its folder. Exit codes: `progc.cli`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from progc.cli.common import versions
from progc.cli.terminal import Terminal
from progc.errors import InputError
from progc.files.writing import json_text
from progc.runs.config import Config
from progc.runs.config_file import configured

if TYPE_CHECKING:
    from progc.runs.opening import Opened
    from progc.train.parallel import Parallel
    from progc.train.run_folder import Result

SIGNALLED = 128
"""Added to the number of the signal that stopped a run, after it saved."""


def run_train(
    given: str | None,
    *,
    origin: str | None = None,
    flags: Mapping[str, tuple[str, Any]],
    sets: Sequence[str],
    dry_run: bool,
    smoke: int | None,
    as_json: bool,
) -> None:
    """Trains, and prints the run folder and the results; under torchrun only rank 0 prints.

    Args:
        given: a config file, or a source; None with `origin`.
        origin: text of `--from`: the run, or the checkpoint, to continue from.
        flags: dotted keys with flag and value (None if not given).
        sets: texts of `--set`.
        dry_run: show what each stage would cost, without training.
        smoke: train this many steps of every stage in a temporary folder; None trains the run.
        as_json: print JSON.

    Raises:
        ProgcError: see the exit codes of `progc.cli`.
        typer.Exit: with code 128 + its number if a signal stopped the run, after it saved.
    """
    if (given is None) == (origin is None):
        raise InputError("give a config file or a source, or --from RUN in its place")
    if origin is not None:
        from progc.runs.folder import CONFIG
        from progc.runs.forking import place

        if smoke is not None:
            raise InputError("--from and --smoke are both given; a smoke run begins at the beginning")
        given = str(place(origin)[0] / CONFIG)
    assert given is not None
    config = configured(given, flags, sets)
    if dry_run and smoke is not None:
        raise InputError("--dry-run and --smoke are both given; use one: --dry-run trains nothing, --smoke trains")
    if smoke is not None and smoke < 2:
        raise InputError(f"--smoke {smoke}: expected at least 2 steps per stage, to stop and resume between them")
    run = Path(config.out) if config.out is not None else None
    if run is None and not dry_run and smoke is None:
        raise InputError("no run folder is given; add --out RUN, or `out` in the config")
    if origin is not None and (run is None or run.resolve() == place(origin)[0].resolve()):
        raise InputError(f"--from {origin} needs another folder for the new run; add --out NEW")
    with _only_first_prints():
        if dry_run:
            _dry_run(Terminal(), config, run, origin, as_json)
        elif smoke is not None:
            _smoke(Terminal(), config, smoke, as_json)
        else:
            assert run is not None
            _train(Terminal(), config, run, origin, as_json)


def _train(terminal: Terminal, config: Config, run: Path, origin: str | None, as_json: bool) -> None:
    from progc.runs import record
    from progc.runs.forking import Fork, unfinished

    with contextlib.ExitStack() as stack:
        with terminal.running():
            resuming = record.check(run, config)
            origin = None if record.trained(run) else origin or unfinished(run)
            fork = None if origin is None else Fork.of(origin, config)
            parallel = stack.enter_context(_processes(config))
            from progc.runs.opening import opened
            from progc.train.progress import Progress
            from progc.train.trainer import Trainer

            schedule = None if fork is None else fork.schedule
            made = opened(config, run=run if resuming else None, schedule=schedule, phase=terminal.phase)
            _tell(terminal, made)
            terminal.note(f"{'resuming run' if resuming else 'new run'}: {run}")

        def begin() -> None:
            record.write(run, config, made.schedule, ["progc", *sys.argv[1:]])
            if fork is not None:
                fork.write(run, config, made.schedule)

        with terminal.running():  # shows held-back output before training begins
            result = Trainer(
                made.schedule,
                program=made.program,
                task=made.task,
                run=run,
                settings=made.settings,
                source=made.source,
                optimizer=made.optimizer,
                inits=made.inits,
                parallel=parallel,
                progress=Progress(sys.stderr, shows=parallel.rank == 0),
                config=config.to_json(),
                trackers=config.trackers.model_dump(),
            ).fit(begin=begin)
    code = 0 if result.finished or result.signal is None else SIGNALLED + result.signal
    report = {
        "run": str(result.run), "step": result.step, "finished": result.finished, "signal": result.signal,
        "metrics": dict(result.metrics), "skipped_steps": result.skipped, "skipped_samples": result.skipped_samples,
        "skipped_at": list(result.skipped_at), "train_seconds": result.seconds, "seconds": terminal.seconds,
        "versions": versions(),
    }  # fmt: skip
    if as_json:
        terminal.print(json_text(report))
    else:
        shown = ", ".join(f"{name} {_number(value)}" for name, value in result.metrics.items())
        stopped = f"stopped by signal {result.signal}; run the same command again to resume"
        ended = "finished" if result.finished else stopped
        terminal.print(f"{ended}: step {result.step:,}, {result.seconds:.1f} s of training")
        if shown:
            terminal.print(f"last validation: {shown}")
        if result.skipped:
            terminal.print(_skipped(result))
        terminal.print(f"written: {result.run}")
    if code:
        raise typer.Exit(code)


def _skipped(result: Result) -> str:
    shown = ", ".join(f"{step:,}" for step in result.skipped_at[:5]) + (", ..." if result.skipped > 5 else "")
    return (
        f"skipped: {result.skipped:,} steps with {result.skipped_samples:,} samples (steps {shown}); metrics.jsonl "
        "lists their samples"
    )


def _dry_run(terminal: Terminal, config: Config, run: Path | None, origin: str | None, as_json: bool) -> None:
    from progc.runs import record
    from progc.runs.forking import Fork

    with terminal.running():
        if run is not None and not record.check(run, config):
            run = None  # there is nothing to resume
        fork = Fork.of(origin, config) if origin is not None and run is None else None
        from progc.runs.dry_run import described, text
        from progc.runs.opening import opened
        from progc.train.telling import told

        schedule = None if fork is None else fork.schedule
        made = opened(config, run=run, schedule=schedule, weights=False, phase=terminal.phase)
        # A trainer shows these itself.
        notes = (*made.notes, *told(made.task, made.schedule, made.program, made.settings))
        made = dataclasses.replace(made, notes=notes)
        with terminal.phase("stages"):
            found = described(made)
        _tell(terminal, made)
    terminal.print(json_text({**found, "config": config.to_json(), "versions": versions()}) if as_json else text(found))


def _smoke(terminal: Terminal, config: Config, steps: int, as_json: bool) -> None:
    from progc.runs.opening import opened
    from progc.runs.smoke import smoke

    with terminal.running(), _processes(config) as parallel, _scratch() as folder:
        from progc.train.progress import Progress

        made = opened(config, phase=terminal.phase)
        _tell(terminal, made)
        with terminal.phase("smoke"):
            found = smoke(
                made, steps, folder, parallel=parallel, progress=Progress(sys.stderr, shows=parallel.rank == 0)
            )
    if as_json:
        terminal.print(json_text({**found, "seconds": terminal.seconds, "versions": versions()}))
        return
    end = "with the same weights" if found["same"] else f"with weights within {found['largest']:.1e}"
    terminal.print(
        f"smoke: {found['steps']} steps in {found['stages']} stages; resumed at step {found['resumed_at']}, it ended "
        f"{end}"
    )


@contextlib.contextmanager
def _processes(config: Config) -> Iterator[Parallel]:
    """The processes that train together; the group is closed after a successful run, else with the process."""
    from progc.train.failing import explained
    from progc.train.parallel import processes

    settings = config.settings
    with explained():
        yield processes.opened_parallel(settings.parallel, settings.device)
        processes.closed()


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary folder, the same on all ranks."""
    from progc.ranks.agreeing import rank, told

    with contextlib.ExitStack() as stack:
        own = stack.enter_context(tempfile.TemporaryDirectory(prefix="progc-smoke-")) if rank() == 0 else None
        yield Path(told(own)) / "run"


@contextlib.contextmanager
def _only_first_prints() -> Iterator[None]:
    """Silences all ranks but the first under torchrun; an error that ends a rank is still shown on its stderr."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _tell(terminal: Terminal, made: Opened) -> None:
    for note in made.notes:
        terminal.note(note)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
