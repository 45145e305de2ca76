"""Compiling ahead: another process, a cache folder of its own, merged whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import progc
from progc.emit import emit, regions
from progc.emit.ahead import compile_ahead, merge
from progc.emit.canary import check_compiler, compare
from progc.emit.specs import arguments, made, region_from_json, region_to_json
from progc.emit.stage_module import calls
from progc.errors import CheckError, InputError

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Linear(6, 8)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Dropout(0.1 * (i + 1)))
            for i in range(3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return x


@pytest.fixture
def program() -> progc.Program:
    torch.manual_seed(0)
    return progc.capture(Small(), (torch.randn(4, 6),))


def test_regions_survive_as_text(program: progc.Program) -> None:
    """Source and arguments through JSON compute the same; batch 7 is not the batch of the example."""
    module = emit(program, backend="eager")
    x = torch.randn(7, 6)
    own = calls(module, "train")
    given = arguments(program, "train", own, (x,), {})
    assert len(given) == len(regions(module, "train")) == 2  # stem, one block for all three: the last is the output
    for call in own:
        data = region_to_json(call.region, given[call.region.key])
        assert data is not None
        function, spelled = region_from_json(data)
        assert spelled == given[call.region.key]
        tensors = made(spelled)
        assert tensors[0].shape[0] == 7
        torch.manual_seed(0)
        expected = call.region.function(*tensors)
        torch.manual_seed(0)
        assert all(torch.equal(a, b) for a, b in zip(expected, function(*tensors), strict=True))


def test_recipes_name_nothing_but_torch(program: progc.Program) -> None:
    call = calls(emit(program, backend="eager"), "train")[0]
    data = region_to_json(call.region, ())
    assert data is not None
    with pytest.raises(InputError, match="expected a name from torch"):
        region_from_json({**data, "names": {"x": "subprocess:run"}})


TRAINING = """
import torch
import progc
from progc.emit import emit
from progc.emit.ahead import compile_ahead
from torch._dynamo.utils import counters

torch.manual_seed(0)
block = lambda: torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Dropout(0.1))
model = torch.nn.Sequential(torch.nn.Linear(6, 8), *(block() for _ in range(3)))
program = progc.capture(model, (torch.randn(4, 6),))
module = emit(program).train()
x = torch.randn(5, 6)
ahead = compile_ahead(program, module, (x,), nice=0)
assert ahead.finish() and not ahead.left, "the child failed"
assert not ahead.folder.exists()
module(x).square().mean().backward()
print(ahead.regions, counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


@pytest.mark.slow  # tests/train/test_ahead.py does the same with a stage of a schedule, for each commit
def test_ahead_fills_the_cache(tmp_path: Path) -> None:
    """In a process as users have it: torch's cache keys of one graph differ between pytest's process and others."""
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    ran = subprocess.run([sys.executable, "-c", TRAINING], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    count, hits, misses = map(int, ran.stdout.split())
    assert count >= 1 and hits == 2 * count and misses == 0  # forward and backward of each


@pytest.mark.slow  # Inductor; what is done with its answer has tests of its own
def test_the_compiler_is_right_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    check_compiler()


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that compiles never ends by itself, however long this one is kept from running."""
    start = subprocess.Popen

    def waiting(command: list[str], **options: Any) -> Any:
        assert command[1:3] == ["-m", "progc.emit.compile_child"]
        return start([sys.executable, "-c", "import time; time.sleep(3600)"], **options)

    monkeypatch.setattr("progc.emit.ahead.subprocess.Popen", waiting)


@pytest.mark.usefixtures("endless")
def test_a_killed_compilation_leaves_nothing(
    program: progc.Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    ahead = compile_ahead(program, emit(program), (torch.randn(5, 6),))
    os.kill(ahead.process.pid, signal.SIGKILL)
    assert not ahead.finish()
    assert not ahead.folder.exists()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.usefixtures("endless")
def test_a_compilation_is_waited_for_until_something_says_otherwise(
    program: progc.Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    ahead = compile_ahead(program, emit(program), (torch.randn(5, 6),))
    answers = iter([False, True])
    assert not ahead.finish(lambda: next(answers))
    assert next(answers, None) is None and ahead.process.returncode == -signal.SIGKILL
    assert not ahead.folder.exists()


def test_merging_adds_files_and_replaces_none(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    for folder, text in ((source, "new"), (target, "old")):
        (folder / "x").mkdir(parents=True)
        (folder / "x" / "both").write_text(text)
    (source / "x" / "only").write_bytes(b"\x00\xff")
    (source / "x" / "__grp__k.json").write_text(f'{{"child_paths": {{"k": "{source}/x/only"}}}}')
    assert merge(source, target) == 2
    assert (target / "x" / "both").read_text() == "old"
    assert (target / "x" / "only").read_bytes() == b"\x00\xff"
    assert f"{target}/x/only" in (target / "x" / "__grp__k.json").read_text()
    assert sorted(path.name for path in (target / "x").iterdir()) == ["__grp__k.json", "both", "only"]


def test_wrong_gradients_are_found() -> None:
    compare(torch.compile(_canary(), backend="aot_eager", fullgraph=True))

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
            return 1.01 * grad

    with pytest.raises(CheckError, match="wrong gradients"):
        compare(lambda *tensors: _canary()(tensors[0], Wrong.apply(tensors[1]), *tensors[2:]))
    with pytest.raises(CheckError, match="no gradient"):
        compare(lambda *tensors: _canary()(tensors[0], tensors[1].detach(), *tensors[2:]))


def _canary() -> object:
    from progc.emit import canary

    return canary._network
