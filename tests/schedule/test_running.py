"""Stages of a schedule as programs to train: what is carried over a boundary, and what comes out in the end."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import progc
from progc.errors import InputError, TargetError
from progc.ir.check import compare
from progc.ir.program import Program
from progc.passes.remove_sid import RemoveSid
from progc.pipeline.text import parse_inits
from progc.schedule import ModelRef, Point, Regularisation, Schedule, Space, Stage, Unfreeze
from progc.schedule.controlling import Controller
from progc.schedule.rules import Plateau
from progc.schedule.running import RunningStage, trained
from progc.transforms.dropping import find_drops
from progc.transforms.freezing import trainable
from tests import zoo
from tests.zoo import perturb


def digits() -> tuple[Tensor, Tensor]:
    """Handwritten digits, `[1797, 1, 8, 8]`, and their labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16, torch.from_numpy(labels).long()


def vit(depth: int = 4, width: int = 32, rate: float = 0.2, dropout: float = 0.1) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return perturb(
        VisionTransformer(
            img_size=8, patch_size=4, in_chans=1, embed_dim=width, depth=depth, num_heads=width // 8, num_classes=10,
            drop_path_rate=rate, proj_drop_rate=dropout,
        )
    )  # fmt: skip


@functools.cache
def captured(depth: int = 4, width: int = 32, rate: float = 0.2, dropout: float = 0.1) -> Program:
    """The program of a network of its own, shared by all tests: none trains its tensors."""
    return progc.capture(vit(depth, width, rate, dropout), (digits()[0][:4],))


def schedule(program: Program, points: list[Point], **options: Any) -> Schedule:
    """Stages of four steps each."""
    regular = options.pop("regularisation", [Regularisation()] * len(points))
    sids = options.pop("sids", [None] * len(points))
    stages = tuple(
        Stage(k, point, 1 / len(points), sid, regularisation)
        for k, (point, sid, regularisation) in enumerate(zip(points, sids, regular, strict=True))
    )
    return Schedule(ModelRef.of(program), "linear", stages, Space(), total=4 * len(points), unit="steps", **options)


POINTS = [
    Point({"blocks": 1}, {"width": 16}, unfreeze=Unfreeze("prefix", 2, 2)),
    Point({"blocks": 2}, {"width": 16}, unfreeze=Unfreeze("prefix", 1, 2)),
    Point({"blocks": 4}, {"width": 32}),
]
RISING = [Regularisation(drop_path=rate, dropout=rate) for rate in (0.0, 0.05, 0.1)]


def train(running: RunningStage, images: Tensor, labels: Tensor) -> list[float]:
    """A plain loop over the stage's steps."""
    losses = []
    for step in running.steps:
        part = slice(32 * (step % 50), 32 * (step % 50) + 32)
        loss = F.cross_entropy(running.module(images[part], **running.inputs(32)), labels[part])
        running.optimizer.zero_grad()
        loss.backward()
        running.optimizer.step()
        if running.ema is not None:
            running.ema.update(running.module)
        losses.append(loss.item())
        running.observe(loss=losses[-1])
    return losses


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW((p for p in module.parameters() if p.requires_grad), lr=3e-3)


def test_a_schedule_runs_from_a_part_to_the_whole() -> None:
    """Boundaries keep the function, state goes along, frozen parameters stay, the class loads what came out."""
    images, labels = digits()
    model, program = vit(), captured()
    untouched = {name: tensor.detach().clone() for name, tensor in program.tensors.items()}
    plan = schedule(program, POINTS, regularisation=RISING)
    before: Program | None = None
    seen = []
    for running in progc.stages(program, plan, optimizer=adamw, ema=lambda m: progc.EMA(m, decays=(0.5,))):
        index = running.stage.index
        assert (running.start, running.stop) == (4 * index, 4 * index + 4)
        assert {id(p) for p in running.module.parameters()} == {id(p) for _, p in running.program.parameters()}
        held = {id(p) for group in running.optimizer.param_groups for p in group["params"]}
        assert held == {id(tensor) for tensor in trainable(running.program).values()}
        rates = {round(drop.rate, 4) for drop in find_drops(running.program.graphs["train"]) if drop.kind == "dropout"}
        assert max(rates) == RISING[index].dropout
        if before is not None:
            assert running.lossless and compare(before, running.program, seed=1).max_rel < 1e-9
            assert all(running.optimizer.state[p]["step"] > 0 for p in trainable(running.program).values())
            (average,) = running.ema.tensors.values()
            assert {n: t.shape for n, t in average.items()} == {
                n: t.shape for n, t in running.program.state_dict().items()
            }
        frozen = {n: p.detach().clone() for n, p in running.module.named_parameters() if not p.requires_grad}
        assert bool(frozen) == (index == 1)
        losses = train(running, images, labels)
        assert len(losses) == 4
        assert all(torch.equal(running.module.get_parameter(name), value) for name, value in frozen.items())
        before = running.program
        seen.append(running.program.num_parameters())
    assert seen == sorted(seen) and seen[-1] == program.num_parameters()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in program.tensors.items())
    model.load_state_dict(running.module.state_dict(), strict=True)
    assert torch.allclose(model.eval()(images[:8]), running.module.eval()(images[:8]), atol=1e-5)
    paths = [drop.rate for drop in find_drops(running.program.graphs["train"]) if drop.kind == "path"]
    assert paths == pytest.approx([0, 0, 0.1 / 3, 0.1 / 3, 0.2 / 3, 0.2 / 3, 0.1, 0.1])


@pytest.mark.parametrize("text", ["depth=mogrow,source=all", "depth=mogrow"])
def test_a_boundary_takes_weights_from_the_average(text: str) -> None:
    images, labels = digits()
    program = captured(depth=2, rate=0.0, dropout=0.0)
    made = schedule(program, [Point({"blocks": depth}) for depth in (1, 2)])
    inits = parse_inits(text)
    average: dict[str, Tensor] = {}
    for running in progc.stages(program, made, optimizer=adamw, ema=lambda m: progc.EMA(m, (0.5,)), inits=inits):
        if running.stage.index == 0:
            train(running, images, labels)
            average = {name: tensor.clone() for name, tensor in running.ema.tensors[0.5].items()}
            own = {name: tensor.clone() for name, tensor in running.module.state_dict().items()}
    grown = running.module.state_dict()
    kept = average if inits.get("source") == "all" else own
    for name, tensor in grown.items():
        source = average[name.replace("blocks.1.", "blocks.0.")] if "blocks.1." in name else kept[name]
        assert torch.equal(tensor, source), name
    assert not torch.equal(own["head.weight"], average["head.weight"])


def test_training_goes_on_from_what_was_trained() -> None:
    """Learning carries over: the loss does not jump back at a boundary."""
    images, labels = digits()
    program = captured(depth=2, rate=0.0, dropout=0.0)
    points = [Point({"blocks": depth}) for depth in (1, 2)]
    losses: list[list[float]] = []
    for running in progc.stages(program, schedule(program, points), optimizer=adamw, total=60):
        losses.append(train(running, images, labels))
    assert [len(part) for part in losses] == [30] * 2
    assert losses[1][0] < losses[0][0] - 0.2


def test_a_small_program_grows_through_the_stages() -> None:
    full, program, source = vit(depth=2), captured(depth=2), captured(depth=1, width=16)
    x = digits()[0][:4]
    module = source.module()
    plan = schedule(program, [Point({"blocks": 1}, {"width": 16}), Point({"blocks": 2}, {"width": 32})])
    stages = list(progc.stages(program, plan, source=source, module=module))
    outputs = [running.module.eval()(x) for running in stages]
    assert all(torch.allclose(output, module.eval()(x), atol=1e-5) for output in outputs)
    full.load_state_dict(stages[-1].module.state_dict(), strict=True)


def test_a_given_optimizer_and_averages_follow_the_first_cut() -> None:
    program = captured(depth=2)
    module = program.module()
    optimizer = torch.optim.SGD([{"params": list(module.parameters()), "lr": 0.1}], momentum=0.9)
    ema = progc.EMA(module, decays=(0.9,))
    plan = schedule(program, [Point({"blocks": 1}), Point()])
    first = next(progc.stages(program, plan, optimizer=optimizer, ema=ema))
    assert first.optimizer is optimizer and first.ema is ema
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in first.module.parameters()}
    ema.update(first.module)


def test_stages_have_their_identifier_as_an_input() -> None:
    images, labels = digits()
    model, program = vit(depth=2, rate=0.0), captured(depth=2, rate=0.0)
    plan = schedule(program, [Point({"blocks": d}) for d in (1, 2)], sids=[0, 1])
    for running in progc.stages(program, plan, optimizer=adamw):
        (stage,) = running.inputs(3).values()
        assert stage.tolist() == [running.stage.index] * 3
        train(running, images, labels)
    assert running.program.sid is not None and running.program.sid.stages == 2
    plain = progc.apply(running.program, [RemoveSid(stage=1)])
    model.load_state_dict(plain.state_dict(), strict=True)
    wanted = running.module.eval()(images[:4], **running.inputs(4))
    assert torch.allclose(model.eval()(images[:4]), wanted, atol=1e-5)


def test_an_identifier_starts_at_zero_or_with_the_published_spread() -> None:
    program = captured(depth=2, rate=0.0)
    found = {}
    for start in ("zero", "normal"):
        plan = schedule(program, [Point()], sids=[0], settings={"sid_init": start}, seed=3)
        tables = [next(progc.stages(program, plan)).module.stage_embedding.weight.detach() for _ in range(2)]
        assert torch.equal(*tables)
        found[start] = tables[0]
    assert not found["zero"].any() and 0.01 < float(found["normal"].std()) < 0.03
    with pytest.raises(InputError, match="sid_init: expected zero or normal, got 'ones'; fix the plan"):
        next(progc.stages(program, schedule(program, [Point()], sids=[0], settings={"sid_init": "ones"})))


def test_a_network_without_drops_says_so_and_trains() -> None:
    program = captured(depth=1, rate=0.0, dropout=0.0)
    plan = schedule(program, [Point()], regularisation=[Regularisation(drop_path=0.1)])
    (running,) = progc.stages(program, plan)
    assert any("drop-path 0.1 is not set" in note for note in running.notes)


def test_rules_end_stages_and_a_resumed_run_ends_them_alike() -> None:
    images, labels = digits()
    program = captured(depth=2)
    points = [Point({"blocks": depth}) for depth in (1, 1, 2)]
    plan = schedule(program, points, rules=(Plateau(window=2, threshold=10.0),))
    ends = []
    for running in progc.stages(program, plan, optimizer=adamw):
        train(running, images, labels)
        assert running.ended is not None
        ends.append(running.ended)
        controller = running.controller
    assert [end.step for end in ends] == [3, 6, 12] and [end.rule for end in ends] == ["plateau", "plateau", None]
    assert controller is not None and controller.log == ends
    again = Controller.of(plan, recorded=ends)
    steps = [list(running.steps) for running in progc.stages(program, plan, optimizer=adamw, controller=again)]
    assert steps == [[0, 1, 2], [3, 4, 5], list(range(6, 12))] and again.log == ends


def test_a_run_resumes_in_the_middle() -> None:
    program = captured(depth=2)
    plan = schedule(program, [Point({"blocks": 1}), Point({"blocks": 2}), Point()])
    straight = [running.module.state_dict() for running in progc.stages(program, plan)]
    resumed = list(progc.stages(program, plan, start=1))
    assert [running.stage.index for running in resumed] == [1, 2]
    for running in resumed:
        running.module.load_state_dict(straight[running.stage.index], strict=True)


def test_a_module_that_was_cast_counts() -> None:
    """`.double()` and `.to()` give a module other buffers than the program's: the next stage takes the module's."""
    _, program = zoo.captured("own:conv")
    own = {
        name: nn.Parameter(tensor.detach().clone()) if isinstance(tensor, nn.Parameter) else tensor.clone()
        for name, tensor in program.tensors.items()
    }
    program = program.replace(tensors=own)
    module = program.module().double()
    with torch.no_grad():
        module.train()(torch.randn(2, 3, 16, 16, dtype=torch.float64))
    now = trained(program, module)
    buffers = dict(module.named_buffers())
    assert buffers and all(now.tensors[name] is tensor for name, tensor in buffers.items())
    assert all(now.tensors[name] is tensor for name, tensor in module.named_parameters())
    assert trained(now, module) is now and trained(program, None) is program


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"other": True}, "the plan is for .* make a plan for this model"),
        ({"start": 3}, "start: expected a stage from 0 to 2, got 3"),
        ({"total": 2}, "too few for 3 stages"),
        ({"module": nn.Linear(2, 2)}, "give the module that program.module"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(change: dict[str, Any], message: str) -> None:
    program = captured(depth=2)
    plan = schedule(program, [Point({"blocks": 1}), Point(), Point()])
    given = captured(depth=3) if change.get("other") else program
    with pytest.raises(InputError, match=message) as caught:
        progc.stages(given, plan, **{name: value for name, value in change.items() if name != "other"})
    assert "\n" not in str(caught.value)


def test_a_last_network_that_would_not_be_the_full_one_is_refused_before_anything_trains() -> None:
    """One head cannot become two again: the attention would have other sizes, at equal shapes of all tensors."""
    program = captured(depth=2, width=16)
    plan = schedule(program, [Point({}, {"width": 8}), Point({}, {"width": 16})])
    with pytest.raises(TargetError, match="stage 1 would not be .*start with a larger network"):
        progc.stages(program, plan)


def test_a_width_that_only_some_stages_name_is_refused() -> None:
    program = captured()
    plan = schedule(program, [POINTS[0], Point({"blocks": 4})])
    with pytest.raises(InputError, match="stage 1 of the schedule has no width for width"):
        progc.stages(program, plan)
    assert dataclasses.asdict(plan)["rules"] == ()
