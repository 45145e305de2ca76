"""Grows a program to a target: from target to sizes and passes, and the check that the function is preserved.

Depth comes first, at the small width, so that inserted blocks are widened like all others and every tensor name of the
target exists when widths are aligned.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import fx

from progc.analysis.axes import axes_of
from progc.analysis.chains import chains_of
from progc.errors import CheckError, TargetError
from progc.growth.explain.reasons import Explanation, explain
from progc.growth.plan import ChainGrowth, GrowthPlan
from progc.growth.target.align import Alignment, align, target_depths
from progc.growth.target.constants import take_constants
from progc.growth.target.outputs import append_outputs, old_outputs
from progc.growth.target.untie import untie
from progc.ir.check import Difference
from progc.ir.differences import differences
from progc.ir.operations import describe
from progc.ir.program import Program
from progc.ir.verify import verify
from progc.lift.averages import EmaLike, attached, moved
from progc.lift.lift import NOISE
from progc.lift.revert import measure, tolerance
from progc.models.sizes import Size, Sizes
from progc.pipeline.base import Pass, PassResult, to_text
from progc.pipeline.manager import hand_over, run
from progc.pipeline.text import depth_options, parse_inits
from progc.transforms.width.sizes import fitted_sizes
from progc.transforms.width.widening import AxisGrowth, Widening

if TYPE_CHECKING:
    from progc.lift.optimizers import Optimizers

Progress = Callable[[str], contextlib.AbstractContextManager[Any]]
Watch = Callable[[Program, Mapping[str, int]], None]


@dataclasses.dataclass(frozen=True)
class Growth:
    """A finished growth: the program, the plan that made it (`plan.apply` grows EMA copies), and the report.

    `axes` explains every axis of a growth in width; it is empty if no axis grows.
    """

    program: Program
    plan: GrowthPlan
    report: dict[str, Any]
    axes: tuple[Explanation, ...] = ()

    @property
    def lift(self) -> GrowthPlan:
        """What grows further copies of the weights."""
        return self.plan


def grow(
    program: Program,
    to: str | Sizes | Program | None = None,
    *,
    width: int | float | None = None,
    depth: int | float | None = None,
    heads: int | None = None,
    init: str | Mapping[str, str] | None = None,
    lossy: bool = False,
    seed: int = 0,
    noise: float | None = None,
    optimizer: Optimizers = None,
    ema: EmaLike | Sequence[EmaLike] | None = None,
    correct_rates: bool = False,
) -> Program:
    """Grows a program without changing its function.

    Args:
        program: the program to grow; it stays unchanged.
        to: a size preset, sizes (`"depth=12,width=768"`), a source (`"timm:NAME"`), or the program of a larger network
            of the same class.
        width, depth: factors, for sizes that `to` does not set.
        heads: number of attention heads.
        init: `copy`, `zero`, `random` for width; `identity`, `interpolate`, `stack`, `mogrow`, `random` for depth; a
            text such as `depth=mogrow,source=all`; or a mapping.
        lossy: accept growth that cannot be exact.
        seed: seed of noise and random weights.
        noise: spread of the shares among copies, relative to the equal share; with 0 they stay equal during training.
        optimizer, ema, correct_rates: optimizer and averaged copies that grow with the program, as in `progc.apply`.

    Raises:
        InputError: the optimizer or the averages do not belong to this program. Neither is changed then.
        TargetError: the target cannot be reached.
        NotLosslessError: exact growth is impossible, and `lossy` is False.
        CheckError: analysis calls the growth lossless, and the float64 check finds a difference.
    """
    from progc.models.opening import resolve_target

    target: Sizes | Program
    if to is None:
        entries = {"width": width, "depth": depth}
        sizes = {key: Size(value, relative=True) for key, value in entries.items() if value is not None}
        if heads is not None:
            sizes["heads"] = Size(heads, relative=False)
        target = Sizes(sizes, ",".join(f"{key}{size}" for key, size in sizes.items()))
    elif isinstance(to, str):
        target = resolve_target(to, source=program, seed=seed)
    else:
        target = to
    inits = parse_inits(init) if isinstance(init, str) else dict(init or {})
    averaged = program if ema is None else attached(program, ema)
    growth = grow_with_report(averaged, target, inits=inits, lossy=lossy, seed=seed, noise=noise)
    lifts = growth.plan.lifts
    for note in hand_over(program, growth.program, lifts, optimizer=optimizer, ema=ema, correct_rates=correct_rates):
        logging.getLogger(__name__).warning("progc: %s", note)
    return growth.program


def grow_with_report(
    program: Program,
    target: Sizes | Program,
    *,
    inits: Mapping[str, str] | None = None,
    lossy: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    notes: Sequence[str] = (),
    watch: Watch | None = None,
    place: Callable[[Program], Program] = Program.complete,
    noise: float | None = None,
    check: bool = True,
) -> Growth:
    """Grows a program like `grow`, and returns the plan and a report as well.

    The report holds params_before, params_after, lossless, reasons, eval_only (why it is exact in eval mode only),
    compared, axes (why each is exact or not), max_abs_diff, max_rel_diff (float64, eval mode) and seconds by phase. If
    the target has more classes, `compared` is "old classes": lossless and the differences are then about these outputs
    only, and a note names the new ones.

    Args:
        notes: further notes for the plan.
        noise: as in `grow`.
        watch: called with the deepened program and the new sizes by axis, before anything is widened.
        place: where the grown weights go. It is called before the check with the grown program, whose parameters are
            still deferred (progc/ir/deferred.py); the program that it returns is checked and becomes the result. By
            default the weights go into memory.
        check: whether weights are made and both networks run and are compared. Without it the weights stay deferred,
            the differences are None, and the source needs no weights either.
    """
    chosen = {"width": "copy", "depth": "identity", **(inits or {})}
    clock = _Clock(progress)
    source, program = program, program.deferred
    passes: list[Pass] = []
    results: list[PassResult] = []
    with clock("analyse"):
        depth = _depth_pass(program, target, chosen, lossy, seed)
    grown = program
    if depth is not None:
        with clock("deepen"):
            grown = _apply(grown, depth, passes, results)
    with clock("align"):
        rounded: list[str] = []
        if isinstance(target, Program):
            grown = _fit(grown, untie(grown, target), results)
            aligned = align(grown, target)
        else:
            widths, rounded = fitted_sizes(grown, target)
            aligned = Alignment(widths, {})
        sizes = aligned.widths
        width = _width_pass(sizes, chosen["width"], lossy, seed, NOISE if noise is None else noise)
    if watch is not None:
        watch(grown, sizes)
    narrow = grown
    axes: tuple[AxisGrowth, ...] = ()
    explained: tuple[Explanation, ...] = ()
    if width is not None:
        with clock("widen"):
            axes = tuple(Widening(axes_of(narrow), sizes, chosen["width"]).growths)
            grown = _apply(narrow, width, passes, results)
            explained = _explained(narrow, axes, results[-1])
    if isinstance(target, Program):
        with clock("compare"):
            grown = _fit(grown, take_constants(grown, target), results)
            zero = chosen["width"] == "zero"
            grown = _fit(grown, append_outputs(grown, aligned.outputs, zero=zero, seed=seed), results)
            found = next(differences(grown, target), None)
            if found is not None:
                raise TargetError(f"{target.class_name} computes a different function at its size: {found}")
    said = [*rounded, *_notes(program, narrow, grown, target), *notes]
    plan = _plan(program, grown, passes, results, axes, chosen, seed, said)
    report: dict[str, Any] = {
        "params_before": program.num_parameters(),
        "params_after": grown.num_parameters(),
        "lossless": plan.lossless,
        "compared": "old classes" if aligned.outputs else "all outputs",
        "reasons": list(plan.reasons),
        "eval_only": list(plan.eval_only),
        "axes": [item.to_json() for item in explained if item.kind != "stays"],
    }
    if not check:
        return Growth(grown, plan, {**report, "max_abs_diff": None, "max_rel_diff": None}, explained)
    with clock("write"):
        grown = place(grown if grown is not program else source)
    with clock("check"):
        comparable = old_outputs(grown, program) if aligned.outputs else grown
        difference = measure(source, comparable, plan.lifts, seed=seed)
    report["max_abs_diff"], report["max_rel_diff"] = difference.max_abs, difference.max_rel
    report["seconds"] = clock.seconds
    _judge(plan, difference)
    return Growth(grown, plan, report, explained)


class _Clock:
    """Seconds by phase, and the progress display of the caller."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress or (lambda name: contextlib.nullcontext())

    @contextlib.contextmanager
    def __call__(self, name: str) -> Any:
        start = time.perf_counter()
        with self._progress(name):
            yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def _depth_pass(
    program: Program, target: Sizes | Program, inits: Mapping[str, str], lossy: bool, seed: int
) -> Pass | None:
    from progc.passes.grow_depth import GrowDepth

    if isinstance(target, Program):
        to = tuple(f"{name}:{depth}" for name, depth in target_depths(program, target).items())
    else:
        chains = {chain.name for chain in chains_of(program)}
        to = tuple(
            (f"{key}:" if key in chains else "") + (f"*{size.value}" if size.relative else str(size.value))
            for key, size in target.entries.items()
            if key == "depth" or key in chains
        )
        if "depth" in target.entries and not chains:
            raise TargetError(f"{target.text}: this network has no chain of blocks; progc inspect --chains says why")
    return GrowDepth(to=to, **depth_options(inits), seed=seed, lossy=lossy) if to else None


def _width_pass(sizes: Mapping[str, int], init: str, lossy: bool, seed: int, noise: float) -> Pass | None:
    from progc.passes.grow_width import GrowWidth

    axes = tuple(f"{name}:{size}" for name, size in sizes.items())
    return GrowWidth(axes=axes, init=init, seed=seed, lossy=lossy, noise=noise) if axes else None


def _apply(program: Program, step: Pass, passes: list[Pass], results: list[PassResult]) -> Program:
    grown, done = run(program, [step])
    passes.append(step)
    results.extend(done)
    return grown


def _explained(narrow: Program, axes: tuple[AxisGrowth, ...], result: PassResult) -> tuple[Explanation, ...]:
    """Explains what the width pass did to each axis.

    Notes of the pass that give no reason for a kind are obstacles.
    """
    remarks = {f"{growth.axis}: {growth.kind}, because {growth.why}" for growth in axes}
    obstacles = [note for note in result.notes if note not in remarks] if result.lossless is False else []
    return explain(narrow, axes, result.lift, obstacles)


def _fit(before: Program, result: PassResult, results: list[PassResult]) -> Program:
    """Adopts a step that only a target model needs; it is verified like a pass, and averages move along."""
    if not result.changed:
        return result.program
    verify(result.program)
    results.append(result)
    averages = moved(before.averages, result.lift, result.program, "fitting the target")
    return result.program.replace(averages=averages)


def _plan(
    before: Program,
    after: Program,
    passes: list[Pass],
    results: list[PassResult],
    axes: tuple[AxisGrowth, ...],
    inits: Mapping[str, str],
    seed: int,
    notes: list[str],
) -> GrowthPlan:
    deeper = {chain.name: chain.siblings for chain in chains_of(after)} if len(results) else {}
    chains = tuple(
        ChainGrowth(chain.name, chain.siblings, deeper[chain.name])
        for chain in chains_of(before)
        if deeper.get(chain.name, chain.siblings) != chain.siblings
    )
    lossless = all(result.lossless is not False for result in results)
    reasons = tuple(note for result in results if result.lossless is False for note in result.notes)
    if not lossless and not reasons:
        reasons = ("the chosen init does not preserve the function",)
    return GrowthPlan(
        pipeline=to_text(passes),
        axes=axes,
        chains=chains,
        inits=inits,
        lossless=lossless,
        reasons=reasons,
        notes=(*(note for result in results if result.lossless is not False for note in result.notes), *notes),
        lifts=tuple(result.lift for result in results if result.lift is not None),
        seed=seed,
        eval_only=tuple(reason for result in results for reason in result.eval_only),
    )


def _notes(before: Program, narrow: Program, after: Program, target: Sizes | Program) -> list[str]:
    """Notes on differences that growth to sizes cannot rule out; growth to a target model has none.

    Args:
        narrow: the program after growth in depth, before growth in width.
    """
    if isinstance(target, Program):
        return []
    notes = []
    if "width" in target.entries:
        stays = [axis for axis in axes_of(before).axes if axis.meaning == "residual width" and not axis.growable]
        notes += [f"{axis.name} (residual width {axis.size}) stays: {axis.reason}" for axis in stays]
    nodes = {node.name: node for node in after.graphs["eval"].nodes}
    for literal in axes_of(narrow).literals:
        if literal.mode == "eval" and literal.value is not None:
            found = _argument(nodes[literal.node], literal.path)
            if found != literal.value:
                notes.append(
                    f"{describe(nodes[literal.node])} has {literal.path[-1]}={found:g} instead of "
                    f"{literal.value:g}, so that copies change nothing; the model class keeps {literal.value:g} "
                    "at this size"
                )
    for name, tensor in after.tensors.items():
        known = before.tensors.get(name)
        if not after.specs[name].persistent and known is not None and known.shape != tensor.shape:
            notes.append(
                f"{name}, which no checkpoint holds, grew from {list(known.shape)} to {list(tensor.shape)}; a "
                "model class that computes it from its size may differ; --to with that model checks this"
            )
    return notes


def _judge(plan: GrowthPlan, difference: Difference) -> None:
    """Checks that analysis and measurement agree."""
    if not difference.finite:
        raise CheckError("the float64 check found NaN or infinite values; check the source's weights and inputs")
    limit = tolerance(plan.lifts)
    if plan.lossless and difference.max_rel > limit:
        raise CheckError(
            f"analysis calls this growth lossless, but the output changes by {difference.max_rel:.2e} "
            f"(relative, float64; expected at most {limit:.0e}); this is a bug in progc, please report it "
            "with the output of `progc inspect --axes`"
        )


def _argument(node: fx.Node, path: tuple[int | str, ...]) -> Any:
    item: Any = node.kwargs[path[0]] if isinstance(path[0], str) else node.args[path[0]]
    for index in path[1:]:
        item = item[index]
    return item
