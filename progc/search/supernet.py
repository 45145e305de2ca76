"""The elastic supernet: one program whose parameters train several sub-networks in turn (AutoProg, CVPR 2022).

A sub-network is a program and a lift from the supernet's tensors to its own. The lift defines the sub-network's tensors
for two uses. `values` computes them for evaluation, and for the network that training continues with. `leaves` computes
the same tensors inside autograd, so that gradients go to the supernet's parameters: whole tensors are used directly,
units are a slice of a tensor, and a position table is resampled in every step.

A training step writes to buffers. With `own_statistics` every sub-network has its own buffers (as in slimmable
networks, Yu et al., ICLR 2019), because running statistics of a shallow and a deep network differ. Otherwise they are
the supernet's.

Sub-networks of different depth are nested: a shallower one keeps some blocks of the supernet. The supernet has `full`
blocks and is grown from `base` blocks by the map of growth (`progc.transforms.depth.naming`), or is treated as if it
were. Every sub-network keeps the base blocks, which are the first copy of each source.

    base 4, full 9      0 0 1 1 2 2 3 3 3
    grown, 6 blocks     0   1   2 2 3 3         the blocks that growing the base to 6 blocks would make
    deepest, 6 blocks   0   1   2   3 3 3       the base and the last of the new blocks (AutoProg)
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import _pytree as pytree

from progc.analysis.chains import chains_of
from progc.data.task import Task
from progc.errors import InputError, TargetError
from progc.ir.module import ProgramModule
from progc.ir.program import Program
from progc.lift.averages import EmaLike, attached, moved
from progc.lift.entry import TensorLift
from progc.lift.lift import Lift, composed, strides
from progc.pipeline.manager import run
from progc.schedule.building import network
from progc.schedule.point import Point, size_text
from progc.search.candidates import reference_nested
from progc.transforms.depth.naming import interpolated
from progc.transforms.resolution.images import find_images
from progc.transforms.shrinking.removal import KeptBlocks
from progc.transforms.shrinking.shrink import shrunk


@dataclasses.dataclass(frozen=True, eq=False)
class SubNetwork:
    """A sub-network of a supernet: one candidate of the search.

    Attributes:
        point: its sizes.
        program: its graphs. The tensors in it may be out of date; `values` computes the present ones.
        lift: the lift from the supernet's tensors to those of the sub-network.
        module: runs the graphs of `program` on given tensors.
        size: height and width of its images in pixels; None without images.
        statistics: its own buffers, by name, as they were when it was cut out; empty if buffers are shared.
        kept: for each tensor that is narrowed, what remains in each dim: a slice, int64 indices `[new]`, or None (all).
            Worked out once, since every training step needs it.
    """

    point: Point
    program: Program
    lift: Lift
    module: ProgramModule
    size: tuple[int, int] | None
    statistics: Mapping[str, torch.Tensor]
    kept: Mapping[str, tuple[slice | torch.Tensor | None, ...]]

    def values(
        self, source: Mapping[str, torch.Tensor], statistics: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Computes all its tensors from those of the supernet, or from an averaged copy of them.

        A tensor that is not narrowed or resampled is the tensor of `source` itself; the others are new ones.

        Args:
            source: tensors of the supernet, by name.
            statistics: the present values of its own buffers; None takes `statistics`.
        """
        made = self.lift.apply(source)
        tensors = {name: made.get(name, tensor) for name, tensor in self.program.tensors.items()}
        return tensors | dict(self.statistics if statistics is None else statistics)

    def leaves(
        self, source: Mapping[str, torch.Tensor], statistics: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Computes, inside autograd, its tensors that differ from those held by `program`, by canonical name.

        Arguments as for `values`.
        """
        own = self.statistics if statistics is None else statistics
        entries = {entry.name: entry for entry in self.lift.tensors}
        made: dict[str, torch.Tensor] = {}
        for name, held in self.program.tensors.items():
            entry = entries.get(name, TensorLift(name, name))
            if name in self.program.tied or entry.source not in source:
                continue
            if entry.resample is not None and not entry.resample.linear and name not in own:
                continue  # computed from the size alone, once, when the sub-network was cut out
            tensor = source[entry.source]
            value = own[name] if name in own else _inside(tensor, entry, self.kept.get(name, ()))
            if self.program.specs[name].kind == "parameter" and not held.requires_grad:
                value = value.detach()
            if value is not held:
                made[name] = value
        return made

    def loss(
        self, task: Task, batch: Any, tensors: Mapping[str, torch.Tensor], stage: int | None = None
    ) -> torch.Tensor:
        """Returns its loss on a batch with images of any size.

        Args:
            tensors: tensors, by name, to use instead of those of the module.
            stage: the stage, for a network that takes it as an input and a task that does not give it; None takes the
                null row.
        """
        fitted = batch if self.size is None else task.at_size(batch, self.size)
        args, kwargs = task.inputs(fitted)
        sid = self.program.sid
        if sid is not None and sid.input is not None and sid.input not in kwargs:
            first = next(leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
            row = sid.null if stage is None else stage
            kwargs = {**kwargs, sid.input: torch.full((first.shape[0],), row, device=first.device)}
        if not tensors:
            return task.loss(self.module(*args, **kwargs), fitted)
        return task.loss(torch.func.functional_call(self.module, dict(tensors), args, kwargs), fitted)


def _inside(tensor: torch.Tensor, entry: TensorLift, kept: tuple[slice | torch.Tensor | None, ...]) -> torch.Tensor:
    """Applies an entry of the lift to a tensor, with gradients; returns the tensor itself if nothing changes."""
    for dim, part in enumerate(kept):
        if isinstance(part, slice):
            tensor = tensor[(slice(None),) * dim + (part,)]
        elif part is not None:
            tensor = tensor.index_select(dim, part.to(tensor.device, non_blocking=True))
    return tensor if entry.resample is None else entry.resample.mapped(tensor)


def _kept(entry: TensorLift) -> tuple[slice | torch.Tensor | None, ...]:
    """Returns what remains of a tensor, see `SubNetwork`."""
    even = strides(entry.dims)
    if even is not None:
        return even
    return tuple(None if one is None or one.unchanged else one.index() for one in entry.dims)


class Supernet:
    """A program and the sub-networks that share its parameters.

    Attributes:
        program: the program whose tensors an optimizer trains.
        members: the sub-networks, in the order of the points.
    """

    def __init__(
        self,
        program: Program,
        points: Sequence[Point],
        *,
        base: Mapping[str, int] | None = None,
        nesting: Nesting = "grown",
        own_statistics: bool = True,
    ) -> None:
        """Cuts the sub-networks out.

        Args:
            program: the largest network in depth and width; its image may be smaller than that of a point.
            points: one per sub-network.
            base: depths whose blocks are part of every sub-network; None: the smallest of the points.
            nesting: which other blocks a sub-network keeps, see the module's docstring.
            own_statistics: whether each sub-network has its own buffers.

        Raises:
            InputError, TargetError: the network cannot have the sizes of a point.
        """
        self.program = program.complete()
        least = {name: min(point.depths[name] for point in points) for name in points[0].depths} if points else {}
        self._base = {**least, **(base or {})}
        self._nesting, self._own = nesting, own_statistics
        self.members = tuple(self.sub_network(point) for point in points)

    def sub_network(self, point: Point, base: Mapping[str, int] | None = None) -> SubNetwork:
        """Cuts out the sub-network of a point; `base` as for the class."""
        kept = kept_blocks(self.program, point.depths, self._base if base is None else base, self._nesting)
        small, lift = self.program, Lift(())
        if kept:
            cut = shrunk(self.program, kept, {}, units="spread", storage="share")
            moves = tuple(dataclasses.replace(entry, storage="") for entry in cut.lift.tensors)  # nothing is narrowed
            small, lift = cut.program, dataclasses.replace(cut.lift, tensors=moves)
        narrow, further = network(small, dataclasses.replace(point, depths={}, resolution=None))
        lift = lift if further is None else composed(lift, further)
        small, more = _at_resolution(narrow, point)
        lift = lift if more is None else composed(lift, more)
        # Views would keep the whole supernet in memory, and strided weights use other kernels.
        owned = tuple(dataclasses.replace(e, storage="copy") if any(e.dims) else e for e in lift.tensors)
        lift = dataclasses.replace(lift, tensors=owned)
        small = run(small, point.freezing(small), verify=False)[0].replace(averages=())
        made = lift.apply(self.program.tensors)
        buffers = [n for n in small.tensors if small.specs[n].kind == "buffer" and n in made]
        statistics = {n: made[n].detach().clone() for n in buffers if n not in small.tied} if self._own else {}
        kept_parts = {entry.name: _kept(entry) for entry in lift.tensors if any(entry.dims)}
        return SubNetwork(point, small, lift, ProgramModule(small), _image_size(small), statistics, kept_parts)

    def recycled(
        self, member: SubNetwork, ema: EmaLike | None = None, statistics: Mapping[str, torch.Tensor] | None = None
    ) -> Program:
        """Returns the network of a sub-network with its present weights, to continue training with.

        Tensors of unchanged shape are those of the supernet; the others are new ones.

        Args:
            statistics: as for `SubNetwork.values`.
            ema: averaged copies of the supernet's weights, which become the `averages` of the result. They get the
                sub-network's own buffers as well.
        """
        buffers = member.statistics if statistics is None else statistics
        tensors = member.values(self.program.tensors, buffers)
        made = {name: _as_parameter(tensors[name], held) for name, held in member.program.tensors.items()}
        made |= {alias: made[name] for alias, name in member.program.tied.items()}
        after = member.program.replace(tensors=made, history=self.program.history)
        held = self.program if ema is None else attached(self.program, ema)
        averages = tuple(
            dataclasses.replace(own, tensors={**own.tensors, **{n: b.clone() for n, b in buffers.items()}})
            for own in moved(held.averages, member.lift, after, "one-shot")
        )
        return after.replace(averages=averages)


def _as_parameter(value: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    if not isinstance(held, nn.Parameter) or (isinstance(value, nn.Parameter) and _alike(value, held)):
        return value
    return nn.Parameter(value.detach(), requires_grad=held.requires_grad)


def _alike(value: torch.Tensor, held: torch.Tensor) -> bool:
    return value.requires_grad is held.requires_grad


def _at_resolution(program: Program, point: Point) -> tuple[Program, Lift | None]:
    """The program at the image size of a point, which may be larger or smaller."""
    from progc.passes.grow_resolution import GrowResolution

    if point.resolution is None:
        return program, None
    after, (result,) = run(program, [GrowResolution(to=(size_text(point.resolution),))], verify=False)
    return after, result.lift


def _image_size(program: Program) -> tuple[int, int] | None:
    try:
        return find_images(program)[0].size
    except TargetError:
        return None


Nesting = Literal["grown", "deepest"]


def nested(base: int, full: int, units: int, rule: Nesting = "grown") -> list[int]:
    """Returns the positions among `full` units of those that a sub-network of `units` units keeps.

    Args:
        base, units, full: numbers of units, base <= units <= full.
        rule: see the module's docstring.
    """
    assert 0 < base <= units <= full
    if rule == "deepest":
        return reference_nested(base, units, full)
    left = Counter(interpolated(base, units))
    found = []
    for place, source in enumerate(interpolated(base, full)):
        if left[source]:
            left[source] -= 1
            found.append(place)
    return found


def kept_blocks(
    program: Program, depths: Mapping[str, int], base: Mapping[str, int], rule: Nesting = "grown"
) -> list[KeptBlocks]:
    """Returns the blocks that stay of each chain that gets shorter.

    Args:
        program: the supernet.
        depths: number of blocks per chain (`Chain.siblings`).
        base: depths that are nested in all others.
        rule: see the module's docstring.

    Raises:
        InputError: the supernet does not have such a chain, or cannot have such a depth.
    """
    found = []
    for name, depth in depths.items():
        chain = next((chain for chain in chains_of(program) if chain.name == name), None)
        if chain is None:
            known = ", ".join(chain.name for chain in chains_of(program)) or "none"
            raise InputError(f"depth {name}:{depth}: there is no chain {name}; chains are {known}")
        others, period = chain.siblings - len(chain.blocks), chain.period
        blocks, first = depth - others, base.get(name, depth) - others
        if not 0 < first <= blocks <= len(chain.blocks) or blocks % period or first % period:
            raise InputError(
                f"depth {name}:{depth}: expected {period + others} to {chain.siblings} blocks in steps of {period}, "
                f"and at least {base.get(name, depth)}; give other depths"
            )
        if blocks == len(chain.blocks):
            continue
        if chain.kind == "dense":  # dense chains grow at their end
            found.append(KeptBlocks(chain, tuple(range(blocks))))
            continue
        units = nested(first // period, len(chain.blocks) // period, blocks // period, rule)
        found.append(KeptBlocks(chain, tuple(unit * period + i for unit in units for i in range(period))))
    return found
