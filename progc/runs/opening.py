"""Opens what a configuration names: networks, samples, a schedule, and the optimizer.

AdamW and SGD are those of torch; other optimizers come from a model library.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from progc.data.staged import check_sizes
from progc.errors import InputError, did_you_mean
from progc.pipeline.text import parse_inits
from progc.ranks.agreeing import raise_together, rank, told
from progc.runs.config import Config, OptimizerSection
from progc.runs.networks import ModelAndData, Phase
from progc.schedule.cutting import cut_notes
from progc.schedule.schedule import PLAN, Schedule
from progc.search.options import PlanOptions, run_length
from progc.train.settings import Settings
from progc.train.skipping import fused_options

if TYPE_CHECKING:
    from progc.data.task import Task
    from progc.ir.program import Program


@dataclasses.dataclass(frozen=True)
class Opened:
    """Everything that a run is made of.

    Attributes:
        program: the full network.
        schedule: the stages, with costs for their batches where they can be counted, and the length of the run.
        task: samples and loss.
        source: the smaller network to begin with; None if training begins with a part of the full network.
        optimizer: makes the optimizer of a module.
        inits: how new weights are made.
        settings: settings of the run; `total` is in the unit of the schedule.
        notes: notes for the user.
    """

    program: Program
    schedule: Schedule
    task: Task
    source: Program | None
    optimizer: Maker
    inits: dict[str, str]
    settings: Settings
    notes: tuple[str, ...] = ()


def opened(
    config: Config,
    *,
    run: Path | None = None,
    schedule: Schedule | None = None,
    weights: bool = True,
    phase: Phase | None = None,
) -> Opened:
    """Opens everything that a configuration names; cheap checks come first.

    With several processes, rank 0 plans and the others take its schedule.

    Args:
        config: the configuration.
        run: folder of the run; if it holds a schedule, that one is used.
        schedule: the schedule of a forked run (`--from`); None for other runs.
        weights: False gives the networks shapes only (unless a search needs weights), for a dry run.
        phase: called with the name of each phase, returns a context for it.

    Raises:
        InputError: source, target, plan or data cannot be opened, or values contradict each other.
        CaptureError, TargetError: the network cannot be captured, or cannot grow to `to`.
    """
    during = phase or (lambda name: contextlib.nullcontext())
    settings = config.settings

    maker = chosen(config.optimizer, settings.lr, sharded=settings.parallel == "fsdp")
    resumed = schedule is not None or (run is not None and (run / PLAN).exists())
    given = schedule or _given(config, run)
    named = ModelAndData.of(config, given)
    named.check_data(f"training {config.source}")
    trained = named.trained if config.plan.trained is None else config.plan.trained
    options = None if given is not None else _plan_options(config, trained)
    searching = options is not None and options.searching
    notes: list[str] = []
    if options is not None:
        named = named.with_drop_path(options.drop_path, notes.append)
    start = named.captured(real=weights or searching, phase=during, note=notes.append)
    init = _init_text(config, given)
    inits = {} if init is None else parse_inits(init)
    full = named.grown(start, real=searching, phase=during, note=notes.append)
    smaller = start if named.to is not None else None
    with during("data"):
        task = named.task(full)

    def planned() -> Schedule:
        from progc.search.plan import plan_with

        if given is not None:
            return given
        assert options is not None
        return plan_with(full, options, task=task, source=named.source.text, target=named.to, start=smaller)

    with during("plan"):
        schedule = _agreed(planned)
        if not resumed:  # the schedule of a run has its length
            schedule = _cooled(_with_length(schedule, config), settings.cooldown)
        schedule.check(full)
        schedule.starts()
        settings.check_stages(len(schedule.stages))
        schedule = schedule.with_batches(settings.stage_batch)
        notes += check_sizes(task, [stage.point.resolution for stage in schedule.stages])
        schedule, told_of = _counted(full, schedule, settings.batch)
    notes += named.not_set(full, schedule.regularisations)
    if not resumed and smaller is None:
        notes += cut_notes(full, [stage.point for stage in schedule.stages], trained=trained)
    if given is None and trained:  # what does not vary is not what it would be from scratch
        notes += [note for note in schedule.notes if "the weights are trained" in note]
    settings = dataclasses.replace(settings, total=schedule.total)
    return Opened(full, schedule, task, smaller, maker, inits, settings, (*notes, *told_of))


def _given(config: Config, run: Path | None) -> Schedule | None:
    """The existing schedule: the one of the run, else the one of the plan file, with all that it has decided."""
    if run is not None and (run / PLAN).exists():
        return Schedule.read(run / PLAN)
    return Schedule.read(config.plan.file).closed if config.plan.file is not None else None


def _init_text(config: Config, given: Schedule | None) -> str | None:
    """How new weights are made: as the run says, else as its plan says."""
    planned = None if given is None else given.settings.get("init")
    return config.init if config.init is not None or planned is None else str(planned)


def _agreed(make: Callable[[], Schedule]) -> Schedule:
    """The schedule that rank 0 makes, on every rank."""
    made: Schedule | None = None
    failure: Exception | None = None
    try:
        made = make() if rank() == 0 else None
    except Exception as error:
        failure = error
    raise_together(failure)
    data = told(made.to_json() if made is not None else None)
    return made if made is not None else Schedule.from_json(data)


def _plan_options(config: Config, trained: bool) -> PlanOptions:
    total, unit = run_length(config.epochs, config.steps)
    return PlanOptions(
        **config.plan.model_dump(exclude={"file", "trained"}),
        trained=trained,
        init=config.init,
        seed=config.settings.seed,
        total=total,
        unit=unit,
        count=False,  # costs are counted below, for the batch of the run
    )


def _with_length(schedule: Schedule, config: Config) -> Schedule:
    """The schedule with the length of the run, if one is given."""
    total, unit = run_length(config.epochs, config.steps)
    if total is None:
        if schedule.total is None:
            raise InputError("the length of the run is unknown; give epochs or steps (--epochs N, --steps N)")
        return schedule
    if schedule.rules and unit != schedule.unit:
        raise InputError(f"the plan's rules count {schedule.unit}; give the length in {schedule.unit}, not in {unit}")
    return dataclasses.replace(schedule, total=total, unit=unit)


def _cooled(schedule: Schedule, cooldown: int) -> Schedule:
    """The schedule with further epochs or steps in its last stage; the others begin where they began."""
    if not cooldown:
        return schedule
    assert schedule.total is not None
    starts = [*schedule.starts(), schedule.total]
    total = schedule.total + cooldown
    ends = [*starts[1:-1], total]
    stages = tuple(
        dataclasses.replace(stage, share=(end - begin) / total)
        for stage, begin, end in zip(schedule.stages, starts, ends, strict=False)
    )
    return dataclasses.replace(schedule, stages=stages, total=total)


def _counted(full: Program, schedule: Schedule, batch: int) -> tuple[Schedule, tuple[str, ...]]:
    """The schedule with costs for the batch of each stage; without if the graph does not run on shapes alone.

    Args:
        batch: batch of stages that have none of their own.
    """
    known = zip(schedule.stages, schedule.batches(batch), strict=True)
    if all(stage.cost is not None and stage.cost.batch == size for stage, size in known):
        return schedule, ()
    from progc.analysis.costs.counting import NotCounted
    from progc.schedule.costing import counted_stages

    try:
        return dataclasses.replace(schedule, stages=counted_stages(full, schedule.stages, batch=batch)), ()
    except NotCounted as error:
        return schedule, (f"costs of the stages are unknown: {error}",)


Maker = Callable[[nn.Module], Optimizer]


OWN: Mapping[str, Callable[..., Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def chosen(section: OptimizerSection, lr: float, *, sharded: bool = False) -> Maker:
    """Returns a function that makes the optimizer of a module.

    Parameters with at most one dim (biases, scales of norms) form a group without weight decay, unless
    `decay_vectors` is set. The peak learning rate of both groups is `lr`; the trainer multiplies it.

    Args:
        section: name and options of the optimizer.
        lr: peak learning rate.
        sharded: whether the parameters will be sharded over ranks.

    Raises:
        InputError: the optimizer does not exist or does not take an option; checked on a small module.
    """

    def make(module: nn.Module) -> Optimizer:
        return _made(section, lr, module, sharded)

    make(nn.Linear(2, 2))
    return make


def slots(maker: Maker) -> int:
    """Returns how many tensors of the size of a parameter the optimizer keeps for it, such as 2 for Adam."""
    module = nn.Linear(4, 6)
    optimizer = maker(module)
    module(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    state = optimizer.state[module.weight]
    return sum(isinstance(value, torch.Tensor) and value.shape == module.weight.shape for value in state.values())


def _made(section: OptimizerSection, lr: float, module: nn.Module, sharded: bool) -> Optimizer:
    parameters = list(module.parameters())
    matrices = [parameter for parameter in parameters if section.decay_vectors or parameter.dim() > 1]
    vectors = [parameter for parameter in parameters if not section.decay_vectors and parameter.dim() <= 1]
    groups = [
        {"params": held, "weight_decay": decay}
        for held, decay in ((matrices, section.weight_decay), (vectors, 0.0))
        if held
    ]
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in section.options.items()}
    name = section.name.lower()
    try:
        if name in OWN:
            defaults = {"momentum": 0.9} if name == "sgd" else {}
            options = {**defaults, **options}
            return OWN[name](groups, lr=lr, **options, **fused_options(module, options, sharded=sharded))
        library = _library()
        if library is not None and name in library.names():
            made: Optimizer = library.make(name, groups, lr=lr, options=options)
            return made
    except (TypeError, ValueError) as error:
        text = str(error).replace("\n", " ")
        raise InputError(f"optimizer {name} cannot be made: {text}; fix [optimizer] in the config") from error
    known = [*OWN, *(library.names() if library is not None else ())]
    more = f" or one of timm.optim ({len(known) - len(OWN)} names)" if library is not None else ""
    meant = did_you_mean(name, known)
    raise InputError(f"unknown optimizer `{section.name}`{meant or ';'} expected {', '.join(OWN)}{more}")


def _library() -> Any:
    try:
        return importlib.import_module("progc.models.optimizers")
    except ImportError:
        return None
