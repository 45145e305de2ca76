"""Runs on disk: one that is trained once per session, and folders as a finished run leaves them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import progc
from progc.cli import main
from progc.files.writing import replace_json
from progc.ir.program import Program
from progc.ir.tensor_file import write_tensors
from progc.models.opening import open_source
from progc.runs.config import checked
from progc.runs.folder import CONFIG, PLAN, WEIGHTS
from progc.schedule.schedule import Schedule
from progc.schedule.stage_programs import StagePrograms
from tests.command import NET

DATA = """
def datasets():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 5, generator=generator)
    return (x, x[:, :3].argmax(1)), (x[:16], x[:16, :3].argmax(1))
"""
STEPS, STAGES = 8, 2
DECAYS = (0.5, 0.9)


@pytest.fixture(scope="session")
def session_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "net.py").write_text(NET + DATA)
    sets = (
        "compile=eager", "ahead=false", "batch=16", "device=cpu", "save_every=2", "keep=none", "ema=[0.9, 0.5]",
        "lr=0.05", "warmup=0.0",
    )  # fmt: skip
    command = ["train", f"{folder / 'net.py'}:big", "--steps", str(STEPS), "--stages", str(STAGES)]
    command += ["--out", str(folder / "run"), "--set", "plan.sid=true"]
    assert main([*command, *(part for text in sets for part in ("--set", f"train.{text}"))]) == 0
    return folder / "run"


@pytest.fixture
def trained_run(session_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run of two stages (2 and 4 blocks) with an identifier, averages and all checkpoints."""
    run = tmp_path / "run"
    shutil.copytree(session_run, run)
    return run


def unfinished(run: Path, steps: int) -> Path:
    """Makes a finished run look as it did after a kill: no weights, and no checkpoints after a step."""
    for file in run.glob("model*.safetensors"):
        file.unlink()
    for folder in run.glob("step-*"):
        if int(folder.name.removeprefix("step-")) > steps:
            shutil.rmtree(folder)
    return run


def damage(folder: Path, name: str = "model.safetensors") -> None:
    """Flips a bit of a file."""
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)


def finished_run(
    run: Path, source: str, *, to: str | None = None, keys: Mapping[str, Any] | None = None, **plan: Any
) -> Program:
    """Writes the folder of a finished run without training: its weights are those of the source, and noise.

    Args:
        run: the folder; it must not exist.
        source: the full network, or the network to begin with.
        to: what it grows to.
        keys: further keys of the configuration.
        plan: further arguments of `progc.plan`.

    Returns:
        The program of the last stage, with the weights.
    """
    start = open_source(source).program()
    program = start if to is None else progc.grow(start, to)
    small = None if to is None else start
    options = {"stages": 2, "total": 4, "unit": "steps", "count": False, "start": small, **plan}
    schedule: Schedule = progc.plan(program, **options)
    config = checked({"source": source, "to": to, "steps": 4, "out": str(run), **(keys or {})})
    last = StagePrograms.of(program, schedule).outline(len(schedule.stages) - 1).complete()
    generator = torch.Generator().manual_seed(1)
    made = {
        name: torch.randn(tensor.shape, generator=generator).mul(0.1) + tensor.detach()
        if tensor.is_floating_point() and last.specs[name].persistent
        else tensor.detach()
        for name, tensor in last.tensors.items()
    }
    last = last.replace(tensors={name: made[last.tied.get(name, name)] for name in made})
    run.mkdir(parents=True)
    replace_json(run / CONFIG, config.to_json())
    schedule.write(run / PLAN)
    write_tensors(run / WEIGHTS, last.persistent())
    return last
