"""What a plan is made with: the options of `progc plan`, of `[plan]` in a configuration, and of `progc.plan`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from progc.data.regularisation import Regularisation
from progc.errors import InputError, did_you_mean
from progc.pipeline.text import parse_inits
from progc.schedule.level_texts import Levels, items
from progc.schedule.regularising import PUBLISHED
from progc.schedule.rules import Rules, rules_of
from progc.schedule.schedule import MODES, SEARCHES, STRATEGIES, UNITS
from progc.schedule.stage_shares import AUTO, DEFAULT_STAGES, Shares, begins, checked_shares, stage_shares
from progc.search.strategies import check_strategy, load_strategy, made_strategy

SID_INITS = ("zero", "normal")
"""How the rows of a stage identifier may start."""


DECIDE = ("before", "training")


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """The options of a plan, checked when they are made; what a network can have is checked by `plan`.

    Attributes:
        strategy: `linear` takes the levels of the space in order; `zero-shot` and `one-shot` search, and need a task.
            Other names are those of classes that installed packages add (`progc.Strategy`).
        stages: number of stages, at least 1. `auto`: the largest number of levels of a dimension. None: the number of
            `shares`, else 4.
        shares: the part of the run that each stage takes, one number per stage (parts that sum to 1, or whole numbers
            as proportions), `late` or `even` (see `progc.schedule.stage_shares`). None: `even`.
        rules: rules that end stages early or late: texts such as `gain{window=2}`, or objects with a `kind`.
        mode: `default`, or `reference` for the published procedure.
        depths, widths, resolutions, unfreeze: levels of the growth space, as on the command line (see
            `progc.schedule.finding.find`). `none` keeps the dimension fixed; None finds its levels.
        batch: samples per step, of searches before training and of costs.
        stage_batch: samples per step of each stage, for the run and for costs; empty: that of the run.
        seed: seed of everything that a search draws at random.
        total: length of the run in `unit`; None if it is not known yet.
        unit: `epochs` or `steps`.
        count: whether the costs of each stage are counted from its graphs.
        measure: whether steps are also timed, which needs a task.
        regularise: whether regularisation grows from stage to stage, or its strengths in the last stage (a text such
            as `drop_path=0.1,mixup=0.2` or `none` is parsed). True takes those of the network.
        settings: settings of the search strategy. `sid` may be given here as well.
        sid: numbers the stages for a stage identifier, although the network has none yet.
        sid_init: how the rows of that identifier start: `zero`, which does not change the network, or `normal`, N(0,
            0.02). None: zero, and normal in the mode `reference`, as published.
        init: how training makes new weights where the network grows, such as `depth=mogrow,source=all`; None leaves it
            to the run.
        trained: whether the weights of the network are trained already. The default plan then keeps all of them: what
            trains varies, and the resolution where no parameter depends on it, and depth and width only if they are
            given.
        decide: when a search decides: `before` training, with the present weights, or in `training`, at the beginning
            of each stage and with the weights of that moment.

    Raises:
        InputError: an unknown strategy, mode, unit, time to decide, init or field of regularisation, a number out of
            range, fewer epochs or steps than stages, or settings for the linear strategy.
    """

    strategy: str = "linear"
    stages: int | str | None = None
    mode: str = "default"
    depths: Levels = None
    widths: Levels = None
    resolutions: Levels = None
    unfreeze: Levels = None
    batch: int | None = None
    seed: int = 0
    total: int | None = None
    unit: str = "epochs"
    count: bool = True
    measure: bool = False
    regularise: bool | str | Regularisation | None = True
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sid: bool = False
    sid_init: str | None = None
    init: str | None = None
    decide: str = "before"
    shares: Shares = None
    rules: Rules = ()
    stage_batch: Sequence[int] = ()
    trained: bool = False

    def __post_init__(self) -> None:
        for what, value, known in (
            ("mode", self.mode, MODES),
            ("unit", self.unit, UNITS),
            ("time to decide", self.decide, DECIDE),
        ):
            if value not in known:
                hint = did_you_mean(str(value), known) or f"; expected {', '.join(known[:-1])} or {known[-1]}"
                raise InputError(f"plan: unknown {what} `{value}`{hint}")
        try:
            check_strategy(self.strategy)
        except InputError as error:
            raise InputError(f"plan: {error}") from error
        self._check_stages()
        self._check_rules()
        for what, number in ((self.unit, self.total), ("batch", self.batch)):
            if number is not None and not _at_least_one(number):
                raise InputError(f"plan: {what}: expected an integer of at least 1, got {number!r}")
        for number in self.stage_batch:
            if not _at_least_one(number):
                raise InputError(f"plan: stage_batch: expected integers of at least 1, got {number!r}")
        self._check_batches(self.num_stages)
        if self.total is not None and self.stages != AUTO:
            try:
                begins(self.stage_shares, self.total, self.unit)
            except InputError as error:
                raise InputError(f"plan: {error}") from error
        if self.regularise is None:
            object.__setattr__(self, "regularise", True)
        elif isinstance(self.regularise, str):
            off = self.regularise.strip().lower() == "none"
            object.__setattr__(self, "regularise", False if off else Regularisation.parse(self.regularise))
        if self.init is not None:
            parse_inits(self.init)
        if self.sid_init not in (None, *SID_INITS):
            raise InputError(f"plan: sid_init: expected {' or '.join(SID_INITS)}, got {self.sid_init!r}")
        if self.sid_init is not None and not self.numbers_stages:
            raise InputError(f"plan: sid_init {self.sid_init} is for a stage identifier; give sid as well (--sid)")
        if self.foreign:
            made_strategy(self.strategy, self.search_settings)
        if self.strategy == "linear" and self.search_settings:
            raise InputError(
                f"plan: the linear strategy has no setting `{min(self.search_settings)}`; remove it, or choose the "
                "strategy one-shot or zero-shot"
            )

    def _check_stages(self) -> None:
        """Reads the shares, and takes the number of stages from them if it is not given."""
        try:
            shares = checked_shares(self.shares)
        except InputError as error:
            raise InputError(f"plan: {error}") from error
        object.__setattr__(self, "shares", shares)
        given = len(shares) if isinstance(shares, tuple) else None
        if self.stages is None:
            object.__setattr__(self, "stages", given or DEFAULT_STAGES)
        if self.stages != AUTO and not _at_least_one(self.stages):
            raise InputError(f"plan: stages: expected an integer of at least 1, got {self.stages!r}")
        if given is not None and self.stages not in (AUTO, given):
            raise InputError(
                f"plan: {given} shares are given for {self.stages} stages; give one share per stage, or leave out the "
                "number of stages"
            )

    def _check_batches(self, stages: int | None) -> None:
        if self.stage_batch and stages is not None and len(self.stage_batch) != stages:
            raise InputError(
                f"plan: stage_batch: expected one batch size for each of the {stages} stages, got "
                f"{len(self.stage_batch)}; give as many as the plan has stages"
            )

    def _check_rules(self) -> None:
        try:
            object.__setattr__(self, "rules", rules_of(self.rules))
        except InputError as error:
            raise InputError(f"plan: {error}") from error
        if self.rules and self.stages == 1:
            raise InputError("plan: a rule ends a stage before the last, and one stage is planned; remove the rules")

    def with_levels(self, levels: int) -> PlanOptions:
        """Returns the options with a number of stages, where it is `auto`.

        Args:
            levels: the largest number of levels of a dimension of the space.

        Raises:
            InputError: shares for another number of stages, or too few epochs or steps.
        """
        if self.stages != AUTO:
            return self
        if isinstance(self.shares, tuple) and len(self.shares) != levels:
            raise InputError(
                f"plan: {len(self.shares)} shares are given, and stages auto makes {levels} stages, one per level; "
                "give one share per level, or leave out auto"
            )
        return dataclasses.replace(self, stages=levels)

    @property
    def num_stages(self) -> int | None:
        """The number of stages; None while it depends on the levels that are found."""
        return self.stages if isinstance(self.stages, int) else None

    @property
    def stage_shares(self) -> tuple[float, ...]:
        """The share of each stage; their number must be known."""
        assert isinstance(self.stages, int)
        assert not isinstance(self.shares, Sequence) or isinstance(self.shares, (str, tuple))
        return stage_shares(self.shares, self.stages)

    @property
    def searching(self) -> bool:
        """Whether stages are chosen by a search before training."""
        before = self.strategy in SEARCHES and self.decide == "before"
        return self.num_stages != 1 and (before or self.foreign)

    @property
    def opens(self) -> bool:
        """Whether stages are left open, to be chosen by a search in training."""
        return self.strategy in SEARCHES and self.num_stages != 1 and self.decide == "training"

    @property
    def needs_task(self) -> bool:
        """Whether samples and a loss are needed for planning."""
        searches = self.searching and (not self.foreign or load_strategy(self.strategy).needs_task)
        return searches or self.measure

    @property
    def foreign(self) -> bool:
        """Whether the strategy is one of another package, which always decides before training."""
        return self.strategy not in STRATEGIES

    @property
    def drop_path(self) -> float | None:
        """The largest rate of drop-path that the last stage has, whatever the network is built with; None: unknown."""
        if isinstance(self.regularise, Regularisation):
            return self.regularise.drop_path
        published = self.regularise and self.mode == "reference" and self.strategy != "zero-shot"
        return PUBLISHED.drop_path if published else None

    @property
    def search_settings(self) -> dict[str, Any]:
        """The settings of the strategy."""
        return {key: value for key, value in self.settings.items() if key != "sid"}

    @property
    def numbers_stages(self) -> bool:
        """Whether stages are numbered although the network has no stage identifier."""
        return self.sid or bool(self.settings.get("sid"))

    @property
    def levels(self) -> dict[str, Levels]:
        """The levels that are given, by dimension."""
        named = {name: getattr(self, name) for name in ("depths", "widths", "resolutions", "unfreeze")}
        return {name: levels for name, levels in named.items() if levels is not None}

    @property
    def recorded(self) -> dict[str, Any]:
        """What a schedule keeps of the options, in the form in which `progc.plan` takes them again."""
        found: dict[str, Any] = {name: ",".join(items(levels)) for name, levels in self.levels.items()}
        if self.batch is not None:
            found["batch"] = self.batch
        if self.init is not None:
            found["init"] = self.init
        if self.shares is not None:
            found["shares"] = self.shares if isinstance(self.shares, str) else ",".join(f"{x:g}" for x in self.shares)
        starts = self.sid_init or ("normal" if self.mode == "reference" and self.numbers_stages else "zero")
        if starts != "zero":
            found["sid_init"] = starts
        return {**found, **self.settings, **({"sid": True} if self.sid else {})}


def run_length(epochs: int | None, steps: int | None) -> tuple[int | None, str]:
    """Returns the length of a run (None if it is not known) and its unit.

    Raises:
        InputError: both are given.
    """
    if epochs is not None and steps is not None:
        raise InputError("`epochs` and `steps` are both given; give the length of the run in one of them")
    return (steps, "steps") if steps is not None else (epochs, "epochs")


def _at_least_one(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1
