"""The program of each stage of a schedule: a function of the full program and the stage, whatever was grown before.

Training, the table of a dry run, compiling ahead, a search and a resumed run all take stages from here. A program is
cut out of the full one on shapes alone. Growth gives values to it: the passes from one stage to the next make the
tensors, and the graph that they make is compared node by node with the stage's own. So names and order of nodes and
tensors do not depend on how a stage was reached.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import fx

from progc.analysis.chains import chains_of
from progc.errors import InputError, TargetError
from progc.ir.deferred import device_of, values
from progc.ir.differences import differences, pairs
from progc.ir.program import MODES, Program
from progc.pipeline.base import Pass, PassResult
from progc.pipeline.manager import run
from progc.pipeline.text import MOGROW
from progc.schedule.building import network
from progc.schedule.point import Point
from progc.schedule.regularising import Setting, dropping_everywhere, setting_for
from progc.schedule.schedule import Schedule
from progc.schedule.stage import Stage
from progc.transforms.dropping import is_linear, without_drops

if TYPE_CHECKING:
    from progc.lift.lift import Lift


@dataclasses.dataclass(frozen=True, eq=False)
class Grown:
    """A stage's program with values, and how its tensors were made.

    Attributes:
        program: the stage's program; its tensors may be deferred.
        lifts: lifts from the tensors before to the tensors after, in order.
        notes: notes of the passes, and what could not be set.
        lossless: whether the function in eval mode does not change, by analysis.
    """

    program: Program
    lifts: tuple[Lift, ...]
    notes: tuple[str, ...]
    lossless: bool


class StagePrograms:
    """The programs of a schedule's stages.

    Attributes:
        full: the full program.
        stages: the stages.
    """

    def __init__(
        self,
        full: Program,
        stages: Sequence[Stage],
        inits: Mapping[str, str] | None = None,
        *,
        sid_init: str = "zero",
        seed: int = 0,
    ) -> None:
        """
        Args:
            full: the full program.
            stages: the stages.
            inits: how new weights are made, see `progc.pipeline.text.parse_inits`.
            sid_init: how the rows of a stage identifier start, `zero` or `normal`, where the network has none yet.
            seed: seed of rows that start at random.

        Raises:
            InputError: the identifier of the network has fewer rows than the stages need.
        """
        self.full, self.stages, self._inits = full, tuple(stages), inits
        self._sid_init, self._seed = sid_init, seed
        self._linear = is_linear(full)
        self._prepared = run(full.deferred, self._preparing(full), verify=False)[0]
        self._networks: dict[Point, Program] = {}
        self._outlines: dict[int, Program] = {}

    @classmethod
    def of(cls, full: Program, schedule: Schedule, inits: Mapping[str, str] | None = None) -> StagePrograms:
        """Returns the programs of a schedule.

        Raises:
            InputError: the schedule is for another network, or one of its settings is invalid.
        """
        schedule.check(full)
        sid_init = schedule.settings.get("sid_init", "zero")
        if sid_init not in ("zero", "normal"):
            raise InputError(f"schedule: settings: sid_init: expected zero or normal, got {sid_init!r}; fix the plan")
        return cls(full, schedule.stages, inits, sid_init=sid_init, seed=schedule.seed)

    def replace(self, stage: Stage) -> None:
        """Replaces the stage of the same index, such as an open one by what a search chose."""
        self.stages = tuple(stage if own.index == stage.index else own for own in self.stages)
        self._outlines.pop(stage.index, None)
        self.__dict__.pop("points", None)

    @cached_property
    def points(self) -> list[Point]:
        """The points of the stages with all sizes: where one leaves out what another one names, the full size is added.

        Raises:
            InputError: a width that only some stages name.
        """
        return written_out([stage.point for stage in self.stages], self.full)

    def outline(self, index: int) -> Program:
        """Returns the program of a stage with deferred parameters, which take no memory.

        Raises:
            TargetError, PassOptionError: the network cannot have the sizes or the trainable set of the stage.
        """
        if index not in self._outlines:
            point = self.stages[index].point
            if point.network not in self._networks:
                self._networks[point.network] = network(self._prepared, point.network)[0].deferred
            way = _Way(self._networks[point.network])
            way.apply(point.freezing(way.program))
            self._outlines[index] = way.end(self._setting(index, way.program)).program.deferred
        return self._outlines[index]

    def cut(self, given: Program, index: int, *, storage: str = "copy") -> Grown:
        """Cuts a stage out of the full program with its values.

        Args:
            given: the full program; its values may differ from those of `full`.
            storage: `copy` allocates new tensors, `share` uses those of `given`, or views of them.
        """
        way = _Way(given)
        way.apply(self._preparing(given))
        way.apply(self.stages[index].point.shrinking(storage))
        way.apply(self.stages[index].point.freezing(way.program))
        found = way.end(self._setting(index, way.program))
        return dataclasses.replace(found, program=self.adopted(found.program, index))

    def grow(
        self,
        before: Program,
        at: Point | None,
        index: int,
        *,
        verify: bool = True,
        inits: Mapping[str, str] | None = None,
    ) -> Grown:
        """Grows the program of one stage into that of a later one.

        Args:
            before: the program with the weights to grow.
            at: its point, with all sizes; None for a program that training begins with.
            index: the stage to reach.
            verify: verify the program before and after each pass.
            inits: how new weights are made, if not as the run says.

        Raises:
            TargetError, NotLosslessError: a pass refuses, or growth leads to another network than the stage's.
        """
        return self._grow(before, at, index, self._inits if inits is None else inits, verify)

    def check(self, source: Program | None = None, begin: int = 0) -> None:
        """Tries the growth into every stage on shapes alone, which takes no memory, before anything trains.

        Args:
            source: a smaller program that training begins with; None if the first stage is cut out of the full program.
            begin: the first stage to try.

        Raises:
            TargetError, NotLosslessError: the network cannot grow from one stage to the next.
        """
        # An init that reads values is replaced by one that does not.
        known = {key: init for key, init in (self._inits or {}).items() if key not in MOGROW}
        inits = {key: "interpolate" if init == "mogrow" else init for key, init in known.items()}
        for stage in self.stages[begin:]:
            index = stage.index
            if index == begin:
                if source is not None:
                    self._grow(source.deferred, None, index, inits, verify=False)
                continue
            self._grow(self.outline(index - 1), self.points[index - 1], index, inits, verify=False)

    # -- passes --------------------------------------------------------------------------------------------------------

    def _grow(
        self, before: Program, at: Point | None, index: int, inits: Mapping[str, str] | None, verify: bool
    ) -> Grown:
        point = self.points[index]
        way = _Way(before, verify=verify)
        if at is None:
            way.apply(self._preparing(before))
        way.apply(point.growing(at or Point(), inits))
        way.apply(_trainable(point, at, way.program))
        grown = way.end(self._setting(index, way.program))
        return dataclasses.replace(grown, program=self.adopted(grown.program, index))

    def _preparing(self, program: Program) -> list[Pass]:
        """The passes that come before all sizes: drop-path where it may be needed, and the stage as an input."""
        drops = any(stage.regularisation.drop_path is not None for stage in self.stages)
        return [*(dropping_everywhere(program) if drops else ()), *self._identifier(program)]

    def _identifier(self, program: Program) -> list[Pass]:
        """The pass that makes the stage an input of the network, if the stages have identifiers."""
        from progc.passes.inject_sid import InjectSid

        rows = [stage.sid for stage in self.stages if stage.sid is not None]
        if not rows:
            return []
        if program.sid is None:
            number = max(len(self.stages), *(row + 1 for row in rows))
            return [InjectSid(stages=number, init=self._sid_init, seed=self._seed)]
        if max(rows) >= program.sid.stages:
            raise InputError(
                f"the schedule uses row {max(rows)} of the stage identifier, but the network's has "
                f"{program.sid.stages} stages; remove it with remove-sid, or plan fewer stages"
            )
        return [InjectSid(stage="input")] if program.sid.input is None else []

    def _setting(self, index: int, program: Program) -> Setting:
        return setting_for(self.stages[index].regularisation, program, linear=self._linear)

    def adopted(self, grown: Program, index: int) -> Program:
        """Returns the graphs of a stage over the tensors of a program that was made in another way.

        Args:
            grown: the same network; names of nodes and constants may differ.
            index: the stage.

        Raises:
            TargetError: the two programs are not the same network.
        """
        outline = self.outline(index)
        named: dict[str, str] = {}
        ours, theirs = _comparable(grown), _comparable(outline)
        for mode in MODES:
            found = next(differences(ours, theirs, mode), None)
            if found is not None:
                raise TargetError(
                    f"stage {index} would not be {outline.class_name} at {self.points[index]}: {found}; start with a "
                    "larger network (a single head or unit cannot become several again)"
                )
            named |= _constants(ours, theirs, mode)
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in outline.tensors.items():
            source = named.get(name, name)
            # A constant that no operation reads stays as it is.
            tensors[name] = grown.tensors[source] if source in grown.tensors else values(tensor).to(_device(grown))
        return outline.replace(tensors=tensors, averages=grown.averages, history=grown.history, example=grown.example)


class _Way:
    """Passes that are run one after another, as several pipelines."""

    def __init__(self, program: Program, *, verify: bool = False) -> None:
        self.program, self._verify = program, verify
        self._results: list[PassResult] = []

    def apply(self, passes: Sequence[Pass]) -> None:
        self.program, more = run(self.program, passes, verify=self._verify and bool(passes))
        self._results += more

    def end(self, setting: Setting) -> Grown:
        self.apply(setting.passes)
        results = self._results
        return Grown(
            self.program,
            tuple(result.lift for result in results if result.lift is not None),
            (*(note for result in results for note in result.notes), *setting.notes),
            all(result.lossless is True for result in results if result.changed),
        )


def _comparable(program: Program) -> Program:
    """The program without drops: their rates follow from the full program and the stage, not from what was grown."""
    return program.replace(graphs={**program.graphs, "train": without_drops(program.graphs["train"])})


def _constants(grown: Program, outline: Program, mode: str) -> dict[str, str]:
    """Which lifted constant of `grown` stands where `outline` has one, by name in `outline`."""
    found: dict[str, str] = {}
    for ours, theirs in pairs(grown, outline, mode) or ():  # type: ignore[arg-type]
        for a, b in zip(ours.all_input_nodes, theirs.all_input_nodes, strict=True):
            if isinstance(b, fx.Node) and b.op == "get_attr" and outline.specs[str(b.target)].kind == "constant":
                found[str(b.target)] = str(a.target)
    return found


def _device(program: Program) -> torch.device:
    return next((device_of(tensor) for tensor in program.tensors.values()), torch.device("cpu"))


def _trainable(point: Point, before: Point | None, program: Program) -> list[Pass]:
    """The pass that sets a stage's trainable set; it unfreezes everything if only the previous stage froze blocks."""
    if point.unfreeze is None and before is not None and before.unfreeze is not None:
        from progc.passes.freeze import Freeze

        return [Freeze(measure=False)]
    return point.freezing(program)


def written_out(points: Sequence[Point], full: Program) -> list[Point]:
    """Returns the points with all sizes: where a point leaves out what another one names, the full size is added.

    Raises:
        InputError: a width that only some stages name.
    """
    chains = {name for point in points for name in point.depths}
    axes = {name for point in points for name in point.widths}
    sized = any(point.resolution for point in points)
    found = []
    for index, point in enumerate(points):
        missing = sorted(axes - point.widths.keys())
        if missing:
            raise InputError(
                f"stage {index} of the schedule has no width for {missing[0]}, which another stage has; add it"
            )
        depths = {name: point.depths.get(name, 0) or chains_of(full)[name].siblings for name in sorted(chains)}
        resolution = point.resolution or (_image(full) if sized else None)
        found.append(dataclasses.replace(point, depths=depths, resolution=resolution))
    return found


def _image(full: Program) -> tuple[int, int] | None:
    from progc.transforms.resolution.images import find_images

    height, width = find_images(full)[0].size
    return height, width
