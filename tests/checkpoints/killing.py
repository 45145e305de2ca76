"""Processes that are killed while they save, and processes that save the same step; run as a script of its own.

    python -m tests.checkpoints.killing kill RUN KILLS SEED [SIZE]
    python -m tests.checkpoints.killing race RUN ROUNDS

Children are forked from a process that has imported everything, so a kill costs milliseconds. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
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
        children = []
        for author in (1, 2):
            child = os.fork()
            if child == 0:
                os.close(opened)
                state = state_of(step, size, author)
                os.read(gate, 1)  # until the parent closes the other end
                try:
                    save(run, state, step)
                    os._exit(author)
                except InputError as error:
                    os._exit(0 if "already exists with other contents" in str(error) else 100)
                finally:
                    os._exit(101)
            children.append(child)
        time.sleep(0.02)
        os.close(gate)
        os.close(opened)
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
    print(json.dumps({"kill": kill, "race": race}[what](Path(folder), *map(int, numbers))))
