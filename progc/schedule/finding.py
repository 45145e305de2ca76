"""Finds the growth space of a network: what can vary, by analysis, narrowed by the levels that the user gives.

Every level is built on deferred tensors before it is offered (no weights are allocated), and grown to the next one. The
result must be the network of that level, tensor by tensor. Levels are texts (see `progc.schedule.level_texts`):

depths        0.5:1:4 or 0.25,0.5,1 (factors, for every chain), 6,9,12 (blocks, divided over all chains in proportion),
              layer3:6,layer3:23 (one chain; glob patterns work). Default: from half to the full depth.
widths        0.5:1:3 or 192,288,384: width of the residual stream, heads in proportion. Default: the width is fixed.
resolutions   128,160,192,224 or 160x224,320x448 (height x width), or 0.5:1:4 (on a grid that the network can take).
              Default: from half to the full size.
unfreeze      interleave:4, prefix:4, suffix:3, or several separated by commas: shape and number of levels. Default:
              everything trains. With unfreeze the network counts as pre-trained, and depth varies only if depths are
              given.
none          in any of these: the dimension does not vary.

Where the weights of the network are trained, the default keeps all of them: depth is fixed, the resolution varies if no
parameter depends on it, and what trains varies, from a frozen prefix to everything, unless depths or widths are given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from progc.analysis.chains import chains_of
from progc.errors import InputError, ProgcError, TargetError
from progc.ir.deferred import defer
from progc.pipeline.manager import run
from progc.schedule import depth_levels, resolution_levels, width_levels
from progc.schedule.building import check_smaller, check_start, network, stage_program, start_point
from progc.schedule.level_texts import Levels, items, switched_off
from progc.schedule.point import Point, Unfreeze
from progc.schedule.space import Space

if TYPE_CHECKING:
    from progc.ir.program import Program

__all__ = ["Found", "find", "find_space"]


@dataclasses.dataclass(frozen=True)
class Found:
    """A growth space, and notes: sentences that say what was rounded and what could not vary."""

    space: Space
    notes: tuple[str, ...]

    def check(self) -> None:
        """Checks that something varies.

        Raises:
            InputError: nothing varies.
        """
        if self.space.empty:
            why = f" ({'; '.join(self.notes)})" if self.notes else ""
            raise InputError(
                f"the growth space is empty: nothing varies{why}; give depths such as 0.5:1:4, resolutions, widths, or "
                "unfreeze such as interleave:4"
            )


def find_space(
    program: Program,
    *,
    depths: Levels = None,
    widths: Levels = None,
    resolutions: Levels = None,
    unfreeze: Levels = None,
    levels: int = 4,
    start: Program | Point | None = None,
    mode: str = "default",
) -> Space:
    """Returns the space of `find`; arguments as there.

    Raises:
        InputError: as for `find`, or nothing varies.
    """
    found = find(
        program, depths=depths, widths=widths, resolutions=resolutions, unfreeze=unfreeze, levels=levels, start=start,
        mode=mode,
    )  # fmt: skip
    found.check()
    return found.space


def find(
    program: Program,
    *,
    depths: Levels = None,
    widths: Levels = None,
    resolutions: Levels = None,
    unfreeze: Levels = None,
    levels: int = 4,
    start: Program | Point | None = None,
    mode: str = "default",
    trained: bool = False,
) -> Found:
    """Finds the levels of every dimension, ascending; the last level of each is that of the full network.

    Args:
        program: the full network; its weights are not read.
        depths, widths, resolutions, unfreeze: levels, see the module's docstring; None takes the default.
        levels: number of levels of a dimension for which none are given; equal ones are merged.
        start: the network that training begins with, or its point. The smallest level has its depth and width.
        mode: `default`, or `reference`: depths are divided over several chains as published (see
            `progc.schedule.depth_levels`), and sizes are rounded as published (see `progc.schedule.space.sizes`).
        trained: whether the weights of the network are trained already.

    Returns:
        The space, and notes on what was rounded and what could not vary.

    Raises:
        InputError: an invalid text, a level that the network cannot have or grow from (the message gives the nearest
            ones), a last level that is not the full network, or a start that is not a sub-network of it.
    """
    search = _SpaceSearch(_outline(program), levels, start, mode, trained and start is None)
    return search.run(depths, widths, resolutions, unfreeze)


class _SpaceSearch:
    def __init__(self, program: Program, levels: int, start: Program | Point | None, mode: str, trained: bool) -> None:
        self.program, self.levels, self.mode, self.trained = program, levels, mode, trained
        self.start = start_point(program, start) if start is not None else None
        if self.start is not None:
            check_smaller(program, self.start)
        self.given = start
        self.notes: list[str] = []

    def run(self, depths: Levels, widths: Levels, resolutions: Levels, unfreeze: Levels) -> Found:
        shapes = self._unfreeze(unfreeze)
        deep = self._depths(depths, bool(shapes))
        sized = self._resolutions(resolutions)
        wide = self._widths(widths, deep)
        space = Space(tuple(deep), tuple({"width": width} for width in wide), tuple(sized), tuple(shapes))
        self._check(space)
        if self.given is not None and self.start is not None:
            check_start(self.program, space, self.given)
        return Found(space, tuple(self.notes))

    # -- dimensions -------------------------------------------------------------------------------------------------

    def _depths(self, text: Levels, finetuned: bool) -> depth_levels.Depths:
        if switched_off(text):
            return []
        start = dict(self.start.depths) if self.start else {}
        if text is None and self.start is not None:
            found = depth_levels.by_default(self.program, self.levels, start, self.notes)
            return self._growable(found, []) if start else []
        if text is None and self.trained:
            if depth_levels.variable(self.program):
                self.notes.append(
                    "depth does not vary: the weights are trained, and blocks that are cut would lose theirs; give "
                    "depths to vary it all the same"
                )
            return []
        if text is None:
            if finetuned:
                return []
            found = depth_levels.by_default(self.program, self.levels, None, self.notes, self.mode)
            return self._growable(found, [])
        found = depth_levels.asked(self.program, text, self.notes, self.mode)
        named = depth_levels.named(self.program, text)
        return self._growable(depth_levels.from_start(self.program, found, start) if start else found, named)

    def _growable(self, found: depth_levels.Depths, named: Sequence[str]) -> depth_levels.Depths:
        """Removes depths from which the network does not grow; those that the user gives by name are refused."""
        fault = self._fault(_points(found))
        if fault is None:
            return found
        for name in list(found[0]):  # is one chain alone at fault? the others keep their levels
            rest = depth_levels.clamped(found, name, chains_of(self.program)[name].siblings)
            if self._fault(_points(rest)) is None:
                return self._raised(found, name, named, fault)
        for name in list(found[0]):
            if found and name in found[0]:
                own = [{name: depth} for depth in sorted({level[name] for level in found})]
                alone = self._fault(_points(own))
                found = found if alone is None else self._raised(found, name, named, alone, alone=True)
        fault = self._fault(_points(found))
        if fault is not None:
            self.notes.append(f"depth does not vary: {fault}")
            return []
        return found

    def _raised(
        self, found: depth_levels.Depths, name: str, named: Sequence[str], fault: ProgcError, alone: bool = False
    ) -> depth_levels.Depths:
        """Raises the depths of a chain to the smallest from which it grows.

        Args:
            alone: whether the other chains are at full depth while depths are tried.

        Raises:
            InputError: the user gives the depths of the chain by name.
        """
        chain, smallest = chains_of(self.program)[name], found[0][name]

        def works(depth: int) -> bool:
            if alone:
                return self._fault([Point(depths={name: depth}), Point(depths={name: chain.siblings})]) is None
            return self._fault(_points(depth_levels.clamped(found, name, depth))) is None

        least = depth_levels.lowest(chain, found, works)
        if name in named:
            raise InputError(
                f"depths: {name} does not grow from {smallest} blocks: {fault}; the smallest depth from which it grows "
                f"is {least}"
            )
        self.notes.append(
            f"depth: {name} keeps at least {least} blocks, because it does not grow from {smallest}: {fault}"
        )
        return depth_levels.clamped(found, name, least)

    def _widths(self, text: Levels, deep: depth_levels.Depths) -> list[int]:
        if switched_off(text):
            return []
        base = Point(depths=deep[0] if deep else {})

        def grows(small: int, large: int) -> None:
            points = [dataclasses.replace(base, widths={"width": width}) for width in (small, large)]
            fault = self._fault(points)
            if fault is not None:
                raise fault

        smallest = self.start.widths.get("width") if self.start is not None else None
        if text is None:
            return width_levels.between(self.program, smallest, self.levels, grows) if smallest else []
        found = width_levels.asked(self.program, text, grows, self.notes)
        return [smallest, *(width for width in found if width > smallest)] if smallest else found

    def _resolutions(self, text: Levels) -> list[tuple[int, int]]:
        if switched_off(text):
            return []
        smallest = self.start.resolution if self.start is not None else None
        if text is None:
            found = self._keeping(resolution_levels.by_default(self.program, self.levels, self.notes, self.mode))
        else:
            found = resolution_levels.asked(self.program, text, self.mode)
        if smallest is None:
            return found
        return [smallest, *(size for size in found if size > smallest and min(size) >= min(smallest))]

    def _keeping(self, sizes: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The sizes; none where the weights are trained and some of them would be resampled, unless as published."""
        if not self.trained or self.mode == "reference" or not sizes:
            return sizes
        small = dict(network(self.program, Point(resolution=sizes[0]))[0].parameters())
        own = [name for name, tensor in self.program.parameters() if small[name].shape != tensor.shape]
        if not own:
            return sizes
        self.notes.append(
            f"resolution does not vary: the weights are trained, and {own[0]} would be resampled; give resolutions to "
            "vary it all the same"
        )
        return []

    def _unfreeze(self, text: Levels) -> list[Unfreeze]:
        if text is None or switched_off(text):
            return []
        from progc.transforms.freezing.blocks import Blocks

        blocks = len(Blocks(self.program).units)
        found: list[Unfreeze] = []
        for item in items(text):
            shape, colon, number = item.partition(":")
            if not colon or not number.isdigit() or not int(number):
                raise InputError(f"unfreeze `{item}`: expected shape:levels such as interleave:4, prefix:4 or suffix:3")
            levels = [Unfreeze(shape, level, int(number)) for level in range(1, int(number) + 1)]
            if any(level.shape == shape for level in found):
                raise InputError(f"unfreeze: {shape} is given twice; give each shape once")
            if not blocks:
                raise InputError(
                    f"unfreeze `{item}`: the network has no chain of blocks (progc inspect --chains says why); remove "
                    "unfreeze"
                )
            if len(levels) > blocks:
                raise InputError(f"unfreeze `{item}`: the network has {blocks} blocks; give at most {blocks} levels")
            found += levels if len(levels) > 1 else []
        return found

    # -- building ---------------------------------------------------------------------------------------------------

    def _fault(self, points: Sequence[Point]) -> ProgcError | None:
        """Why the network of one point does not grow to that of the next; None if each does."""
        made: list[Program] = []
        try:
            for point in points:
                made.append(network(self.program, point)[0].deferred)
            for k in range(len(points) - 1):
                passes = points[k + 1].growing(points[k])
                grown = run(made[k], passes, verify=False)[0]
                difference = _difference(grown, made[k + 1])
                if difference:
                    return TargetError(difference)
        except ProgcError as error:
            return error
        return None

    def _check(self, space: Space) -> None:
        """Builds the smallest point and every level on top of it."""
        smallest = Point(
            space.depths[0] if space.depths else {},
            space.widths[0] if space.widths else {},
            space.resolutions[0] if space.resolutions else None,
        )
        for what, points in (
            ("resolutions", [dataclasses.replace(smallest, resolution=size) for size in space.resolutions]),
            ("depths", [dataclasses.replace(smallest, depths=level) for level in space.depths]),
            ("widths", [dataclasses.replace(smallest, widths=level) for level in space.widths]),
        ):
            fault = self._fault(points) if len(points) > 1 else None
            if fault is not None:
                raise InputError(
                    f"{what}: the smallest network does not grow from level to level: {fault}; give other levels"
                )
        for level in space.unfreeze:
            try:
                stage_program(self.program, dataclasses.replace(smallest, unfreeze=level))
            except ProgcError as error:
                raise InputError(f"unfreeze {level}: {error}") from error


def _points(levels: depth_levels.Depths) -> list[Point]:
    return [Point(depths=level) for level in levels]


def _outline(program: Program) -> Program:
    """The program with deferred ones as weights: levels depend on the structure, not on values."""
    twin = program.deferred
    made: dict[int, torch.Tensor] = {}
    for tensor in twin.tensors.values():
        if isinstance(tensor, torch.nn.Parameter) and tensor.is_floating_point():
            made[id(tensor)] = defer(partial(torch.ones, tensor.shape, dtype=tensor.dtype), tensor)
    found = twin.replace(tensors={name: made.get(id(t), t) for name, t in twin.tensors.items()}, averages=())
    found.__dict__.update({name: program.__dict__[name] for name in ("axes", "chains") if name in program.__dict__})
    return found


def _difference(made: Program, expected: Program) -> str | None:
    """The first tensor in which two programs differ by name or shape, in words."""
    for name in expected.tensors.keys() | made.tensors.keys():
        here, there = made.tensors.get(name), expected.tensors.get(name)
        if here is None or there is None or here.shape != there.shape:
            told = [("nothing" if one is None else str(list(one.shape))) for one in (here, there)]
            return f"growth gives {name} {told[0]}, the next level has {told[1]}"
    return None
