"""Rows of bench/published.py about searches: fit, vote, proxies, and searches that are part of training."""

from __future__ import annotations

import collections
import contextlib
import copy
import io
import json
import random
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import progc
from bench import published_formulas as formulas
from bench.published_code import Code
from bench.published_nets import WithoutStage, denoiser, latents
from bench.published_row import CODE, FORMULA, LIBRARY, Compare, Count, Row
from progc.data.task import Task
from progc.ir.program import Program
from progc.pipeline.manager import run
from progc.schedule import Schedule, Unfreeze
from progc.search import power_law, vote
from progc.search.one_shot import copied
from progc.search.proxies.ntk import NTK
from progc.search.proxies.zico import ZiCo
from progc.train.settings import Settings
from progc.train.trainer import Trainer


def fit(code: Code) -> Iterator[Row]:
    """The winner of a one-shot search and the fitted exponent, for random losses and times."""
    draw, winners, exponents = random.Random(0), Count(), Count(1e-4)
    choose = _auto_grow(code) if code.autoprog else None
    for _ in range(2000):
        sizes, depths = ([128, 192, 224], [9, 15, 18]) if draw.random() < 0.5 else ([160, 192], [12, 15, 18])
        names = [(size, depth) for size in sizes for depth in depths]
        times = [0.05 + 0.3 * (size / 224) ** 2 * depth / 18 * draw.uniform(0.9, 1.1) for size, depth in names]
        slope = draw.uniform(-0.3, 0.1)
        losses = [[5 * time**slope * draw.uniform(0.97, 1.03) for _ in range(5)] for time in times]
        means = [sum(own) / len(own) for own in losses]
        alpha, theirs = formulas.fitted(means, times)
        if choose:
            theirs = names.index(choose(sizes, depths, losses, times))
        ours = power_law.published(means, times)
        winners.same(ours.winner, theirs)
        exponents.near(ours.alpha, alpha)
    yield winners.row("one-shot winner", "power_law.published", "AutoProg main_prog.py auto_grow", _side(choose))
    yield exponents.row("one-shot exponent", "power_law.least_squares", "scipy's curve_fit, which auto_grow uses",
                        LIBRARY, numbers=True)  # fmt: skip


def _auto_grow(code: Code) -> Any:
    """The published function with stand-ins for training: from losses and times to (size, depth)."""
    from scipy.optimize import curve_fit

    assert code.autoprog is not None
    metrics: list[Any] = []
    namespace = {
        "create_stage_model_and_optimizer": lambda *args, **more: (mock.MagicMock(), [], None, None, None, None),
        "create_stage_loader": lambda *args: (None, None), "torch": mock.MagicMock(), "curve_fit": curve_fit,
        "unwrap_model": lambda model: model, "validate": lambda *args, **more: {"loss": 0.0}, "os": mock.MagicMock(),
        "train_one_epoch_super": lambda *args, **more: ({}, metrics, {}, {}), "_logger": mock.MagicMock(),
    }  # fmt: skip
    function = code.function(code.autoprog / "main_prog.py", "auto_grow", namespace)
    args = types.SimpleNamespace(
        model="volo_h12_l9", local_rank=1, search_epochs=2, distributed=False, model_ema_force_cpu=True, dist_bn=""
    )

    def choose(sizes: list[int], depths: list[int], losses: list[list[float]], times: list[float]) -> tuple[int, int]:
        names = [f"r{size}_l{depth}" for size in sizes for depth in depths]
        metrics[:] = [
            {name: {"loss": own[k], "time": time} for name, own, time in zip(names, losses, times, strict=True)}
            for k in range(5)
        ]
        found = function(
            args, None, None, [], sizes, [12], depths, 0.1, "", 0.0, [1, 1], 0, None, None, None, None, None, None,
            None, "loss", "", None, None, stage=0,
        )  # fmt: skip
        return found[4], found[6]

    return choose


def votes(code: Code) -> Iterator[Row]:
    """The winner of a zero-shot search, for random times and scores with ties."""
    draw, count, choose = random.Random(0), Count(), None
    if code.zero:
        choose = _vote(code)
    for _ in range(20_000):
        sizes, levels = draw.choice([([64], [1, 2]), ([64, 128], [1, 2]), ([128, 192], [2, 3]), ([256], [3, 4])])
        names = [(size, level) for size in sizes for level in levels]
        columns = [
            [round(draw.uniform(0, 1), draw.choice((1, 6))) * scale for _ in names] for scale in (0.1, -900.0, 700.0)
        ]
        theirs = names.index(choose(sizes, levels, columns)) if choose else formulas.vote(*columns)
        ours = vote.published(columns[0], {"ntk": columns[1], "zico": columns[2]})
        count.same(ours.winner, theirs)
    yield count.row("vote", "vote.published", "AutoProg-Zero train_apz.py auto_grow", _side(choose))


def _vote(code: Code) -> Any:
    """The published function with a stand-in for measuring: from times and scores to (size, level)."""
    assert code.zero is not None
    metrics: list[Any] = []
    namespace = {"train_one_epoch_super": lambda *args, **more: metrics, "torch": mock.MagicMock(),
                 "defaultdict": collections.defaultdict}  # fmt: skip
    function = code.function(code.zero / "train_apz.py", "auto_grow", namespace)
    args = types.SimpleNamespace(local_rank=1)

    def choose(sizes: list[int], levels: list[int], columns: list[list[float]]) -> tuple[int, int]:
        names = [f"r{size}_l{level}" for size in sizes for level in levels]
        metrics[:] = [
            {name: dict(zip(("time", "ntk", "zico"), own, strict=True))
             for name, own in zip(names, zip(*columns, strict=True), strict=True)}
        ]  # fmt: skip
        return tuple(function(args, sizes, levels, 0, 0, None, None, None, None, None, None, None, None, 0))

    return choose


# -- proxies -------------------------------------------------------------------------------------------------------


def _loss(outputs: Tensor, batch: Any) -> Tensor:
    return ((outputs - batch["target"]) ** 2).mean()


def proxies(code: Code) -> Iterator[Row]:
    """Condition number of the tangent kernel, and ZiCo, of a denoiser at three levels and two sizes of batches."""
    model = denoiser(code)
    batches = []
    for seed, many in enumerate((8, 8, 4, 4)):
        x, t, y = latents(count=many, seed=seed)
        target = torch.randn(many, 8, 16, 16, generator=torch.Generator().manual_seed(seed))
        batches.append({"x": x, "t": t, "y": y, "target": target})
    task = Task([], loss=_loss, inputs=lambda batch: ((batch["x"], batch["t"], batch["y"]), {}))
    wrapped = model if code.zero is None else WithoutStage(copy.deepcopy(model))
    whole = progc.capture(wrapped, tuple(batches[0][key] for key in ("x", "t", "y")))
    ntk, zico = Count(1e-4), Count(1e-2)
    for level in (1, 2, 4):
        program, _ = run(whole, [Unfreeze("interleave", level, 4).freeze(4, measure=False)], verify=False)
        trains = {name for name, tensor in program.parameters() if tensor.requires_grad}
        for name, parameter in wrapped.named_parameters():
            parameter.requires_grad_(name in trains).grad = None
        own = wrapped if code.zero is None else wrapped.dit
        for pair in (batches[:2], batches[2:]):
            ours = NTK(mode="reference").score(program, pair, task, seed=0)
            theirs = -sum(_condition(code, own, batch) for batch in pair) / 2
            ntk.near(ours, theirs, abs(theirs))
            zico.near(ZiCo(mode="reference").score(program, pair, task, seed=0), _zico(code, own, pair))
    source = "AutoProg-Zero prog/helpers.py"
    yield ntk.row("NTK", "NTK mode=reference", f"{source} get_ntk_n", _side(code.zero), numbers=True,
                  note="relative; in float64 here, in float32 there")  # fmt: skip
    yield zico.row("ZiCo", "ZiCo mode=reference", f"{source} caculate_zico", _side(code.zero), numbers=True,
                   note="sums of logarithms over all weights")  # fmt: skip


def _given(code: Code, batch: Any) -> tuple[Tensor, ...]:
    inputs = batch["x"], batch["t"], batch["y"]
    return inputs if code.zero is None else (*inputs, torch.zeros_like(batch["y"]))


def _condition(code: Code, model: nn.Module, batch: Any) -> float:
    model.train()
    if code.zero is not None:
        x, t, y, s = _given(code, batch)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        compute = code.module(code.zero, "prog.helpers").get_ntk_n
        return float(compute([model], x, t, model_kwargs={"y": y, "s": s}, optimizer=optimizer)[0])
    wanted = [p for name, p in model.named_parameters() if "weight" in name and p.requires_grad]
    rows = []
    for output in model(*_given(code, batch)):
        gradients = torch.autograd.grad(output.sum(), wanted, retain_graph=True, allow_unused=True)
        rows.append(torch.cat([own.flatten().double() for own in gradients if own is not None]))
    return formulas.condition(torch.stack(rows))


def _zico(code: Code, model: nn.Module, batches: list[Any]) -> float:
    model.train()
    kept: dict[str, list[Any]] = collections.defaultdict(list)
    for batch in batches:
        model.zero_grad(set_to_none=True)
        _loss(model(*_given(code, batch)), batch).backward()
        if code.zero is not None:
            code.module(code.zero, "prog.helpers").getgrad(model, kept)
            continue
        for name, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)) and module.weight.grad is not None:
                kept[name].append(module.weight.grad.flatten().double())
    model.zero_grad(set_to_none=True)
    if code.zero is not None:
        return float(code.module(code.zero, "prog.helpers").caculate_zico(kept))
    return formulas.zico([torch.stack(own) for own in kept.values()])


# -- searches in training ------------------------------------------------------------------------------------------

STAGES, EPOCHS, PER_EPOCH, SEARCHED = 3, 2, 3, 1
"""Stages of a run, epochs of each, steps of an epoch, and epochs of a one-shot search."""


class Convolutional(nn.Module):
    """Residual blocks on images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 1)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, 1, side, side]` to `[batch, 4]`."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


def _run(folder: Path, program: Program, schedule: Schedule) -> list[dict[str, Any]]:
    """Trains on random images; returns the lines of metrics."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8 * PER_EPOCH, 1, 8, 8, generator=generator)
    samples = TensorDataset(images, images.mean((1, 2, 3)).sign().long() + 1)
    settings = Settings(batch=8, compile="eager", ahead=False, ema=(0.5,), log_every=1, lr=1e-2, seed=0)
    task = Task(samples, validation=samples)
    with contextlib.redirect_stderr(io.StringIO()):
        Trainer(schedule, program=copied(program), task=task, run=folder, settings=settings).fit()
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def in_training(code: Code) -> Iterator[Row]:
    """Searches as part of a run: their steps are in its budget, and they use and leave the weights of the moment."""
    torch.manual_seed(0)
    program = progc.capture(Convolutional(), (torch.zeros(2, 1, 8, 8),))
    common: dict[str, Any] = {
        "decide": "training", "stages": STAGES, "total": STAGES * EPOCHS, "unit": "epochs", "widths": "none",
    }  # fmt: skip
    settings = {"epochs": SEARCHED, "batches": 2, "time": "predicted"}
    one_shot = progc.plan(program, strategy="one-shot", depths="1,2,4", resolutions="4,8", settings=settings, **common)
    zero_shot = progc.plan(program, strategy="zero-shot", depths="none", resolutions="none", unfreeze="prefix:4",
                           settings={"samples": 8}, **common)  # fmt: skip
    starts = formulas.growth_epochs(STAGES * EPOCHS, STAGES)[:-1]
    inside = [epoch in range(start, start + SEARCHED) for epoch in range(STAGES * EPOCHS) for start in starts]
    steps, recycled, scores, sizes = Count(), Count(), Count(), Count()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        lines = _run(root / "one", program, one_shot)
        trained = [line["step"] for line in lines if line["kind"] == "train"]
        steps.same(len(trained), STAGES * EPOCHS * PER_EPOCH)
        ends = [line["step"] for line in lines if line["kind"] == "decision"]
        steps.same(ends, [(start + SEARCHED) * PER_EPOCH for start in starts])
        steps.same(sum(ends) - sum(starts) * PER_EPOCH, sum(inside) * PER_EPOCH)
        decided = Schedule.read(root / "one" / "plan.json")
        _run(root / "fresh", program, decided.closed)
        ours, fresh = _weights(root / "one"), _weights(root / "fresh")
        recycled.same(any(not torch.equal(ours[name], fresh[name]) for name in ours), True)
        for line in lines:
            if line["kind"] == "validation":
                small = decided.stages[line["stage"]].point.resolution == (4, 4)
                sizes.same("full/loss" in line and "full/ema-0.5/loss" in line, small)
        _run(root / "zero", program, zero_shot)
        first, second = Schedule.read(root / "zero" / "plan.json").decisions
        before = {candidate.point: candidate.scores for candidate in first.candidates}
        for candidate in second.candidates:
            if candidate.point in before and candidate.scores:
                scores.same(candidate.scores["ntk"] != before[candidate.point]["ntk"], True)
    source = "AutoProg main_prog.py main: the epochs that it leaves out of training"
    yield steps.row("search in training: steps", "progc train, strategy one-shot", source, FORMULA)
    yield recycled.row("search in training: the supernet's weights are kept", "progc train, strategy one-shot",
                       "AutoProg main_prog.py auto_grow", FORMULA,
                       note="a fresh run of the plan that came out has other weights")  # fmt: skip
    yield scores.row("search in training: scores of the moment", "progc train, strategy zero-shot",
                     "AutoProg-Zero train_apz.py main", FORMULA,
                     note="NTK of the same candidate at two stages differs")  # fmt: skip
    note = "of stages with smaller images, weights and averages are validated at full size too"
    source = "AutoProg main_prog.py validate"
    yield sizes.row("averages at validation", "train.validate_full", source, FORMULA, note=note)


def _side(source: Any) -> str:
    return CODE if source else FORMULA


ROWS: tuple[Compare, ...] = (fit, votes, proxies, in_training)
