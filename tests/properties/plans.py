"""Random growth plans on captured networks, and the verdict on each: exact, refused, lossy, or a disagreement."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from progc.errors import NotLosslessError, ProgcError, TargetError
from progc.growth.grow import grow_with_report
from progc.ir.check import _default_dtype, _Float64, compare, example_inputs, run_float64, stochastic
from progc.ir.program import MODES, Mode, Program
from progc.lift.lift import NOISE, Lift
from progc.lift.revert import revert, tolerance
from progc.lift.shares import along
from progc.models.sizes import parse_sizes
from progc.passes.grow_depth import GrowDepth
from progc.passes.grow_width import GrowWidth
from progc.pipeline.manager import run

GRADIENT = 1e-7
"""Gradients of inputs may differ by this much, relative to the largest: they pass through every rounding twice."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A growth to try: `axes` with sizes, or `sizes` as a user writes them, or a depth factor first and axes then."""

    axes: tuple[tuple[str, int], ...] = ()
    sizes: str = ""
    deeper: str = ""
    init: str = "copy"
    noise: float = NOISE
    lossy: bool = False


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`kind` is exact, refused, lossy, idle or disagreement; `text` the reason or what is wrong."""

    kind: str
    text: str = ""


def draw_plan(rng: random.Random, program: Program) -> Plan:
    """Any plan for this network."""
    init, noise = rng.choice(["copy", "copy", "copy", "zero", "random"]), rng.choice([NOISE, NOISE, 0.0])
    lossy = rng.random() < 0.15
    growable = program.axes.growable
    how = rng.choice(["axes", "axes", "axes", "all", "one", "sizes", "sizes", "deeper"])
    if how == "sizes" or not growable:
        factor = rng.choice(["2", "2", "3", "1.5"])
        heads = any(axis.meaning == "heads" for axis in growable)
        texts = [f"width*{factor}", f"width*{factor}", "depth*2", f"depth*2,width*{factor}", "depth*3"]
        text = rng.choice([*texts, f"width*{factor},heads*2"] if heads else texts)
        return Plan(sizes=text, init=init, lossy=lossy)
    chosen = growable if how == "all" else rng.sample(growable, 1 if how == "one" else rng.randint(1, len(growable)))
    whole = rng.random() < 0.65
    factor = rng.choice([2, 3])
    axes = []
    for axis in chosen:
        size = axis.size * factor if whole else axis.size + rng.randint(0, 2 * axis.size)
        axes.append((axis.name, size))
    deeper = rng.choice(["*2", "*3"]) if how == "deeper" else ""
    return Plan(tuple(axes), deeper=deeper, init=init, noise=noise, lossy=lossy)


def attempt(program: Program, plan: Plan) -> tuple[Program, tuple[Lift, ...], frozenset[Mode]]:
    """The grown program, its lifts, and the modes in which analysis calls it lossless.

    Raises:
        TargetError, NotLosslessError: growth is refused.
    """
    if plan.sizes:
        inits = {"width": plan.init, "depth": "random" if plan.init == "random" else "identity"}
        growth = grow_with_report(program, parse_sizes(plan.sizes), inits=inits, lossy=plan.lossy)
        return growth.program, growth.plan.lifts, _exact_modes(growth.plan.lossless, growth.plan.eval_only)
    passes: list[Any] = [GrowDepth(to=(plan.deeper,), lossy=plan.lossy)] if plan.deeper else []
    entries = tuple(f"{name}:{size}" for name, size in plan.axes)
    passes.append(GrowWidth(axes=entries, init=plan.init, noise=plan.noise, lossy=plan.lossy))
    grown, results = run(program, passes)
    lifts = tuple(result.lift for result in results if result.lift is not None)
    lossless = all(result.lossless is not False for result in results)
    return grown, lifts, _exact_modes(lossless, [reason for result in results for reason in result.eval_only])


def _exact_modes(lossless: bool, eval_only: Sequence[str]) -> frozenset[Mode]:
    return frozenset(MODES if not eval_only else ("eval",)) if lossless else frozenset()


def judge(program: Program, plan: Plan) -> tuple[Verdict, Program | None, tuple[Lift, ...]]:
    """Grows and measures. Whatever is neither a clean refusal nor exact is a disagreement."""
    try:
        grown, lifts, exact = attempt(program, plan)
    except (TargetError, NotLosslessError) as refusal:
        text = str(refusal)
        if not text.strip() or "\n" in text:
            return Verdict("disagreement", f"a refusal is one line, not {text!r}"), None, ()
        return Verdict("refused", text), None, ()
    except ProgcError as error:
        return Verdict("disagreement", f"{type(error).__name__}: {error}"), None, ()
    except Exception as error:  # any other exception is a defect by definition
        return Verdict("disagreement", f"{type(error).__name__}: {error!s:.300}"), None, ()
    if not any(lift.tensors for lift in lifts):
        return Verdict("idle"), grown, lifts
    if not exact:
        run_float64(grown, "eval", example_inputs(grown, 0))
        return Verdict("lossy"), grown, lifts
    wrong = disagreements(program, grown, lifts, exact)
    return (Verdict("disagreement", "; ".join(wrong)) if wrong else Verdict("exact")), grown, lifts


def disagreements(
    before: Program, after: Program, lifts: tuple[Lift, ...], exact: frozenset[Mode] = frozenset(MODES)
) -> list[str]:
    """What differs although analysis calls the growth lossless in the modes `exact`; empty if nothing does."""
    limit, found = tolerance(lifts), []
    difference = compare(before, after, seed=3)
    if not difference.max_rel <= limit:
        found.append(f"eval outputs differ by {difference.max_rel:.1e}")
    if "train" in exact and not any(stochastic(program.graphs["train"]) for program in (before, after)):
        wrong = train_gap(before, after, lifts)
        if not wrong <= max(limit, GRADIENT):
            found.append(f"train outputs or buffers differ by {wrong:.1e}")
    gap = _gap(input_gradients(before), input_gradients(after))
    if not gap <= max(limit * 10, GRADIENT):
        found.append(f"gradients of the inputs differ by {gap:.1e}")
    found += untied(before, after, lifts)
    return found


def train_gap(before: Program, after: Program, lifts: tuple[Lift, ...]) -> float:
    """Largest relative difference of train graphs: outputs, and buffers that they wrote against the grown old ones.

    Buffers of inserted blocks and of new units have nothing to be compared with.
    """
    inputs = example_inputs(before, 0)
    first, old = run_float64(before, "train", inputs)
    second, new = run_float64(after, "train", inputs)
    written: dict[str, Tensor] = {name: tensor for name, tensor in old.items() if tensor.is_floating_point()}
    pairs = []
    inserted: set[str] = set()
    fresh: dict[str, list[tuple[int, Tensor]]] = {}
    for lift in lifts:
        entries = tuple(entry for entry in lift.tensors if entry.source in written)
        written = dataclasses.replace(lift, tensors=entries).apply(written)
        inserted |= {entry.name for entry in entries if entry.fresh}
        for entry in entries:
            fresh[entry.name] = [(i, m.fresh()) for i, m in enumerate(entry.dims) if m is not None]
    for name, tensor in written.items():
        if name in new and name not in inserted:
            keep = torch.ones(tensor.shape, dtype=torch.bool)
            for dim, flags in fresh.get(name, []):
                keep &= ~along(flags, dim, tensor)
            pairs.append((tensor[keep], new[name][keep]))
    return _gap([*first, *(a for a, _ in pairs)], [*second, *(b for _, b in pairs)])


def input_gradients(program: Program, mode: Mode = "eval") -> list[Tensor]:
    """Gradients of a fixed random linear function of the outputs, with respect to the floating inputs."""
    inputs = example_inputs(program, 5)
    leaves = [x.requires_grad_() for x in inputs if isinstance(x, Tensor) and x.is_floating_point()]
    if not leaves:
        return []
    generator = torch.Generator().manual_seed(9)
    with torch.enable_grad(), _default_dtype(torch.float64):
        outputs = _Float64(program, mode).run(*(x * 1 for x in inputs), enable_io_processing=False)
        outputs = [y for y in outputs if isinstance(y, Tensor) and y.is_floating_point()]
        loss = sum(((torch.randn(y.shape, generator=generator) * y).sum() for y in outputs), torch.zeros(()))
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(leaves, found, strict=True)]


def untied(before: Program, after: Program, lifts: tuple[Lift, ...]) -> list[str]:
    """Tensors that were one object and no longer are, among those that are still there under their own names."""
    names: Mapping[str, str] = {name: name for name in before.tensors}
    for lift in lifts:
        renamed = {entry.source: entry.name for entry in lift.tensors if not entry.fresh}
        names = {old: renamed.get(name, name) for old, name in names.items()}
    found = []
    for alias, canonical in before.tied.items():
        if after.tensors[names[alias]] is not after.tensors[names[canonical]]:
            found.append(f"{alias} and {canonical} were one tensor and no longer are")
    return found


def _gap(first: list[Tensor], second: list[Tensor]) -> float:
    worst = 0.0
    for a, b in zip(first, second, strict=True):
        if a.shape != b.shape or not bool(torch.isfinite(b).all()):
            return float("inf")
        if a.numel():
            worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp(min=1e-6)))
    return worst


def reverted(before: Program, after: Program, lifts: tuple[Lift, ...]) -> Verdict | None:
    """A disagreement if the old weights do not come back from the grown ones."""
    tensors: dict[str, Tensor] = dict(after.tensors)
    try:
        for lift in reversed(lifts):
            tensors = revert(lift, tensors)
    except ProgcError as error:
        return Verdict("disagreement", f"revert: {error}")
    if set(tensors) != set(before.tensors):
        return Verdict("disagreement", f"revert gives other names: {sorted(set(tensors) ^ set(before.tensors))}")
    for name, old in before.tensors.items():
        if tensors[name].shape != old.shape or not torch.allclose(
            tensors[name].double(), old.double(), rtol=1e-12, atol=0, equal_nan=True
        ):
            return Verdict("disagreement", f"revert does not give {name} back")
    for alias, canonical in before.tied.items():
        if tensors[alias] is not tensors[canonical]:
            return Verdict("disagreement", f"revert: {alias} and {canonical} are no longer one tensor")
    return None
