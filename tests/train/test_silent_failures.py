"""Failures that say nothing: each one shown with plain torch, as users write it, and then how it goes here.

Two of the nine are shown where their parts are: ranks that drift apart where a layer that was frozen when
DistributedDataParallel wrapped it trains later (tests/train/parallel/test_ddp.py), and augmentation that is another one
after a resume with workers (tests/data/test_loading.py).
"""

from __future__ import annotations

import copy
import functools
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.utils.checkpoint import checkpoint

import progc
from progc.checkpoints import State, latest, load, save
from progc.emit import emit
from progc.errors import InputError
from progc.lift.optimizers import optimizer_state
from progc.schedule import ModelRef, Point, Schedule, Space, Stage, Unfreeze
from progc.schedule.running import RunningStage
from progc.train.settings import Settings

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]
FROZEN = ("stem.weight", "stem.bias")
FIRST = "blocks.0."
"""What stage 1 freezes begins so, beside the stem."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x)).tanh()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)


def loss_of(module: Callable[..., Tensor], seed: int = 1) -> Tensor:
    inputs, labels = batch(seed)
    return nn.functional.cross_entropy(module(inputs), labels)


def captured() -> progc.Program:
    return progc.capture(net(), (torch.randn(4, 6),))


@functools.cache
def schedule() -> Schedule:
    """Two steps each: all trains, stem and first block frozen, all trains again."""
    points = [Point({"blocks": 2}, {}, unfreeze=level) for level in (None, Unfreeze("prefix", 1, 2), None)]
    stages = tuple(Stage(k, point, 1 / len(points)) for k, point in enumerate(points))
    return Schedule(ModelRef.of(captured()), "linear", stages, Space(), total=6, unit="steps")


def stages(clear: bool = True) -> Iterator[tuple[RunningStage, dict[str, Tensor]]]:
    """Trains through the stages in a loop of one's own; each stage at its end, with its tensors at its start."""
    make = functools.partial(torch.optim.AdamW, lr=0.05, weight_decay=0.1)
    for stage in progc.stages(captured(), schedule(), optimizer=lambda module: make(module.parameters())):
        before = {name: value.clone() for name, value in stage.module.state_dict().items()}
        for step in stage.steps:
            stage.optimizer.zero_grad(set_to_none=clear)
            loss_of(stage.module, step).backward()
            stage.optimizer.step()
        yield stage, before


def moved(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    """Names of tensors that are not what they were, to the bit."""
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}


def frozen_in(module: nn.Module) -> set[str]:
    return {name for name in module.state_dict() if name.startswith((FIRST, "stem."))}


@pytest.fixture
def dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("dynamo")
def test_2_guards_skipped_then_unfrozen() -> None:
    unsafe = torch.compiler.skip_guard_on_all_nn_modules_unsafe

    def unfrozen_later(options: dict[str, Any]) -> Tensor | None:
        """Gradient of a layer that trains again."""
        torch._dynamo.reset()
        module = net()
        module.stem.requires_grad_(False)
        compiled = torch.compile(module, backend="aot_eager", **options)
        loss_of(compiled).backward()
        module.stem.requires_grad_(True)
        loss_of(compiled).backward()
        return module.stem.weight.grad

    assert unfrozen_later({"options": {"guard_filter_fn": unsafe}}) is None  # not a word, and no compilation
    expected = unfrozen_later({})
    assert expected is not None and expected.abs().sum() > 0
    with pytest.raises(InputError, match="unfrozen later"):
        emit(captured(), options={"guard_filter_fn": unsafe})
    frozen = progc.apply(captured(), "freeze{prefix=1 stem=true}")
    found = []
    for program in (frozen, progc.apply(frozen, "freeze")):
        module = emit(program, modes=("train",), backend="aot_eager").train()
        loss_of(module).backward()
        found.append(module.get_parameter("stem.weight").grad)
    plain = net()
    loss_of(plain).backward()
    assert found[0] is None and found[1] is not None
    assert torch.allclose(found[1], plain.stem.weight.grad, atol=1e-6)  # type: ignore[arg-type]


def test_3_reentrant_recomputation_behind_a_frozen_stem(tmp_path: Path) -> None:
    def gradients(run: Callable[[nn.Module, Tensor], Tensor]) -> dict[str, Tensor | None]:
        module = net()
        module.stem.requires_grad_(False)
        inputs, labels = batch()
        x = module.stem(inputs)
        for block in module.blocks:
            x = run(block, x)
        nn.functional.cross_entropy(module.head(x), labels).backward()
        return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.requires_grad}

    expected = gradients(lambda block, x: block(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which a long log of others hides; nothing is raised
        naive = gradients(lambda block, x: checkpoint(block, x, use_reentrant=True))
    lost = {name for name, gradient in naive.items() if gradient is None}
    assert lost == {name for name in expected if name.startswith("blocks.")} and naive["head.weight"] is not None

    program = progc.apply(captured(), "freeze{prefix=0 stem=true}")
    for recompute in (True, False):
        module = emit(program, "eager", recompute=recompute).train()
        module.zero_grad()
        loss_of(module).backward()
        found = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.requires_grad}
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            assert gradient is not None and torch.allclose(gradient, expected[name], atol=1e-6)  # type: ignore[arg-type]
    ends = [weights(trained(tmp_path / f"{recompute}", recompute=recompute)) for recompute in (True, False)]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[1][name], ends[0][name]) for name in ends[0])


def trained(run: Path, **more: Any) -> Path:
    """A run of the trainer through the three stages."""
    inputs = torch.cat([batch(seed)[0] for seed in range(3)])
    samples = torch.utils.data.TensorDataset(inputs, inputs[:, :3].argmax(1))
    settings = Settings(batch=16, compile="eager", lr=0.05, save_every=1, keep=None, **more)
    assert progc.Trainer(schedule(), program=captured(), task=progc.Task(samples), run=run, settings=settings).fit()
    return run


def weights(run: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(run / "model.safetensors")
    return found


@pytest.mark.parametrize("clear", [False, True], ids=["gradients of zero", "gradients left"])
def test_4_frozen_weights_that_move_under_adamw(clear: bool) -> None:
    module = net()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05, weight_decay=0.1)
    loss_of(module).backward()
    optimizer.step()
    if not clear:
        optimizer.zero_grad(set_to_none=False)
    module.stem.requires_grad_(False)
    before = copy.deepcopy(module.state_dict())
    for seed in range(2):
        loss_of(module, seed).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    assert set(FROZEN) <= moved(before, module)

    for stage, at_start in stages(clear=False):
        names = frozen_in(stage.module)
        changed = moved(at_start, stage.module)
        assert changed & names == (set() if stage.stage.index == 1 else names) and changed - names


def test_4_frozen_weights_stay_in_the_trainer(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    at = {step: load_file(run / f"step-{step:08d}" / "model.safetensors") for step in (1, 2, 3, 4, 5)}
    names = {name for name in at[2] if name.startswith((FIRST, "stem."))}
    assert all(torch.equal(at[4][name], at[2][name]) for name in names)
    for one, two in ((1, 2), (4, 5)):  # they train before it and after it
        assert not any(torch.equal(at[one][name], at[two][name]) for name in FROZEN)
    assert not torch.equal(at[3]["head.weight"], at[4]["head.weight"])


def test_5_statistics_of_a_frozen_norm() -> None:
    module = net().train()
    module.blocks[0].requires_grad_(False)
    before = copy.deepcopy(module.state_dict())
    loss_of(module).backward()
    statistics = {f"{FIRST}norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert moved(before, module) >= statistics

    for stage, at_start in stages():
        assert stage.module.training
        assert moved(at_start, stage.module) & statistics == (set() if stage.stage.index == 1 else statistics)


def flipped(path: Path, place: int = -3) -> None:
    """One bit of a file's data."""
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(bytes(data))


def in_tensor(path: Path, tensor: Tensor) -> int:
    """Where the second entry of a tensor stands in a file."""
    place = path.read_bytes().find(tensor.detach().numpy().tobytes())
    assert place >= 0
    return place + 6


@pytest.mark.parametrize("kind", ["safetensors", "torch", "torch mapped", "dcp"])
def test_6_a_flipped_bit_of_a_checkpoint(kind: str, tmp_path: Path) -> None:
    values = {"weight": torch.arange(64.0) + 0.3}
    if kind == "dcp":
        dcp.save(values, checkpoint_id=tmp_path / "dcp", no_dist=True)
        (path,) = (tmp_path / "dcp").glob("*.distcp")
    elif kind == "safetensors":
        save_file(values, path := tmp_path / "x.safetensors")
    else:
        torch.save(values, path := tmp_path / "x.pt")
    flipped(path, in_tensor(path, values["weight"]))
    if kind == "dcp":
        found = {"weight": torch.zeros(64)}
        dcp.load(found, checkpoint_id=tmp_path / "dcp", no_dist=True)
    elif kind == "safetensors":
        found = load_file(path)
    else:
        found = torch.load(path, weights_only=True, mmap=kind == "torch mapped")
    assert (found["weight"] != values["weight"]).sum() == 1


def new_state() -> State:
    module = net()
    optimizer = torch.optim.AdamW(module.parameters())
    loss_of(module).backward()
    optimizer.step()
    return State(module, optimizer)


def test_6_a_flipped_bit_is_refused_and_the_checkpoint_before_is_used(tmp_path: Path) -> None:
    folders = [save(tmp_path, new_state(), step) for step in (1, 2)]
    for path in sorted(folders[1].glob("*")):
        old = path.read_bytes()
        flipped(path)
        with pytest.raises(InputError, match=path.name):
            load(folders[1])
        told: list[str] = []
        assert latest(tmp_path, tell=told.append) == folders[0] and len(told) == 1 and path.name in told[0]
        path.write_bytes(old)
    assert latest(tmp_path) == folders[1]


def test_7_data_files_replaced_under_older_metadata(tmp_path: Path) -> None:
    for step in (1, 2):
        dcp.save({"weight": torch.full((8,), float(step))}, checkpoint_id=tmp_path / f"{step}", no_dist=True)
    for path in (tmp_path / "2").glob("*.distcp"):
        shutil.copy(path, tmp_path / "1" / path.name)
    found = {"weight": torch.zeros(8)}
    dcp.load(found, checkpoint_id=tmp_path / "1", no_dist=True)
    assert found["weight"].tolist() == [2.0] * 8  # of another step than it says

    run, state = tmp_path / "run", new_state()
    folders = [save(run, state, 1)]
    loss_of(state.model, 2).backward()  # type: ignore[arg-type]
    state.optimizer.step()  # type: ignore[union-attr]
    folders.append(save(run, state, 2))
    for name in ("model.safetensors", "optimizer.safetensors"):
        old = (folders[0] / name).read_bytes()
        shutil.copy(folders[1] / name, folders[0] / name)
        with pytest.raises(InputError, match=name):
            load(folders[0])
        (folders[0] / name).write_bytes(old)
    with pytest.raises(InputError, match="is there already|other contents"):
        save(run, state, 1)  # nor is one written over


def test_9_optimizer_state_of_a_layer_trained_then_frozen(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    module[0].requires_grad_(False)
    saved = get_optimizer_state_dict(module, optimizer)
    assert len(saved["state"]) == 4
    again = torch.optim.AdamW(module.parameters())
    set_optimizer_state_dict(module, again, saved)
    assert len(again.state) < 4  # those that train; nothing says so

    every = iter(stages())
    first = next(every)[0]
    before = optimizer_state(first.optimizer, first.program)["state"]
    moments = {name: {key: value.clone() for key, value in own.items()} for name, own in before.items()}
    second = next(every)[0]
    held = optimizer_state(second.optimizer, second.program)
    assert set(held["parked"]) == {name for name, p in second.module.named_parameters() if not p.requires_grad}
    assert held["state"].keys() == moments.keys()
    folder = save(tmp_path, State(second.module, second.optimizer), 4)

    resumed = progc.stages(captured(), schedule(), start=1, optimizer=lambda module: adamw(module))
    stage = next(resumed)
    load(folder).restore(State(stage.module, stage.optimizer))
    found = optimizer_state(stage.optimizer, stage.program)["state"]
    assert found.keys() == moments.keys()
    stage = next(resumed)  # all train again: their moments are those of the stage in which they did
    ours = {stage.module.get_parameter(name): name for name in FROZEN}
    assert all(any(p is q for group in stage.optimizer.param_groups for q in group["params"]) for p in ours)
    for parameter, name in ours.items():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(stage.optimizer.state[parameter][key], moments[name][key])


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=0.05, weight_decay=0.1)
