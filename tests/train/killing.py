"""Runs that are killed again and again, and whether what comes out is what an uninterrupted run gives.

Processes are forked from one that has imported and captured everything, so that a kill costs no start.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from progc.ir.program import Program
from tests.train.running import lines, outcome, program, train

KINDS: Mapping[str, tuple[str, int]] = {
    "moment": ("", 1),
    "save": ("os.fsync", 60),
    "boundary": ("progc.train.boundary.Clock.timed", 24),
}
"""Where runs are killed: the function at one of whose first calls, and how many; without one at any moment."""

SEARCHING = {
    **KINDS,
    "training of the supernet": ("progc.search.online.SupernetStage.choose", 8),
    "evaluation": ("progc.search.one_shot_stage.StageSearch.evaluate", 6),
    "choice": ("progc.search.online.SupernetStage.finish", 2),
}
"""The same for runs with one-shot searches."""


def warm() -> Program:
    """What children have in common. Nothing here may start a thread, or set their number: a pool is not forked."""
    return program()


def trial(
    folder: Path,
    count: int,
    seed: int,
    full: Program,
    start: Callable[[Path, Program], Any] = lambda run, full: train(run, full=full),
    where: Mapping[str, tuple[str, int]] = KINDS,
) -> dict[str, Any]:
    """Runs, each killed until it is finished or `count` kills are done in all; compared with one that was not.

    Args:
        folder: an empty folder.
        count: number of kills in all; each of a kind that is drawn.
        seed: seed of everything that is drawn.
        full: the full network.
        start: trains in a run folder.
        where: the kinds of kills.

    Returns:
        `kills` by kind, `runs`, `wrong`: what went wrong, in sentences.
    """
    rng = random.Random(seed)
    began = time.perf_counter()
    code = forked(lambda: start(folder / "whole", full), folder / "log")
    assert code == 0, (folder / "log").read_text()
    length = time.perf_counter() - began
    expected = outcome(folder / "whole"), lines(folder / "whole")
    kills = dict.fromkeys(where, 0)
    wrong: list[str] = []
    runs = 0
    while sum(kills.values()) < count and len(wrong) < 10:
        run = folder / f"run-{runs}"
        runs += 1
        while True:
            done = sum(kills.values()) >= count
            kind = None if done else rng.choice(list(where))
            code = attempt(run, kind and where[kind], rng, length, lambda path: start(path, full), folder / "log")
            if code == -signal.SIGKILL and kind is not None:
                kills[kind] += 1
            elif code == 0:
                wrong += [f"run {runs}: {text}" for text in differing(run, expected)]
                break
            else:
                wrong.append(
                    f"run {runs}: exit code {code} after a kill of kind {kind}: {(folder / 'log').read_text()}"
                )
                break
    return {"kills": kills, "runs": runs, "wrong": wrong}


def attempt(
    run: Path,
    kind: tuple[str, int] | None,
    rng: random.Random,
    length: float,
    start: Callable[[Path], Any],
    log: Path,
) -> int:
    """Trains in a child that is killed somewhere; its exit code, negative for a signal."""
    name, calls = kind or ("", 1)
    at = rng.randint(1, calls)

    def body() -> None:
        if name:
            dies_at(name, at)
        start(run)

    if kind is not None and not name:
        return forked(body, log, after=rng.uniform(0.0, length))
    return forked(body, log)


def dies_at(name: str, at: int) -> None:
    """This process kills itself, as SIGKILL does, when a function is called for the `at`-th time."""
    import importlib

    place, _, attribute = name.rpartition(".")
    try:
        owner: Any = importlib.import_module(place)
    except ModuleNotFoundError:
        module, _, class_name = place.rpartition(".")
        owner = getattr(importlib.import_module(module), class_name)
    before = getattr(owner, attribute)
    calls = [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*args, **kwargs)

    setattr(owner, attribute, counted)


def forked(body: Callable[[], Any], log: Path, after: float | None = None) -> int:
    """Runs in a child process; kills it after so many seconds."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with log.open("w") as file:
                sys.stderr = file
                body()
            code = 0
        except BaseException:
            import traceback

            log.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    if after is not None:
        limit = time.monotonic() + after
        while time.monotonic() < limit:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def differing(run: Path, expected: tuple[dict[str, torch.Tensor], list[Any]]) -> list[str]:
    """What is not bit for bit as in the run that was not killed."""
    found = outcome(run)
    if found.keys() != expected[0].keys():
        return [f"tensors: {sorted(found.keys() ^ expected[0].keys())[:3]}"]
    odd = [name for name, value in expected[0].items() if not torch.equal(value, found[name])]
    told = [f"{len(odd)} tensors differ, {odd[0]} first"] if odd else []
    return told + (["metrics differ"] if lines(run) != expected[1] else [])
