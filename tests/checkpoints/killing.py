"""Kills processes while they save, and lets two processes save the same step; a script that prints a JSON object.

    python -m tests.checkpoints.killing inside FOLDER           (killed at every call of a save that touches the disk)
    python -m tests.checkpoints.killing kill RUN KILLS SEED     (killed at random moments)
    python -m tests.checkpoints.killing race RUN ROUNDS

Children are forked from a process that has imported everything, so a kill costs milliseconds.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import progc
from progc.checkpoints import Saver, State, latest, load, save, verify
from progc.errors import InputError


def state_of(step: int, size: int, author: int = 0) -> State:
    """A state in which every tensor tells the step."""
    model = nn.Sequential(nn.Linear(size, size), nn.Linear(size, size))
    optimizer = torch.optim.AdamW(model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(step + 0.125 * author)
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": torch.full_like(parameter, step + 0.125 * author),
                "exp_avg_sq": torch.full_like(parameter, step + 0.125 * author),
            }
    return State(model, optimizer, progc.EMA(model, (0.9,)))


def tells(folder: Path, size: int) -> float:
    """The one number that all tensors of a checkpoint are.

    Raises:
        InputError: they are of several steps.
    """
    state = state_of(-1, size)
    load(folder).restore(state)
    assert isinstance(state.model, nn.Module) and isinstance(state.optimizer, torch.optim.Optimizer) and state.ema
    moments = [tensor for own in state.optimizer.state.values() for key, tensor in own.items() if key != "step"]
    averages = [tensor for copy in state.ema.tensors.values() for tensor in copy.values()]
    values = {value.item() for tensor in [*state.model.parameters(), *moments, *averages] for value in tensor.unique()}
    if len(values) != 1:
        raise InputError(f"{folder} mixes steps: {sorted(values)}")
    return values.pop()


CALLS = ("os.fsync", "os.rename", "shutil.rmtree")
"""What a save does to the disk; between two of these calls only contents that nothing refers to yet are written."""


def inside(folder: Path, size: int = 8) -> dict[str, Any]:
    """Kills a child at each call of `CALLS` in a save, at once and in the background, and checks the run after each.

    The save writes step 3 into a run of steps 1 and 2, of which it then removes the first.
    """
    warm(size)
    wrong: list[str] = []
    kills: dict[str, int] = {}
    for background in (False, True):
        calls = _calls(folder / f"whole-{background}", size, background)
        named = calls.index("os.rename")  # the rename that gives the checkpoint its name
        for number, call in enumerate(calls):
            run = folder / f"{background}-{number}"
            code, _ = _save_third(run, size, background, number)
            kills[call] = kills.get(call, 0) + 1
            messages: list[str] = []
            found = latest(run, tell=messages.append)
            step = 2 if number <= named else 3
            half = [path.name for path in run.glob(".saving-*")]
            if code != -signal.SIGKILL:
                wrong.append(f"{run.name} {call}: the child ended with {code}")
            elif messages or found is None or verify(found).step != step or tells(found, size) != step:
                wrong.append(f"{run.name} {call}: {found}, expected step {step}; {messages}")
            elif len(half) != (number <= named):
                wrong.append(f"{run.name} {call}: {half} in the run")
            Saver(run).close()  # the next process cleans up
            if left := [path.name for path in run.iterdir() if not path.name.startswith("step-")]:
                wrong.append(f"{run.name} {call}: {left} is left")
    return {"kills": kills, "wrong": wrong}


def _calls(run: Path, size: int, background: bool) -> list[str]:
    """Names of the calls of a save that is not killed."""
    code, text = _save_third(run, size, background, None)
    assert code == 0, text
    return text.split()


def _save_third(run: Path, size: int, background: bool, at: int | None) -> tuple[int, str]:
    """Saves three steps in a child, which kills itself before call `at` of the third; its exit code and all calls."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            with Saver(run, keep=2, background=background) as saver:
                for step in (1, 2):
                    saver.save(state_of(step, size), step)
                saver.wait()
                seen: list[str] = []

                def see(name: str) -> None:
                    if len(seen) == at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    seen.append(name)

                watch(see)
                saver.save(state_of(3, size), 3)
                saver.wait()
                os.write(writing, " ".join(seen).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def watch(see: Callable[[str], None]) -> None:
    """Calls `see` with the name of a function in `CALLS` before each of its calls, from now on in this process."""
    for name in CALLS:
        owner = {"os": os, "shutil": shutil}[name.partition(".")[0]]
        before = getattr(owner, name.partition(".")[2])

        def seen(*values: Any, _before: Any = before, _name: str = name, **named: Any) -> Any:
            see(_name)
            return _before(*values, **named)

        setattr(owner, name.partition(".")[2], seen)


def _child(run: Path, first: int, size: int, background: bool, pipe: int) -> None:
    step = first
    with Saver(run, keep=2, background=background) as saver:
        os.write(pipe, f"{step - 1}\n".encode())  # begins
        while True:
            saver.save(state_of(step, size), step)
            if not background:
                os.write(pipe, f"{step}\n".encode())
            elif step > first:
                os.write(pipe, f"{step - 1}\n".encode())  # the one before is complete when the next begins
            step += 1


def kill(run: Path, kills: int, seed: int, size: int = 8) -> dict[str, Any]:
    """Kills children at random moments, and looks at the run after each; counts what was wrong."""
    rng, usual = random.Random(seed), warm(size)
    wrong: list[str] = []
    inside, saved = 0, 0
    for number in range(kills):
        found = latest(run)
        first = 1 if found is None else verify(found).step + 1
        before = {path.name for path in run.glob(".saving-*")}
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reading)
                _child(run, first, size, background=bool(number % 2), pipe=writing)
            finally:
                os._exit(1)
        os.close(writing)
        begun = os.read(reading, 1 << 10)
        time.sleep(rng.uniform(0.0, 4 * usual))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        with os.fdopen(reading) as pipe:
            said = [int(line) for line in (begun.decode() + pipe.read()).split()]
        if not os.WIFSIGNALED(status):
            wrong.append(f"kill {number}: the child ended by itself with {status}")
        inside += any(path.name not in before for path in run.glob(".saving-*"))
        least = said[-1]
        messages: list[str] = []
        try:
            found = latest(run, tell=messages.append)
            step = 0 if found is None else verify(found).step
            # Complete before it was said: one more at most; in the background one more is under way.
            if messages or not least <= step <= least + 1 + number % 2:
                wrong.append(f"kill {number}: step {step} after {least} was complete, {messages}")
            elif found is not None and tells(found, size) != step:
                wrong.append(f"kill {number}: {found} holds {tells(found, size)}")
            saved += step - first + 1
        except InputError as error:
            wrong.append(f"kill {number}: {error}")
    return {"kills": kills, "inside_a_save": inside, "checkpoints": saved, "wrong": wrong}


def race(run: Path, rounds: int, size: int = 64) -> dict[str, Any]:
    """Two processes save one step with different contents at the same moment."""
    wrong: list[str] = []
    both = 0
    for step in range(rounds):
        gate, opened = os.pipe()
        ready, standing = os.pipe()
        children = []
        for author in (1, 2):
            child = os.fork()
            if child == 0:
                os.close(opened)
                state = state_of(step, size, author)
                os.write(standing, b"1")
                os.read(gate, 1)  # until the parent closes the other end
                try:
                    save(run, state, step)
                    os._exit(author)
                except InputError as error:
                    os._exit(0 if "already exists with other contents" in str(error) else 100)
                finally:
                    os._exit(101)
            children.append(child)
        os.close(standing)
        for _ in children:
            os.read(ready, 1)
        for end in (ready, gate, opened):
            os.close(end)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        winner = sum(codes)
        both += 0 not in codes
        if winner not in (1, 2) or 0 not in codes:
            wrong.append(f"step {step}: the children ended with {codes}")
            continue
        folder = latest(run)
        if folder is None or tells(folder, size) != step + 0.125 * winner:
            wrong.append(f"step {step}: {folder}")
    names = sorted(path.name for path in run.iterdir() if not path.name.startswith("step-"))
    return {"rounds": rounds, "both": both, "wrong": wrong, "left": names}


def warm(size: int = 8) -> float:
    """Runs everything, so that children have nothing to import; the seconds of one save."""
    with tempfile.TemporaryDirectory() as folder:
        tells(save(folder, state_of(1, size), 1), size)
        start = time.perf_counter()
        save(folder, state_of(2, size), 2)
        return time.perf_counter() - start


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm()
    what, folder, *numbers = sys.argv[1:]
    print(json.dumps({"inside": inside, "kill": kill, "race": race}[what](Path(folder), *map(int, numbers))))
