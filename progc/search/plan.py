"""`progc.plan`: a schedule for a network, from its growth space by one of the strategies, with costs.

The manual schedule: every dimension goes through its levels in step, position by position (AutoProg, AutoProg-Zero).

With as many levels as stages this is the published one ("Prog"). Otherwise a stage takes the level that is nearest to
its place in the run, the smaller of two, so that growth stays even. The last stage is the full network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from progc.data.regularisation import Regularisation
from progc.errors import InputError
from progc.schedule.finding import find
from progc.schedule.level_texts import Levels, items
from progc.schedule.point import SHAPES
from progc.schedule.schedule import MODES, STRATEGIES, Decision, ModelRef, Schedule
from progc.schedule.space import Index, Space
from progc.schedule.stage import Stage

if TYPE_CHECKING:
    from progc.data.task import Task
    from progc.ir.program import Program
    from progc.schedule.point import Point

SEARCH_BATCH = 16
"""Samples per batch of a search that is given none: the published global batch of the zero-shot search."""


def plan(
    program: Program,
    *,
    strategy: str = "linear",
    stages: int = 4,
    mode: str = "default",
    space: Space | None = None,
    depths: Levels = None,
    widths: Levels = None,
    resolutions: Levels = None,
    unfreeze: Levels = None,
    task: Task | None = None,
    batch: int | None = None,
    seed: int = 0,
    total: int | None = None,
    unit: str = "epochs",
    count: bool = True,
    measure: bool = False,
    regularise: bool | Regularisation = True,
    source: str | None = None,
    target: str | None = None,
    start: Program | Point | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Schedule:
    """A schedule that leads to a full network in stages of equal length; the last stage always is the full network.

    Args:
        program: the full network.
        strategy: `linear` takes the levels position by position; `zero-shot` and `one-shot` search, and need a task.
        stages: how many, at least 1.
        mode: `default`, or `reference` for the published procedure.
        space: what to choose from; None: found by `progc.schedule.finding.find`, to which the next four go.
        depths, widths, resolutions, unfreeze: texts as on the command line (see `find`); `none` keeps one as it is.
        task: samples and loss.
        batch: samples per step, of searches and costs.
        seed: of all that a search draws.
        total: length of the run in `unit`, None if it is not known yet.
        unit: `epochs` or `steps`.
        count: whether the costs of each stage are counted from its graphs.
        measure: whether steps are also timed, which needs a task.
        regularise: whether regularisation grows from stage to stage; the strengths of the last stage, where they are
            not what the network has.
        source, target: texts of the source and of `--to`, kept for `ModelRef`.
        start: the network that training begins with: the smallest level has its depth and width.
        settings: of the strategy; `sid: true` numbers the stages although `program` has no stage identifier.
        progress: told in a sentence what is being done.

    Returns:
        The schedule; its `notes` say what was rounded or could not vary.

    Raises:
        InputError: a value out of range, a space in which nothing varies, levels that the network cannot have (with the
            nearest ones that it can), or a task that is missing.
    """
    _check(program, strategy, stages, mode, task, measure, settings)
    chosen, notes = _space(program, space, (depths, widths, resolutions, unfreeze), strategy, stages, mode, start)
    options = {key: value for key, value in (settings or {}).items() if key != "sid"}
    tell = progress or (lambda text: None)
    decisions: Sequence[Decision] = ()
    samples = SEARCH_BATCH if batch is None else batch
    if strategy == "linear" or stages == 1:
        places = linear(chosen, stages)
    else:
        assert task is not None
        tell(f"{strategy} search over {stages - 1} stages")
        places, decisions = _searched(program, chosen, task, strategy, stages, samples, seed, mode, options, progress)
    made = _stages(program, chosen, places, regularise, strategy, mode, bool((settings or {}).get("sid")))
    if count or measure:
        tell("counting what the stages cost")
        made, told = _counted(program, made, batch, task if measure else None, seed)
        notes = (*notes, *told)
    texts = {"depths": depths, "widths": widths, "resolutions": resolutions, "unfreeze": unfreeze}
    asked = {name: ",".join(items(text)) for name, text in texts.items() if text is not None}
    return Schedule(
        ModelRef.of(program, source, target),
        strategy,
        made,
        chosen,
        mode=mode,
        seed=seed,
        total=total,
        unit=unit,
        decisions=tuple(decisions),
        settings={**asked, **({} if batch is None else {"batch": batch}), **(settings or {})},
        notes=notes,
    )


def _check(
    program: Program, strategy: str, stages: int, mode: str, task: Task | None, measure: bool,
    settings: Mapping[str, Any] | None,
) -> None:  # fmt: skip
    for what, value, known in (("strategy", strategy, STRATEGIES), ("mode", mode, MODES)):
        if value not in known:
            raise InputError(f"plan: {what} is {', '.join(known[:-1])} or {known[-1]}, not {value!r}")
    if isinstance(stages, bool) or not isinstance(stages, int) or stages < 1:
        raise InputError(f"plan: stages is a whole number from 1 on, not {stages!r}")
    if task is None and strategy != "linear" and stages > 1:
        raise InputError(
            f"plan: the {strategy} search needs samples and a loss; give a task (a file with datasets() and "
            "loss(outputs, batch)), or use strategy linear"
        )
    unused = sorted(set(settings or {}) - {"sid"})
    if strategy == "linear" and unused:
        raise InputError(f"plan: a linear schedule has no setting `{unused[0]}`; only sid, or use a search")
    if task is None and measure:
        raise InputError("plan: steps are timed on samples; give a task (a file with datasets() and loss), or count")
    if program.sid is not None and stages > program.sid.stages:
        raise InputError(
            f"plan: the stage identifier has rows for {program.sid.stages} stages, not for {stages}; plan at most "
            f"{program.sid.stages} or inject it with stages={stages}"
        )


def _space(
    program: Program, given: Space | None, texts: tuple[Levels, Levels, Levels, Levels], strategy: str, stages: int,
    mode: str, start: Program | Point | None,
) -> tuple[Space, tuple[str, ...]]:  # fmt: skip
    """The space to choose from, and notes."""
    depths, widths, resolutions, unfreeze = texts
    if given is not None:
        if any(text is not None for text in texts) or start is not None:
            raise InputError("plan: give a space, or what to make it of (depths, widths, resolutions, unfreeze, start)")
        found, notes = given, tuple[str, ...]()
    else:
        if strategy == "zero-shot" and unfreeze is None:
            unfreeze = published_unfreezing(program, mode)
        made = find(
            program,
            depths=depths,
            widths=widths,
            resolutions=resolutions,
            unfreeze=unfreeze,
            levels=max(stages, 2),
            start=start,
        )
        found, notes = made.space, made.notes
        if stages > 1:
            made.check()
    if stages > 1 and found.empty:
        raise InputError("plan: the space has one point only; give more levels, or plan one stage")
    if strategy == "one-shot" and found.unfreeze:
        raise InputError(
            "plan: a one-shot search trains all of a supernet and does not choose which blocks train; leave unfreeze "
            "out, or use strategy zero-shot"
        )
    return found, tuple(notes)


def published_unfreezing(program: Program, mode: str) -> str:
    """Levels that a zero-shot search chooses from: interleaved ones as published, by default closed parts as well."""
    from progc.transforms.freezing.blocks import Blocks

    of = min(4, len(Blocks(program).units))
    if of < 2:
        return "none"
    return ",".join(f"{shape}:{of}" for shape in (SHAPES[:1] if mode == "reference" else SHAPES))


def _stages(
    program: Program,
    space: Space,
    places: Sequence[Index],
    regularise: bool | Regularisation,
    strategy: str,
    mode: str,
    sid: bool,
) -> tuple[Stage, ...]:
    number = len(places)
    points = [space.point(place) for place in places]
    strengths = [Regularisation()] * number
    if regularise:
        from progc.schedule.regularising import ramp, sizes_of

        final = regularise if isinstance(regularise, Regularisation) else last_regularisation(program, strategy, mode)
        strengths = ramp(number, final, mode, sizes=sizes_of(points))
    numbered = sid or program.sid is not None
    return tuple(Stage(k, point, 1 / number, k if numbered else None, strengths[k]) for k, point in enumerate(points))


def _searched(
    program: Program, space: Space, task: Task, strategy: str, stages: int, batch: int, seed: int, mode: str,
    settings: Mapping[str, Any], progress: Callable[[str], None] | None,
) -> tuple[list[Index], list[Decision]]:  # fmt: skip
    if strategy == "zero-shot":
        from progc.search import zero_shot

        return zero_shot.search(
            program, space, task, stages=stages, batch=batch, seed=seed, mode=mode, settings=settings, progress=progress
        )
    from progc.search import one_shot

    return one_shot.search(
        program, space, task, stages=stages, batch=batch, seed=seed, mode=mode, settings=settings, progress=progress
    )


def last_regularisation(program: Program, strategy: str, mode: str) -> Regularisation:
    """Strengths of the last stage where none are given.

    By default the drop rates that the network has; in `reference` those of the published script, which are for growth:
    the published zero-shot search sets none.
    """
    if mode == "reference":
        from progc.schedule.regularising import PUBLISHED

        return Regularisation() if strategy == "zero-shot" else PUBLISHED
    from progc.transforms.dropping import find_drops

    rates: dict[str, float] = {}
    for drop in find_drops(program.graphs["train"]):
        if drop.rate > 0:
            rates[drop.kind] = max(rates.get(drop.kind, 0.0), drop.rate)
    return Regularisation(drop_path=rates.get("path"), dropout=rates.get("dropout"))


def _counted(
    program: Program, stages: tuple[Stage, ...], batch: int | None, task: Task | None, seed: int
) -> tuple[tuple[Stage, ...], tuple[str, ...]]:
    from progc.analysis.costs import NotCounted
    from progc.schedule.costing import counted_stages

    try:
        return counted_stages(program, stages, batch=batch, measure=task, seed=seed), ()
    except NotCounted as reason:
        if task is not None:
            raise
        return stages, (f"costs are not counted: {reason}",)


def linear(space: Space, stages: int) -> list[Index]:
    """A place in the space for every stage; trainable sets go through the levels of the first shape.

    Raises:
        InputError: fewer than one stage.
    """
    if stages < 1:
        raise InputError(f"linear: stages is a whole number from 1 on, not {stages}")
    sizes = space.shape
    shape = space.unfreeze[0].shape if space.unfreeze else None
    own = sum(level.shape == shape for level in space.unfreeze) if space.unfreeze else 1
    places = [
        Index(
            level(stage, stages, sizes.resolution),
            level(stage, stages, sizes.depth),
            level(stage, stages, sizes.width),
            level(stage, stages, own),
        )
        for stage in range(stages - 1)
    ]
    return [*places, space.last]


def level(stage: int, stages: int, levels: int) -> int:
    """Which of `levels` levels a stage takes: the first at stage 0, the last at the last stage."""
    if stages == 1:
        return levels - 1
    way, whole = stage * (levels - 1), stages - 1
    return -((whole - 2 * way) // (2 * whole))
