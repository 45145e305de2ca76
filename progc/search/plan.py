"""`progc.plan`: the stages of a training run, chosen from the growth space of a network, with what each costs.

`linear` is the manual schedule of AutoProg and AutoProg-Zero and needs no samples. The searches are in
`progc.search.one_shot` and `progc.search.zero_shot`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from progc.data.regularisation import Regularisation
from progc.errors import InputError
from progc.schedule.finding import find
from progc.schedule.level_texts import Levels
from progc.schedule.point import SHAPES
from progc.schedule.rules import Rules, rules_of
from progc.schedule.schedule import Decision, ModelRef, Schedule
from progc.schedule.space import Index, Space
from progc.schedule.stage import Stage
from progc.schedule.stage_shares import DEFAULT_STAGES, Shares
from progc.search.options import PlanOptions
from progc.search.strategies import strategy_places

if TYPE_CHECKING:
    from progc.data.task import Task
    from progc.ir.program import Program
    from progc.schedule.point import Point

SEARCH_BATCH = 16
"""Default batch size of a search: the global batch of the published zero-shot search."""


def plan(
    program: Program,
    *,
    strategy: str = "linear",
    stages: int | str | None = None,
    shares: Shares = None,
    rules: Rules = (),
    mode: str = "default",
    space: Space | None = None,
    depths: Levels = None,
    widths: Levels = None,
    resolutions: Levels = None,
    unfreeze: Levels = None,
    task: Task | None = None,
    batch: int | None = None,
    stage_batch: Sequence[int] = (),
    seed: int = 0,
    total: int | None = None,
    unit: str = "epochs",
    count: bool = True,
    measure: bool = False,
    regularise: bool | str | Regularisation = True,
    source: str | None = None,
    target: str | None = None,
    start: Program | Point | None = None,
    settings: Mapping[str, Any] | None = None,
    sid: bool = False,
    sid_init: str | None = None,
    init: str | None = None,
    decide: str = "before",
    trained: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Schedule:
    """Plans the stages of a training run; the last stage is always the full network.

    The other keywords are the fields of `progc.search.options.PlanOptions`, which documents them.

    Args:
        program: the full network.
        space: the growth space to choose from. None: found from `depths`, `widths`, `resolutions` and `unfreeze`.
        task: samples and loss, which a search and `measure` need.
        source, target: texts of the source and of `--to`, recorded in the schedule's `ModelRef`.
        start: the network that training begins with: the smallest level has its depth and width.
        progress: called with a sentence that says what is being done.

    Returns:
        The schedule. Its `notes` say what was rounded or could not vary.

    Raises:
        InputError: an option is out of range, nothing varies in the space, the network cannot have the levels (the
            message gives the nearest ones that it can have), or a task is missing.
    """
    options = PlanOptions(
        strategy=strategy,
        stages=stages,
        shares=shares,
        rules=rules,
        mode=mode,
        depths=depths,
        widths=widths,
        resolutions=resolutions,
        unfreeze=unfreeze,
        batch=batch,
        stage_batch=stage_batch,
        seed=seed,
        total=total,
        unit=unit,
        count=count,
        measure=measure,
        regularise=regularise,
        settings=settings or {},
        sid=sid,
        sid_init=sid_init,
        init=init,
        decide=decide,
        trained=trained,
    )
    return plan_with(
        program, options, space=space, task=task, source=source, target=target, start=start, progress=progress
    )


def plan_with(
    program: Program,
    options: PlanOptions,
    *,
    space: Space | None = None,
    task: Task | None = None,
    source: str | None = None,
    target: str | None = None,
    start: Program | Point | None = None,
    progress: Callable[[str], None] | None = None,
) -> Schedule:
    """Plans a training run from options that are checked already; arguments, result and errors as for `plan`."""
    _check(program, options, task)
    chosen, notes = _space(program, space, options, start)
    options = options.with_levels(_most_levels(chosen))
    number = len(options.stage_shares)
    _check_identifier(program, number)
    tell = progress or (lambda text: None)
    decisions: Sequence[Decision] = ()
    if options.foreign and number > 1:
        tell(f"strategy {options.strategy} over {number - 1} stages")
        places, decisions = strategy_places(program, chosen, options, task)
    elif options.searching:
        assert task is not None
        tell(f"{options.strategy} search over {number - 1} stages")
        places, decisions = _searched(program, chosen, task, options, progress)
    else:
        if options.opens:
            _check_search(chosen, options)
        places = linear(chosen, number)
    made = _stages(program, chosen, places, options)
    if options.stage_batch:
        made = tuple(dataclasses.replace(s, batch=own) for s, own in zip(made, options.stage_batch, strict=True))
    if options.count or options.measure:
        tell("counting the cost of the stages")
        made, told = _counted(program, made, options, task)
        notes = (*notes, *told)
    return Schedule(
        ModelRef.of(program, source, target),
        options.strategy,
        made,
        chosen,
        mode=options.mode,
        seed=options.seed,
        total=options.total,
        unit=options.unit,
        decisions=tuple(decisions),
        settings=options.recorded,
        notes=notes,
        rules=rules_of(options.rules),
    )


def _check(program: Program, options: PlanOptions, task: Task | None) -> None:
    if task is None and options.searching and options.needs_task:
        raise InputError(
            f"plan: the {options.strategy} search needs samples and a loss; give a task (a file with datasets() and "
            "loss(outputs, batch)), or use the strategy linear"
        )
    if task is None and options.measure:
        raise InputError(
            "plan: measure needs samples to time steps on; give a task (a file with datasets() and loss), or use "
            "count without measure"
        )
    if program.sid is not None and options.sid_init is not None:
        raise InputError(
            f"plan: sid_init {options.sid_init} is for a new stage identifier, and this network already has one, which "
            "keeps its rows; remove sid_init"
        )
    if options.num_stages is not None:
        _check_identifier(program, options.num_stages)


def _check_identifier(program: Program, stages: int) -> None:
    if program.sid is not None and stages > program.sid.stages:
        raise InputError(
            f"plan: the stage identifier has rows for {program.sid.stages} stages, not for {stages}; plan at most "
            f"{program.sid.stages} stages, or inject it with stages={stages}"
        )


def _space(
    program: Program, given: Space | None, options: PlanOptions, start: Program | Point | None
) -> tuple[Space, tuple[str, ...]]:
    """The space to choose from, and notes."""
    if given is not None:
        if options.levels or start is not None:
            raise InputError(
                "plan: a space is given together with depths, widths, resolutions, unfreeze or start, which describe "
                "another one; give either the space or these"
            )
        found, notes = given, tuple[str, ...]()
    else:
        levels = options.levels
        if "unfreeze" not in levels and (shapes := _unfreezing(program, options, start)) is not None:
            levels["unfreeze"] = shapes
        made = find(
            program, **levels, levels=max(options.num_stages or DEFAULT_STAGES, 2), start=start, mode=options.mode,
            trained=options.trained,
        )  # fmt: skip
        found, notes = made.space, made.notes
        if options.num_stages != 1:
            made.check()
    if options.num_stages != 1 and found.empty:
        raise InputError("plan: the space has a single point; give more levels, or plan one stage")
    if options.strategy == "one-shot" and found.unfreeze:
        raise InputError(
            "plan: the one-shot search trains a whole supernet and does not choose which blocks train; remove "
            "unfreeze, or use the strategy zero-shot"
        )
    return found, tuple(notes)


def _unfreezing(program: Program, options: PlanOptions, start: Program | Point | None) -> str | None:
    """The default of `unfreeze`; None: everything trains.

    A search for fine-tuning takes the published shapes. Where the weights are trained, other strategies begin with a
    frozen prefix, in which the backward pass is never run, or with the published shape in the mode `reference`.
    """
    if options.strategy == "zero-shot":
        return published_unfreezing(program, options.mode)
    cuts = {"depths", "widths"} & options.levels.keys()
    if not options.trained or start is not None or cuts or options.strategy == "one-shot":
        return None
    if options.mode == "reference":
        return published_unfreezing(program, options.mode)
    from progc.transforms.freezing.blocks import Blocks

    of = min(4, len(Blocks(program).units))
    return f"prefix:{of}" if of > 1 else None


def published_unfreezing(program: Program, mode: str) -> str:
    """Returns the `unfreeze` levels of a zero-shot search: interleaved blocks, and by default prefixes and suffixes."""
    from progc.transforms.freezing.blocks import Blocks

    of = min(4, len(Blocks(program).units))
    if of < 2:
        return "none"
    return ",".join(f"{shape}:{of}" for shape in (SHAPES[:1] if mode == "reference" else SHAPES))


def _searched(
    program: Program, space: Space, task: Task, options: PlanOptions, progress: Callable[[str], None] | None
) -> tuple[list[Index], list[Decision]]:
    from progc.search import one_shot, zero_shot

    search: Callable[..., tuple[list[Index], list[Decision]]] = (
        zero_shot.search if options.strategy == "zero-shot" else one_shot.search
    )
    return search(
        program,
        space,
        task,
        stages=len(options.stage_shares),
        batch=SEARCH_BATCH if options.batch is None else options.batch,
        seed=options.seed,
        mode=options.mode,
        settings=options.search_settings,
        progress=progress,
    )


def _check_search(space: Space, options: PlanOptions) -> None:
    """Checks the settings of a search in training, and its first candidates.

    Raises:
        InputError: unknown or invalid settings, or a space that the search cannot use.
    """
    from progc.search.candidates import one_shot_candidates, zero_shot_candidates
    from progc.search.one_shot_stage import OneShotSettings
    from progc.search.zero_shot import ZeroShotOptions

    if options.strategy == "one-shot":
        OneShotSettings.of(options.search_settings)
        one_shot_candidates(space, None, 0, len(options.stage_shares), options.mode)
    else:
        ZeroShotOptions.of(options.search_settings, options.mode)
        zero_shot_candidates(space, None, 0, len(options.stage_shares), options.mode)


def _most_levels(space: Space) -> int:
    """The largest number of levels of a dimension; of several shapes that unfreeze, the linear schedule takes one."""
    sizes = space.shape
    shapes = [level.shape for level in space.unfreeze]
    return max(sizes.resolution, sizes.depth, sizes.width, *(shapes.count(shape) for shape in shapes))


def linear(space: Space, stages: int) -> list[Index]:
    """Returns the position of every stage in the space, for the linear schedule of AutoProg ("Prog").

    All dimensions go through their levels together, from the smallest to the full network. With as many levels as
    stages each stage has its own level. Otherwise a stage takes the level nearest to its place in the run, the smaller
    one of two, so that growth is even. Trainable sets go through the levels of the first shape.

    Raises:
        InputError: fewer than one stage.
    """
    if stages < 1:
        raise InputError(f"linear: stages: expected an integer of at least 1, got {stages}")
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
    """Returns which of `levels` levels a stage takes: the first at stage 0, the last at the last stage."""
    if stages == 1:
        return levels - 1
    way, whole = stage * (levels - 1), stages - 1
    return -((whole - 2 * way) // (2 * whole))


def _stages(program: Program, space: Space, places: Sequence[Index], options: PlanOptions) -> tuple[Stage, ...]:
    number = len(places)
    points = [space.point(place) for place in places]
    strengths = [Regularisation()] * number
    if options.regularise:
        from progc.schedule.regularising import ramp, sizes_of

        given = options.regularise
        final = given if isinstance(given, Regularisation) else last_regularisation(program, options)
        strengths = ramp(number, final, options.mode, sizes=sizes_of(points))
    numbered = options.numbers_stages or program.sid is not None
    return tuple(
        Stage(
            k, point, options.stage_shares[k], k if numbered else None, strengths[k],
            decided="open" if options.opens and k < number - 1 else "plan",
        )
        for k, point in enumerate(points)
    )  # fmt: skip


def last_regularisation(program: Program, options: PlanOptions) -> Regularisation:
    """Returns the regularisation of the last stage where no strengths are given.

    By default these are the drop rates of the network. `reference` takes those of AutoProg's published script for
    growth, and none for the zero-shot search, whose published script sets none.
    """
    if options.mode == "reference":
        from progc.schedule.regularising import PUBLISHED

        return Regularisation() if options.strategy == "zero-shot" else PUBLISHED
    from progc.transforms.dropping import find_drops

    rates: dict[str, float] = {}
    for drop in find_drops(program.graphs["train"]):
        if drop.rate > 0:
            rates[drop.kind] = max(rates.get(drop.kind, 0.0), drop.rate)
    return Regularisation(drop_path=rates.get("path"), dropout=rates.get("dropout"))


def _counted(
    program: Program, stages: tuple[Stage, ...], options: PlanOptions, task: Task | None
) -> tuple[tuple[Stage, ...], tuple[str, ...]]:
    """The stages with their costs; without, and with a note, where the graph does not run on shapes alone."""
    from progc.analysis.costs.counting import NotCounted
    from progc.schedule.costing import counted_stages

    timed = task if options.measure else None
    try:
        return counted_stages(program, stages, batch=options.batch, measure=timed, seed=options.seed), ()
    except NotCounted as reason:
        if timed is not None:
            raise
        return stages, (f"costs are not counted: {reason}",)
