"""Rows of bench/published.py about schedules: grids, ramps, splits, levels, candidates and learning rates."""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

import progc
from bench import published_formulas as formulas
from bench.published_code import Code
from bench.published_row import CODE, FORMULA, Compare, Count, Row
from progc.data.regularisation import Regularisation
from progc.errors import InputError
from progc.ir.program import Program
from progc.pipeline.manager import run
from progc.schedule import Index, Space, Unfreeze
from progc.schedule.regularising import ramp
from progc.schedule.space import DEPTH, HEADS, RESOLUTION, grid, split
from progc.schedule.stage_shares import begins, stage_shares
from progc.search.candidates import one_shot_candidates, reference_nested, zero_shot_candidates
from progc.train.settings import Settings, factor
from progc.transforms.depth.naming import interpolated

RECORD = 34
"""The record that lists what differs from the published code, and why."""

STARTS = {"rand_augment": "aa_scale", "drop_path": "dp_scale", "random_erasing": "re_scale"}


def interpolation_map(code: Code) -> Iterator[Row]:
    """Which layer each layer of a deeper network is copied from."""
    count, source = Count(), code.autoprog and code.module(code.autoprog, "prog.helpers").new_idx
    for old in range(1, 41):
        for new in range(old, 4 * old + 3):
            theirs = [source(k, old, new) for k in range(new)] if source else formulas.layer_sources(old, new)
            count.same(interpolated(old, new), theirs)
    yield count.row("interpolation map", "interpolated", "AutoProg prog/helpers.py new_idx", _side(source))


def grids(code: Code) -> Iterator[Row]:
    """Image sizes, heads and depths of the levels."""
    count, exact = Count(), 0
    divisible = code.autoprog and code.module(code.autoprog, "prog.progressive").make_divisible
    cases = itertools.chain(
        itertools.product(range(96, 513, 32), [RESOLUTION]),
        itertools.product(range(2, 33, 2), [HEADS]),
        itertools.product(range(2, 65), [DEPTH]),
    )
    for (largest, divisor), scale, levels in itertools.product(cases, (0.25, 0.4, 0.5, 0.6, 0.75), (3, 4, 5, 6)):
        if divisible:
            import numpy

            theirs = [divisible(size, divisor) for size in numpy.linspace(scale, 1.0, levels) * largest]
        else:
            theirs = formulas.grid(largest, scale, levels, divisor)
        count.same(grid(largest, scale, levels, divisor, "reference"), theirs)
        exact += grid(largest, scale, levels, divisor) != theirs
    note = f"mode reference; mode default computes exactly, and {exact} grids have ties that rounding decides"
    yield count.row("size grids", "grid", "AutoProg prog/progressive.py make_divisible", _side(divisible), note=note)


def ramps(code: Code) -> Iterator[Row]:
    """RandAugment, drop-path and random erasing of each stage."""
    schedule = code.autoprog and code.module(code.autoprog, "prog.progressive").progressive_schedule
    source, side = "AutoProg prog/progressive.py progressive_schedule", _side(schedule)
    magnitudes, rates = Count(), Count(1e-15)
    for stages, last, start in itertools.product(range(2, 9), range(1, 11), (0.0, 0.25, 0.5)):
        theirs = _strengths(schedule, stages, start, rand_augment=float(last))["rand_augment"]
        ours = ramp(stages, Regularisation(rand_augment=last), "reference", starts={"rand_augment": start})
        magnitudes.same([each.rand_augment for each in ours], theirs)
    yield magnitudes.row("RandAugment ramp", "ramp", source, side)
    for stages, last, start in itertools.product(range(2, 9), (0.05, 0.1, 0.25, 0.3), (-0.5, 0.0, 0.25)):
        both = {"drop_path": last, "random_erasing": last}
        found = _strengths(schedule, stages, start, **both)
        ours = ramp(stages, Regularisation(**both), "reference", starts=dict.fromkeys(both, start))
        for name, theirs in found.items():
            if name in both:
                for each, value in zip(ours, theirs, strict=True):
                    rates.near(getattr(each, name), value)
    yield rates.row("drop-path and random erasing ramps", "ramp", source, side, numbers=True)


def _strengths(schedule: Any, stages: int, start: float, **last: float) -> dict[str, list[float]]:
    """The published values of each stage, by progc's names."""
    last = {"rand_augment": 9.0, "drop_path": 0.0, "random_erasing": 0.0, **last}
    if schedule is None:
        found = {name: formulas.ramp(value, start, stages) for name, value in last.items()}
        return {**found, "rand_augment": [float(round(value)) for value in found["rand_augment"]]}
    args = types.SimpleNamespace(
        num_stages=stages, r_scale=0.5, h_scale=1.0, l_scale=0.5, resize_scale=[1.0, 1.0], epochs=100,
        scale=[0.08, 1.0], aa=f"rand-m{last['rand_augment']:g}-mstd0.5-inc1", drop_path=last["drop_path"],
        reprob=last["random_erasing"], **dict.fromkeys(STARTS.values(), start),
    )  # fmt: skip
    _, _, _, _, policies, paths, erasing, _ = schedule(args)
    drawn = [float(policy.split("-")[1].lstrip("m")) if policy else 0.0 for policy in policies]
    return {"rand_augment": drawn, "drop_path": paths, "random_erasing": erasing}


def depth_split(code: Code) -> Iterator[Row]:
    """How a number of layers is divided over the two kinds of VOLO."""
    divisible = code.autoprog and code.module(code.autoprog, "prog.progressive").make_divisible
    published, others = Count(), Count()
    for total in range(9, 19):
        first = divisible(total * 0.23, 2) if divisible else formulas.split_depth(total)[0]
        count = published if total in (9, 12, 15, 18) else others
        count.same(split(total, [4, 14], [2, 1]), [first, total - first])
    source = "AutoProg models/volo.py set_sample_config"
    yield published.row("VOLO depth split, the published depths", "split", source, _side(divisible))
    note = "of 10 layers 23 % are 2.3, which becomes 4; 4/18 of 10 are 2.2, which becomes 2"
    yield others.row("VOLO depth split, depths between", "split", source, _side(divisible), record=RECORD, note=note)


def growth_epochs(code: Code) -> Iterator[Row]:
    """The epoch at which each stage begins."""
    count, schedule = Count(), code.zero and code.module(code.zero, "prog.progressive").progressive_schedule
    for stages in range(1, 9):
        for epochs in range(stages, 301):
            theirs = formulas.growth_epochs(epochs, stages)
            if schedule:
                args = types.SimpleNamespace(num_stages=stages, r_scale=0.25, l_scale=0.25, epochs=epochs)
                theirs = schedule(args)[0]
            count.same(begins(stage_shares(None, stages), epochs, "epochs"), theirs)
    yield count.row(
        "growth epochs", "begins", "AutoProg-Zero prog/progressive.py progressive_schedule", _side(schedule)
    )


def one_shot(code: Code) -> Iterator[Row]:
    """Candidates of the one-shot search at every place of many spaces."""
    once, twice = Count(), Count()
    for space, sizes, depths in _spaces():
        for current in [None, *itertools.product(sizes, depths)]:
            theirs = _candidates(code.autoprog and code.autoprog / "main_prog.py", code, "h", sizes, depths, current)
            place = None if current is None else Index(sizes.index(current[0]), depths.index(current[1]))
            try:
                found = one_shot_candidates(space, place, 0 if place is None else 1, 4, "reference")
            except InputError:  # more than twice as deep, which the published code asserts
                assert max(d for _, d in theirs) > 2 * min(d for _, d in theirs)
                continue
            ours = [(sizes[each.resolution], depths[each.depth]) for each in found]
            once.same(ours, list(dict.fromkeys(theirs)))
            if place is None:
                twice.same(ours, theirs)
    source, side = "AutoProg main_prog.py main", _side(code.autoprog)
    yield once.row("one-shot candidates", "one_shot_candidates", source, side)
    note = "first, middle and last of fewer than three levels: the published list has some twice"
    yield twice.row(
        "one-shot candidates, levels that occur twice", "one_shot_candidates", source, side, record=RECORD, note=note
    )


def zero_shot(code: Code) -> Iterator[Row]:
    """Candidates of the zero-shot search at every place of many spaces, in order, with repeats."""
    count = Count()
    for sizes in ([256], [128, 256], [128, 192, 256], [64, 128, 192, 256]):
        for many in (1, 2, 3, 4):
            levels = list(range(1, many + 1))
            shapes = tuple(Unfreeze("interleave", level, many) for level in levels) if many > 1 else ()
            space = Space(resolutions=tuple((s, s) for s in sizes) if len(sizes) > 1 else (), unfreeze=shapes)
            for current in [None, *itertools.product(sizes, levels)]:
                theirs = _candidates(code.zero and code.zero / "train_apz.py", code, "", sizes, levels, current)
                place = Index()
                if current is not None:
                    place = Index(resolution=sizes.index(current[0]), unfreeze=levels.index(current[1]))
                found = zero_shot_candidates(space, place, 0 if current is None else 1, 4, "reference")
                count.same([(sizes[each.resolution], levels[each.unfreeze]) for each in found], theirs)
    yield count.row("zero-shot candidates", "zero_shot_candidates", "AutoProg-Zero train_apz.py main", _side(code.zero))


def _spaces() -> Iterator[tuple[Space, list[int], list[int]]]:
    for sizes in ([224], [192, 224], [160, 192, 224], [128, 160, 192, 224], [96, 128, 192, 224]):
        for depths in ([18], [9, 18], [9, 14, 18], [9, 12, 15, 18], [12, 14, 16, 18], [7, 11, 14, 18]):
            deep = tuple({"blocks": depth} for depth in depths) if len(depths) > 1 else ()
            yield Space(deep, (), tuple((s, s) for s in sizes) if len(sizes) > 1 else ()), sizes, depths


def _candidates(path: Any, code: Code, heads: str, sizes: list[int], levels: list[int], current: Any) -> list[Any]:
    """The published candidates, by the statements of the training script."""
    if not path:
        return (formulas.one_shot if heads else formulas.zero_shot)(sizes, levels, current)
    unique = code.function(path, "no_repeats") if heads else code.module(path.parent, "prog.helpers").no_repeats
    namespace = {
        "no_repeats": unique,
        "r_list": sizes, "l_list": levels, "h_list": [12], "stage": int(current is not None), "current_h": 12,
        "current_r": current and current[0], "current_l": current and current[1],
    }  # fmt: skip
    found = code.statements(path, "main", "args.auto_grow and stage < len(grow_epochs) - 1", namespace)
    return list(itertools.product(found["search_r_list"], found["search_l_list"]))


def nesting(code: Code) -> Iterator[Row]:
    """The layers of a sub-network of the one-shot supernet."""
    count, new = Count(), code.autoprog and code.module(code.autoprog, "prog.helpers").get_new_layer_idx
    for base in range(1, 21):
        for full in range(base, 2 * base + 1):
            added = new(base, full) if new else formulas.new_layers(base, full)
            for depth in range(base, full + 1):
                skipped = added if depth == base else added[: -(depth - base)]  # as in set_sample_config
                count.same(reference_nested(base, depth, full), [k for k in range(full) if k not in skipped])
    yield count.row("one-shot nesting", "reference_nested", "AutoProg prog/helpers.py get_new_layer_idx", _side(new))


class Ladder(nn.Module):
    """28 small residual blocks."""

    def __init__(self, blocks: int = 28) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Adds all blocks."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return x


def levels(code: Code) -> Iterator[Row]:
    """Which of 28 blocks a level trains."""
    program = progc.capture(Ladder(), (torch.zeros(2, 4),))
    intended, written = Count(), Count()
    sizes = []
    for level in (1, 2, 3, 4):
        ours = _training(program, Unfreeze("interleave", level, 4))
        intended.same(ours, formulas.levels(level))
        theirs = formulas.levels_by_text(level)
        if code.zero:
            model = Ladder()
            code.module(code.zero, "prog.helpers").set_model_config(model, level)
            theirs = _numbers(name for name, parameter in model.named_parameters() if parameter.requires_grad)
        written.same(ours, theirs)
        sizes.append(f"{len(ours)} and {len(theirs)}")
    yield intended.row("unfreezing levels, as intended", "Unfreeze interleave", "paper", FORMULA)
    note = f"blocks that train here and there: {', '.join(sizes)}"
    source = "AutoProg-Zero prog/helpers.py set_model_config"
    yield written.row(
        "unfreezing levels, as written", "Unfreeze interleave", source, _side(code.zero), record=RECORD, note=note
    )


def _training(program: Program, level: Unfreeze) -> set[int]:
    after, _ = run(program, [level.freeze(28, measure=False)], verify=False)
    return _numbers(name for name, tensor in after.parameters() if tensor.requires_grad)


def _numbers(names: Iterable[str]) -> set[int]:
    return {int(name.split(".")[1]) for name in names if name.startswith("blocks.")}


def learning_rate(code: Code) -> Iterator[Row]:
    """The learning rate at the beginning of each epoch of the published run of 100 + 10 epochs."""
    settings = Settings(lr=1.6e-3, warmup=0.2, warmup_floor=1e-6, min_lr=1e-5 / 1.6e-3, cooldown=10, batch=1)
    parts = {"warm-up": Count(1e-9), "cosine": Count(1e-9), "cool-down": Count(1e-9)}
    for epoch in range(110):
        theirs = formulas.rate(epoch, 100, 1.6e-3, 20, 1e-6, 1e-5)
        part = "warm-up" if epoch < 20 else "cosine" if epoch < 100 else "cool-down"
        parts[part].near(1.6e-3 * factor(settings, epoch * 50, 100 * 50), theirs)
    source = "timm's cosine schedule, which AutoProg main_prog.py uses"
    ends = Count(1e-9)
    ends.cases = parts["warm-up"].cases + parts["cool-down"].cases
    ends.differ = parts["warm-up"].differ + parts["cool-down"].differ
    ends.largest = max(parts["warm-up"].largest, parts["cool-down"].largest)
    yield ends.row("learning rate: warm-up and cool-down", "factor", source, FORMULA, numbers=True,
                   note="at the beginning of each epoch; here it changes every step")  # fmt: skip
    yield parts["cosine"].row("learning rate: cosine", "factor", source, FORMULA, numbers=True, record=RECORD,
                              note="peak 1.6e-3; the published cosine began before the warm-up")  # fmt: skip


def _side(source: Any) -> str:
    return CODE if source else FORMULA


ROWS: tuple[Compare, ...] = (
    interpolation_map, grids, ramps, depth_split, growth_epochs, one_shot, zero_shot, nesting, levels, learning_rate,
)  # fmt: skip
