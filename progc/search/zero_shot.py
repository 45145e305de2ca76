"""Zero-shot search: at each stage, proxies and times of the candidates, and a vote (AutoProg-Zero, Li et al. 2024).

`reference` follows the paper: the first samples in their order, two batches for each proxy and six for the measured
time of a step, a vote of ranks in which a tie goes to the fastest, and duplicates measured twice. `default` draws
shuffled samples, predicts the time to the end of training from the graph, and votes with `progc.search.vote.worth`
(docs/zero-shot.md). Candidates are evaluated one after the other; nothing is trained. `ZeroShotOptions`, at the end,
are the settings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from progc.data.task import Task
from progc.errors import CheckError, InputError, PassOptionError, TargetError, did_you_mean
from progc.ir.program import Program
from progc.ir.untouched import untouched
from progc.passes.freeze import Freeze
from progc.pipeline.manager import run
from progc.ranks.agreeing import agreed
from progc.schedule.building import stage_program
from progc.schedule.point import Point
from progc.schedule.schedule import Candidate, Decision
from progc.schedule.space import Index, Space
from progc.search import probing, vote
from progc.transforms.sid.edit import with_stage

Progress = Callable[[str], None]


def search(
    full: Program,
    space: Space,
    task: Task | None,
    *,
    stages: int,
    batch: int | None = None,
    seed: int = 0,
    mode: str = "default",
    settings: Any = None,
    progress: Progress | None = None,
) -> tuple[list[Index], list[Decision]]:
    """Decides all stages in a row with the present weights; the last stage is the full network.

    Scores change while a network trains, and `decide` at the start of each stage uses the weights at that time. Here
    all stages are decided with the given weights, so stages differ only in their candidates (and in the row of the
    stage identifier).

    Args:
        full: the full network.
        space: the growth space.
        task: samples and loss.
        stages: number of stages.
        batch: samples per training step, for the predicted or measured time; None takes the example's batch size.
        seed: seed of the samples, and of masks that the network draws.
        mode: `default` or `reference`.
        settings: see `ZeroShotOptions`.
        progress: called with a few words that say what is being done.

    Returns:
        The position of every stage, and a decision for every stage except the last.

    Raises:
        InputError: nothing to choose from, no task, unknown settings, too few samples, or no weights.
        CheckError: a loss is NaN or infinite, every score is NaN, or the weights were changed.
        TargetError: the network cannot have the sizes of a candidate.
    """
    if stages > 1 and space.empty:
        raise InputError("zero-shot search: the space has a single point; give more levels")
    searching = _ZeroShotSearch(
        full, task, stages, batch, seed, ZeroShotOptions.of(settings, mode), progress, remember=True
    )
    chosen: list[Index] = []
    decisions: list[Decision] = []
    for stage in range(stages - 1):
        index, decision = searching.decide(space, chosen[-1] if chosen else None, stage)
        chosen.append(index)
        decisions.append(decision)
    return [*chosen, space.last], decisions


def decide(
    full: Program,
    space: Space,
    current: Index | None,
    task: Task | None,
    *,
    stage: int,
    stages: int,
    batch: int | None = None,
    seed: int = 0,
    mode: str = "default",
    settings: Any = None,
    progress: Progress | None = None,
    network: Callable[[Point], Program] | None = None,
) -> tuple[Index, Decision]:
    """Decides one stage with the present weights. With several ranks rank 0 decides for all.

    Other arguments and errors are those of `search`.

    Args:
        full: the full network.
        current: position of the previous stage; None at stage 0.
        stage: index of the stage. The last stage is the full network, without a search.
        network: returns the network of a point with the weights of the moment; None cuts it out of `full`.

    Returns:
        The position of the stage, and the decision.
    """
    searching = _ZeroShotSearch(
        full, task, stages, batch, seed, ZeroShotOptions.of(settings, mode), progress, remember=False, network=network
    )
    return searching.decide(space, current, stage)


class _ZeroShotSearch:
    """A search over one network; keeps scores from stage to stage if they cannot differ."""

    def __init__(
        self,
        full: Program,
        task: Task | None,
        stages: int,
        batch: int | None,
        seed: int,
        options: ZeroShotOptions,
        progress: Progress | None,
        *,
        remember: bool,
        network: Callable[[Point], Program] | None = None,
    ) -> None:
        self._network = network
        self.full, self.task, self.stages, self.batch, self.seed = full, task, stages, batch, seed
        self.options = options
        self._progress = progress or (lambda text: None)
        self._batches: probing.ProbeBatches | None = None
        self._proxies = probing.proxies_of(options.proxies, options.mode)
        self._remember = remember and not options.reference and full.sid is None
        self._known: dict[Point, dict[str, float]] = {}
        self._full_time: float | None = None
        self._online = not remember

    def decide(self, space: Space, current: Index | None, stage: int) -> tuple[Index, Decision]:
        """Decides one stage: rank 0 searches, all ranks get its result."""

        def answer() -> dict[str, Any]:
            index, decision = self._decide(space, current, stage)
            return {"index": list(index), "decision": decision.to_json()}

        asked = json.dumps([space.to_json(), self.options.to_json(), self.seed], sort_keys=True)
        about = hashlib.sha256(asked.encode()).hexdigest()[:8]  # stands for space and options, which may be long
        found = agreed(f"stage {stage} of {self.stages} from {list(current or ())} in {about}", answer)
        return Index(*found["index"]), Decision.from_json(found["decision"])

    def _decide(self, space: Space, current: Index | None, stage: int) -> tuple[Index, Decision]:
        from progc.search.candidates import zero_shot_candidates

        start = time.perf_counter()
        if not 0 <= stage < self.stages:
            raise InputError(f"stage: expected a stage from 0 to {self.stages - 1}, got {stage}")
        if not self._remember:
            self._known.clear()
        if stage == self.stages - 1:
            only = Candidate(space.point(space.last), {})
            return space.last, Decision(stage, (only,), 0, "the last stage is the full network")
        places = zero_shot_candidates(space, current, stage, self.stages, self.options.mode)
        times: dict[Index, int] = {place: places.count(place) for place in places}
        if not times:
            raise InputError(f"stage {stage}: there are no candidates; give the space more levels")
        if len(times) == 1:
            (place,) = times
            only = Candidate(space.point(place), {})
            return place, Decision(stage, (only,), 0, f"{only.point} is the only candidate", self._settings())
        points = {place: space.point(place) for place in times}
        self._check_proxies(stage, list(points.values()))
        probing.check_weights(self.full)
        self.full = self.full.complete()
        with untouched(self.full), _collecting():
            found = [self._scores(points[place], stage, times[place]) for place in times]
            if not self.options.reference:
                whole = self._time_of_full(space)
                for scores in found:
                    scores["end_to_end"] = (1 + scores["time"] / whole) / 2
        decision = self._vote(stage, list(points.values()), found, time.perf_counter() - start)
        return list(times)[decision.winner], decision

    # -- measuring -------------------------------------------------------------------------------------------------

    def _scores(self, point: Point, stage: int, times: int) -> dict[str, float]:
        """Scores and time of a point; in `reference` the mean over as many measurements as it occurs."""
        if point not in self._known:
            where = f"stage {stage}, candidate `{point}`"
            self._progress(f"score {where}")
            self._known[point] = self._measured(point, stage, times if self.options.reference else 1, where)
        return dict(self._known[point])

    def _measured(self, point: Point, stage: int, times: int, where: str) -> dict[str, float]:
        task, batches = self._drawn()
        row = self._row(stage)
        program = self._built(point, row, where)
        runs = [
            {
                **probing.scores(program, self._proxies, batches, task, seed=self.seed + again, stage=row, where=where),
                "time": self._time(program, task, batches, row),
            }
            for again in range(times)
        ]
        del program
        gc.collect()  # graphs and nodes refer to each other; this frees them before the next candidate is built
        return {name: math.fsum(run[name] for run in runs) / times for name in runs[0]}

    def _row(self, stage: int) -> int | None:
        """The row of the stage identifier that trains in a stage; None without an identifier."""
        if self._network is not None:
            return stage  # networks without an identifier ignore it
        return None if self.full.sid is None else min(stage, self.full.sid.stages - 1)

    def _built(self, point: Point, row: int | None, where: str) -> Program:
        try:
            if self._network is not None:
                return self._at_row(self._network(point), row)
            return self._at_row(stage_program(self.full, point), row)
        except (TargetError, PassOptionError) as error:
            raise TargetError(f"{where}: {error}") from error

    def _at_row(self, program: Program, row: int | None) -> Program:
        """The program at that row, if its graphs have a fixed one."""
        if program.sid is None or program.sid.input is not None:
            return program
        return with_stage(program, dataclasses.replace(program.sid, stage=row))

    def _time(self, program: Program, task: Task, batches: probing.ProbeBatches, row: int | None) -> float:
        """Seconds of a step of a program."""
        from progc.schedule.costing import predicted_seconds
        from progc.schedule.timing import step_time

        reference = self.options.reference
        if self.options.time == "predicted":
            size = self.options.samples if reference else self.batch
            return float(predicted_seconds(program, batch=size, learning=not reference))
        if reference:
            return probing.published_time(program, batches.timed, task, row)
        own = next((shape[0] for shape in self.full.signature.shapes if shape), 1)
        return float(step_time(program, task, batch=self.batch or own, seed=self.seed, stage=row))

    def _time_of_full(self, space: Space) -> float:
        """Seconds of a step of the full network, everything trainable."""
        if self._full_time is None:
            point = space.point(space.last)
            if point in self._known:
                self._full_time = self._known[point]["time"]
            else:
                task, batches = self._drawn()
                row = self._row(self.stages - 1)
                everything = run(self.full, [Freeze(measure=False)], verify=False)[0]
                self._full_time = self._time(self._at_row(everything, row), task, batches, row)
        return self._full_time

    def _drawn(self) -> tuple[Task, probing.ProbeBatches]:
        if self.task is None:
            raise InputError("zero-shot search needs samples and a loss; give a task (--data FILE with datasets())")
        if self._batches is None:
            options = self.options
            timed = options.reference and options.time == "measured"
            self._batches = probing.draw(
                self.task, self.full, options.proxies, mode=options.mode, samples=options.samples,
                count=options.count, seed=self.seed, timed=timed,
            )  # fmt: skip
        return self.task, self._batches

    def _check_proxies(self, stage: int, points: list[Point]) -> None:
        """Refuses proxies if none of them can distinguish the candidates."""
        if len({point.network for point in points}) > 1:
            return
        if not any(getattr(proxy, "ranks_unfreezing", True) for proxy in self._proxies.values()):
            raise InputError(
                f"stage {stage}: the scores of {', '.join(self._proxies)} do not depend on which blocks train, and the "
                "candidates differ only in that; add ntk, zico or gradnorm"
            )

    # -- deciding --------------------------------------------------------------------------------------------------

    def _vote(self, stage: int, points: list[Point], found: list[dict[str, float]], seconds: float) -> Decision:
        options = self.options
        by_name = {name: [scores[name] for scores in found] for name in options.proxies}
        missing = [
            f"{name} of {point}"
            for name, values in by_name.items()
            for point, value in zip(points, values, strict=True)
            if math.isnan(value)
        ]
        if len(missing) == len(by_name) * len(points):
            raise CheckError(
                f"stage {stage}: {', '.join(by_name)} are NaN for every candidate; check the weights and the samples, "
                "or choose other proxies"
            )
        if options.reference:
            outcome = vote.published([scores["time"] for scores in found], by_name, options.weights)
        else:
            times = [scores["end_to_end"] for scores in found]
            outcome = vote.worth(times, by_name, options.weights, options.price)
        candidates = tuple(
            Candidate(
                point,
                scores,
                {name: float(own[place]) for name, own in outcome.ranks.items()},
                outcome.totals[place],
            )
            for place, (point, scores) in enumerate(zip(points, found, strict=True))
        )
        reason = _reason(candidates, outcome, options.proxies)
        if missing:
            reason += f"; {', '.join(missing)} could not be computed and ranks last"
        return Decision(stage, candidates, outcome.winner, reason, self._settings(outcome.price), seconds)

    def _settings(self, price: float | None = None) -> dict[str, Any]:
        settings = {**self.options.to_json(), "seed": self.seed, "batch": self.batch, "online": self._online}
        return settings if price is None else {**settings, "price": price}


@contextlib.contextmanager
def _collecting() -> Iterator[None]:
    """Garbage collection visits only new objects inside: visiting those of libraries takes longer than a candidate."""
    if gc.get_freeze_count():  # already in use elsewhere
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _reason(candidates: tuple[Candidate, ...], outcome: vote.Vote, names: tuple[str, ...]) -> str:
    """One sentence that compares the winner with the next best candidate."""
    winner = candidates[outcome.winner]
    rank = ", ".join(f"{name} {winner.ranks[name]:.0f}" for name in (*names, "time"))
    text = f"{winner.point} has the smallest total, {winner.total:.4g} (ranks: {rank})"
    if outcome.tied:
        rule = "the fastest of these" if outcome.price is None else "the better proxies, then the shorter time, decide"
        return f"{text}, tied with {', '.join(str(candidates[place].point) for place in outcome.tied)}: {rule}"
    others = [candidate for place, candidate in enumerate(candidates) if place != outcome.winner]
    second = min(others, key=lambda candidate: candidate.total)
    return f"{text}; the next is {second.point} with {second.total:.4g}"


TIMES = ("predicted", "measured")


BATCHES = 2


@dataclasses.dataclass(frozen=True)
class ZeroShotOptions:
    """Settings of the zero-shot search; what is None depends on the mode.

    Attributes:
        mode: `default` or `reference`.
        proxies: names of proxies, or a text such as `ntk,zico`.
        weights: weights of proxies in the vote, by name, or a text such as `ntk:1,zico:0.5`; in `reference` also of
            `time`.
        time: `predicted` from the graph, or `measured`. Measured times are noisy, so that a search may decide
            differently the next time. Default: predicted; in `reference` measured.
        samples: samples per batch of the proxies.
        batches: number of batches of the proxies; default 2. `reference` takes two for each proxy and six for the time.
        price: factor of time that a rank of quality is worth, at least 1 (`default` only, see `vote.worth`).

    Raises:
        InputError: an invalid value, or one that the mode does not use.
    """

    mode: str = "default"
    proxies: tuple[str, ...] = ("ntk", "zico")
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    time: str | None = None
    samples: int = 16
    batches: int | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("default", "reference"):
            raise InputError(f"zero-shot search: mode: expected default or reference, got {self.mode!r}")
        proxies: Any = self.proxies.split(",") if isinstance(self.proxies, str) else self.proxies
        if not isinstance(proxies, Iterable) or not all(isinstance(name, str) for name in proxies):
            raise InputError(f"zero-shot search: proxies: expected names such as ntk,zico, got {proxies!r}")
        names = tuple(dict.fromkeys(name.strip() for name in proxies if name.strip()))
        if not names:
            raise InputError("zero-shot search: proxies: expected one or more names such as ntk,zico, got none")
        object.__setattr__(self, "proxies", names)
        object.__setattr__(self, "time", self.time or ("measured" if self.reference else "predicted"))
        if self.time not in TIMES:
            hint = did_you_mean(str(self.time), TIMES)
            raise InputError(f"zero-shot search: time: expected predicted or measured, got {self.time!r}{hint}")
        for what, value in (("samples", self.samples), ("batches", self.count)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"zero-shot search: {what}: expected an integer of at least 1, got {value!r}")
        if self.reference and (self.batches is not None or self.price is not None):
            what = "batches" if self.batches is not None else "price"
            raise InputError(
                f"zero-shot search: the mode reference has no setting {what}; remove it or use the mode default"
            )
        if self.price is not None and not (_number(self.price) and self.price >= 1):
            raise InputError(f"zero-shot search: price: expected a number of at least 1, got {self.price!r}")
        self._check_weights()

    def _check_weights(self) -> None:
        given = _pairs(self.weights) if isinstance(self.weights, str) else self.weights
        if not isinstance(given, Mapping):
            raise InputError(f"zero-shot search: weights: expected a text such as ntk:1,zico:0.5, got {self.weights!r}")
        object.__setattr__(self, "weights", dict(given))
        known = {*self.proxies, "time"} if self.reference else set(self.proxies)
        for name, value in self.weights.items():
            if name == "time" and not self.reference:
                raise InputError(
                    "zero-shot search: weights: time has a price instead of a weight; set price, or use the mode "
                    "reference"
                )
            if name not in known:
                hint = did_you_mean(str(name), known) or f"; names are {', '.join(sorted(known))}"
                raise InputError(f"zero-shot search: weights: unknown score `{name}`{hint}")
            if not _number(value) or value < 0:
                raise InputError(f"zero-shot search: weight of {name}: expected a number of at least 0, got {value!r}")
        if not any(self.weights.get(name, 1) for name in self.proxies):
            raise InputError("zero-shot search: weights: all proxies have weight 0; give one a weight above 0")

    @property
    def reference(self) -> bool:
        """Whether the procedure of the paper is followed."""
        return self.mode == "reference"

    @property
    def count(self) -> int:
        """Number of batches of the proxies in `default`."""
        return BATCHES if self.batches is None else self.batches

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None, mode: str) -> ZeroShotOptions:
        """Makes options from the settings of a plan.

        Raises:
            InputError: an unknown name, or an invalid value.
        """
        names = [field.name for field in dataclasses.fields(cls) if field.name != "mode"]
        for name in settings or {}:
            if name not in names:
                hint = did_you_mean(str(name), names) or f"; settings are {', '.join(names)}"
                raise InputError(f"zero-shot search: unknown setting `{name}`{hint}")
        return cls(mode=mode, **dict(settings or {}))

    def to_json(self) -> dict[str, Any]:
        """Returns the options as a decision records them."""
        data = dataclasses.asdict(self) | {"proxies": list(self.proxies), "weights": dict(self.weights)}
        data["batches"] = self.count
        if self.reference:
            del data["batches"], data["price"]
        return data


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _pairs(text: str) -> dict[str, float] | None:
    """A text such as `ntk:1,zico:0.5` as a mapping; None for any other text."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition(":")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            return None
    return found
