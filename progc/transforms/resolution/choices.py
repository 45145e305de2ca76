"""Choices of a walk: which side of a cut stays, and which of two dims that meet follows the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from progc.ir.notation import call_text, module_path
from progc.ir.operations import op_name
from progc.ir.program import Mode, Program
from progc.lift.extents import Cat, Dim, Key, Leaf, bare, cuts_of, deal, grows, leaves, new_size, old_size
from progc.transforms.resolution.values import Indivisible, Path, SizeClash, SizedValue, SizeFacts


class Choices:
    """The decisions of a walk, under the facts that it starts from.

    Attributes:
        values: by node name.
        node: the present operation.
        edits: `{(node, path): (old, new)}`: literals that follow the image.
        cuts: choices in the order of the walk. `turned` are those decided the other way, and `likeness` says which
            choices of different blocks are the same one.
        confirmed: choices that a table or a weight confirms.
        windows: by choice, the number of runs before and after, and their size before and after.
        changed: whether facts were added, so that the walk has to be repeated.
    """

    def __init__(self, program: Program, mode: Mode, facts: SizeFacts) -> None:
        self.program, self.mode, self.facts = program, mode, facts
        self.values: dict[str, Any] = {}
        self.node: fx.Node = next(iter(program.graphs[mode].nodes))
        self.edits: dict[tuple[str, Path], tuple[int, int]] = {}
        self.cuts: list[Key] = []
        self.likeness: dict[Key, Any] = {}
        self.turned: set[Key] = set()
        self.confirmed: set[Key] = set()
        self.windows: dict[Key, tuple[int, int, int, int]] = {}
        self.changed = False
        self._count = 0

    def where(self) -> str:
        """The present operation, for messages."""
        module = module_path(self.node)
        return f"{call_text(self.node)}{f' in {module}' if module else ''}"

    def cut(self, leaf: Leaf, outer: int, inner: int) -> tuple[Leaf, Leaf]:
        """Cuts a part into `outer` runs of `inner`; which of the two stays is a choice."""
        if leaf.old == leaf.new:
            if leaf.origin is None:
                return Leaf(outer, outer, None, leaf.cuts), Leaf(inner, inner, None, leaf.cuts)
            sizes = (outer, inner)
            first, second = (leaf.origin.step(("cut", sizes, index)) for index in range(2))
            return Leaf(outer, outer, first, leaf.cuts), Leaf(inner, inner, second, leaf.cuts)
        key, turned = self._choice((leaf.old, outer, inner))
        cuts = leaf.cuts | {key}
        if outer == 1 or inner == 1:  # one run of all, or runs of one: unchanged, unless that does not fit
            outer_stays = turned == (inner == 1)
        else:
            outer_stays = turned != self.facts.scale
        stays = outer if outer_stays else inner
        if leaf.new % stays:
            raise Indivisible(f"{leaf.new} positions cannot be cut into {'' if outer_stays else 'runs of '}{stays}")
        other = leaf.new // stays
        sizes = (outer, other) if outer_stays else (other, inner)
        self.windows[key] = (outer, sizes[0], inner, sizes[1])
        if sizes[1] != inner:
            self._roll_before(leaf, inner, sizes[1])
        return Leaf(outer, sizes[0], None, cuts), Leaf(inner, sizes[1], None, cuts)

    def _choice(self, what: tuple[int, ...]) -> tuple[Key, bool]:
        """A choice at the present operation, and whether it is turned: on its own, or with those like it."""
        key = (self.mode, self.node.name, self._count)
        self._count += 1
        self.cuts.append(key)
        stack = self.node.meta.get("nn_module_stack") or {"": ("", "")}
        like = (list(stack.values())[-1][1], str(self.node.target), str(self.node.args[1:]), what, self._count)
        self.likeness[key] = like
        turned = key in self.facts.turned or (like in self.facts.alike and key not in self.facts.settled)
        if turned:
            self.turned.add(key)
        return key, turned

    def _roll_before(self, leaf: Leaf, window: int, new: int) -> None:
        """The image was rolled before it is cut into windows that scale: the shift scales with them."""
        source = self.node.all_input_nodes[0]
        places = [index for index, dim in enumerate(self.values[source.name].dims) if dim and dim[0] is leaf]
        while places and isinstance(source.target, torch._ops.OpOverload):
            if op_name(source) == "roll":
                for index, dim in enumerate(source.args[2]):  # type: ignore[arg-type]
                    if dim % len(self.values[source.name].dims) in places:
                        shift = int(source.args[1][index])  # type: ignore[index, arg-type]
                        self.edits[source.name, (1, index)] = (shift, scaled_shift(shift, window, new))
                return
            if op_name(source) not in ("pad", "constant_pad_nd", "contiguous", "clone", "slice", "to"):
                return
            source = source.all_input_nodes[0]

    def side(self, parts: Dim) -> tuple[Dim, bool]:
        """Decides whether parts that had one position belong to the dim before them in a view."""
        key, turned = self._choice(tuple(part.old for part in parts))
        marked = tuple(Leaf(p.old, p.new, p.origin, p.cuts | {key}) if isinstance(p, Leaf) else p for p in parts)
        return marked, not turned

    def meet(self, dims: Sequence[Dim], values: Sequence[SizedValue | None] = (), follow: bool = True) -> Dim:
        """Joins one dim that several operands share; free operands follow the image where others do.

        Args:
            dims: dims of one old size.
            values: the operands they belong to.
            follow: False where an operand is summed over: weights cannot follow.

        Raises:
            Clash: two of them cannot have the same size.
        """
        moving = [dim for dim in dims if old_size(dim) != new_size(dim)]
        sizes = {new_size(dim) for dim in dims}
        if len(sizes) == 1:
            self._confirm(dims)
            return max(dims, key=lambda dim: (grows(dim), not any(leaf.origin for leaf in leaves(dim))))
        others = [dim for dim in dims if old_size(dim) == new_size(dim)]
        if len({new_size(dim) for dim in moving}) > 1 or not follow:
            raise SizeClash(self._two(dims), cuts_of(dims), self.where())
        for dim in others:
            if self._precious(dim) and (turnable := self._turnable(moving[0])):
                raise SizeClash(self._two(dims), turnable, self.where())
            self.follow(dim, moving[0])
        return moving[0]

    def _two(self, dims: Sequence[Dim]) -> str:
        sizes = sorted({f"{old_size(dim)} -> {new_size(dim)}" for dim in dims})
        return f"one dim would have two sizes, {' and '.join(sizes)}"

    def _precious(self, dim: Dim) -> bool:
        """Whether the value was learned, or indexes learned values: another cut is better than resampling it."""
        names = {leaf.origin.owner[1] for leaf in leaves(dim) if leaf.origin and leaf.origin.owner[0] == "tensor"}
        kinds = {(self.program.specs[name].kind, self.program.tensors[name].dtype) for name in names}
        return any(kind == "parameter" or not dtype.is_floating_point for kind, dtype in kinds)

    def _turnable(self, dim: Dim) -> frozenset[Key]:
        if self.facts.scale:
            return frozenset()
        tried = self.turned | self.facts.settled | self.confirmed
        return frozenset(key for key in cuts_of([dim]) if key not in tried)

    def _confirm(self, dims: Sequence[Dim]) -> None:
        """Records that a part that stayed meets a tensor of that size, so the cut was right."""
        if any(self._precious(dim) for dim in dims):
            self.confirmed.update(key for dim in dims if not grows(dim) for key in cuts_of([dim]))

    def weighed(self, dim: Dim) -> None:
        """Requires that a dim stays because it is summed over with weights.

        Raises:
            Clash: it does not stay.
        """
        if old_size(dim) != new_size(dim):
            raise SizeClash(
                f"its weights are for {old_size(dim)} positions or features, and there would be " f"{new_size(dim)}",
                cuts_of([dim]), self.where(),
            )  # fmt: skip
        self.confirmed.update(cuts_of([dim]))

    def follow(self, dim: Dim, target: Dim) -> None:
        """Gives free parts the sizes of `target`.

        Raises:
            Clash: a part is not free.
        """
        if len(dim) == 1 and isinstance(dim[0], Leaf) and dim[0].origin is not None:
            self.changed |= self.facts.assign(dim[0].origin, bare(target))
            return
        if bare(dim) == bare(target):
            return
        if len(dim) == len(target) == 1 and isinstance(dim[0], Cat) and isinstance(target[0], Cat):
            mine, theirs = dim[0].parts, target[0].parts
            if [old_size(part) for part in mine] == [old_size(part) for part in theirs]:
                for own, other in zip(mine, theirs, strict=True):
                    self.follow(own, other)
                return
        if len(dim) < 2:
            raise SizeClash(self._two([dim, target]), cuts_of([target]), self.where())
        dealt, rest = deal(target, [part.old for part in dim], self.cut)
        if rest:
            raise SizeClash(self._two([dim, target]), cuts_of([target]), self.where())
        for part, share in zip(dim, dealt, strict=True):
            self.follow((part,), share)


def scaled_shift(shift: int, window: int, new: int) -> int:
    """Returns a shift that goes as far into a scaled window as before: half a window, rounded down, stays that."""
    size = new // 2 if abs(shift) == window // 2 else abs(shift) * new // window
    return size if shift > 0 else -size
