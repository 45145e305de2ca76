"""The network of a run as a program: the trainer's graph, the run's weights, and refusals."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import progc
from progc.errors import InputError
from progc.ir.printer import print_graph
from progc.ir.program import Program
from progc.models.opening import open_source
from progc.runs.sources import open_network, origin_of, program_of
from progc.runs.stored import StoredRun
from progc.runs.trained import TrainedNetwork, stage_program, with_tensors
from tests.command import NET
from tests.stored_runs import finished_run, unfinished
from tests.training import TinyLM


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    yield


def program_at(path: Path, stage: int | None = None, average: float | None = None) -> Program:
    return TrainedNetwork.open(path, stage=stage, average=average).program(phase=phase, note=lambda text: None)


@pytest.mark.parametrize("stage", [0, 1])
def test_it_is_the_network_that_the_trainer_trains(trained_run: Path, stage: int) -> None:
    """`progc.stages` makes the trainer's module; the checkpoint's weights are loaded into it as a resumed run does."""
    run = StoredRun.open(trained_run)
    full = open_source(run.config.source).program()
    running = next(progc.stages(full, run.schedule, start=stage))
    running.module.load_state_dict(run.weights(stage).tensors(), strict=True)
    found = program_at(trained_run, stage)
    assert all(print_graph(found, mode) == print_graph(running.program, mode) for mode in ("train", "eval"))
    x = torch.randn(7, 5)
    for row in range(3):
        rows = {"stage": torch.full((7,), row)}
        expected = running.module.eval()(x, **rows)
        assert torch.equal(found.module().eval()(x, **rows), expected)
    trainable = {name for name, tensor in found.parameters() if tensor.requires_grad}
    assert trainable == {name for name, tensor in running.program.parameters() if tensor.requires_grad}


def test_averages_and_unfinished_runs(trained_run: Path) -> None:
    run = StoredRun.open(trained_run)
    for average in (None, 0.5, 0.9):
        found = program_at(trained_run, average=average)
        assert all(torch.equal(found.tensors[name], value) for name, value in run.weights().tensors(average).items())
    network = TrainedNetwork.open(trained_run, average=0.9)
    assert origin_of(network, None) == str(trained_run / "model-ema-0.9.safetensors")
    with pytest.raises(InputError, match="has no average of decay 0.1"):
        TrainedNetwork.open(trained_run, average=0.1)
    unfinished(trained_run, 2)
    weight = program_at(trained_run).tensors["head.weight"]
    assert weight.untyped_storage().nbytes() == weight.nbytes  # a checkpoint is read as one buffer
    assert len(program_at(trained_run, average=0.5).chains["blocks"].blocks) == 2
    assert origin_of(TrainedNetwork.open(trained_run, average=0.5), None) == str(trained_run / "step-00000002")


@pytest.mark.parametrize("to", ["depth=4", "net.py:big"])
def test_growth_from_a_smaller_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    """With a target, the first stage is the source."""
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    last = finished_run(tmp_path / "run", "net.py:Net", to=to, keys={"init": "depth=stack"})
    found = program_at(tmp_path / "run")
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in last.persistent().items())
    first = stage_program(StoredRun.open(tmp_path / "run"), 0, phase=phase)
    assert first.num_parameters() == 667 < found.num_parameters()


RANDOM = """
class Noisy(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("noise", torch.randn(5), persistent=False)

    def forward(self, x):
        return super().forward(x + self.noise)
"""


def test_buffers_that_no_file_holds_are_those_of_training(tmp_path: Path) -> None:
    """A skeleton would draw other numbers: its parameters draw none."""
    (tmp_path / "net.py").write_text(NET + RANDOM)
    source = f"{tmp_path / 'net.py'}:Noisy"
    finished_run(tmp_path / "run", source, keys={"train": {"seed": 7}})
    built, skeleton = open_source(source).build(7), open_source(source).build_skeleton(7)
    noise = program_at(tmp_path / "run").tensors["noise"]
    assert torch.equal(noise, built.noise) and not torch.equal(noise, skeleton.noise)


def test_a_source_that_moved_or_changed_is_refused(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = trained_run / "config.json"
    text = config.read_text()
    config.write_text(text.replace(StoredRun.open(trained_run).config.source, "net.py:big"))
    with pytest.raises(InputError, match=r"no such file: net.py.* relative to the folder in which it was trained"):
        program_at(trained_run)
    (trained_run / "net.py").write_text(NET.replace("gelu", "relu"))
    monkeypatch.chdir(trained_run)
    with pytest.raises(InputError, match=r"net.py:big is not the network that .*; restore its code of that time"):
        program_at(trained_run)
    (trained_run / "net.py").write_text(NET)
    assert program_at(trained_run).num_parameters() == 4611


def test_one_of_several_tied_names_is_enough() -> None:
    program = progc.capture(TinyLM(), (torch.randint(0, 13, (2, 6)),))
    ((alias, canonical),) = program.tied.items()
    state = {
        name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in program.state_dict().items()
    }
    for left_out in (alias, canonical):
        given = {name: tensor for name, tensor in state.items() if name != left_out}
        found = with_tensors(program, given, Path("weights"))
        assert found.tensors[alias] is found.tensors[canonical]
        assert torch.equal(found.tensors[alias], state[alias])
    with pytest.raises(InputError, match="weights does not fit"):
        with_tensors(program, {name: state[name] for name in state if name not in (alias, canonical)}, Path("weights"))
    with pytest.raises(InputError, match="of another shape"):
        with_tensors(program, {**state, canonical: torch.zeros(1)}, Path("weights"))


def test_a_run_is_a_source_among_others(trained_run: Path, tmp_path: Path) -> None:
    program = program_of(open_network(str(trained_run / "step-00000004")), phase=phase, note=lambda text: None)
    assert len(program.chains["blocks"].blocks) == 2
    with pytest.raises(InputError, match="is a run and has its own weights; leave out --weights w.pt"):
        open_network(str(trained_run), weights=Path("w.pt"))
    with pytest.raises(InputError, match="--average 0.9 needs a run, but nothing.py is not one"):
        open_network("nothing.py", average=0.9)
    with pytest.raises(InputError, match="no such file"):
        open_network("nothing.py")
