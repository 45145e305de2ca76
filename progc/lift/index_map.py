"""Index maps: how one tensor dim grows or shrinks, as a nested structure of factors.

A flat dim is rarely one axis: `3 * heads * head_dim`, `[branch a, branch b]`, `groups * channels`. Its map
is the Kronecker product or the concatenation of its factors' maps, in layout order (docs/growth.md 0.2). This is
the only place in the code base where an index map is computed.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch

How = Literal["copy", "free", "spread", "leading"]


@dataclasses.dataclass(frozen=True)
class IndexMap:
    """Map from a new dim of size `new` to the old dim of size `old`.

    Attributes:
        kind: `leaf` (one axis), `product` (outermost factor first) or `concat` (segments in order).
        old, new: sizes of the dim before and after.
        how: for a leaf, `copy` (unit i repeats old unit i * old // new: copies stand beside their source, so
            contiguous groups stay contiguous groups) or `free` (units beyond the old ones are new functions of
            the input, ignored by exact consumers; where the axis is padded, filled as `progc.lift.shares` says). Where
            new < old: `spread` (unit j is the first of those that `copy` would make from it) or `leading` (unit j stays
            unit j, as before a growth by `free`).
        like: for a leaf with `old == 0` inside a concatenation: absolute position in the old dim that the new
            units take their values from.
        parts: factors or segments.
    """

    kind: Literal["leaf", "product", "concat"]
    old: int
    new: int
    how: How = "copy"
    like: int | None = None
    parts: tuple[IndexMap, ...] = ()

    @staticmethod
    def leaf(old: int, new: int, how: How = "copy", like: int | None = None) -> IndexMap:
        """One axis that goes from `old` to `new` units."""
        return IndexMap("leaf", old, new, how, like)

    @staticmethod
    def product(parts: tuple[IndexMap, ...]) -> IndexMap:
        """A dim that is the product of `parts`, outermost first; merges what does not change."""
        if len(parts) == 1:
            return parts[0]
        old = new = 1
        for part in parts:
            old, new = old * part.old, new * part.new
        if all(part.unchanged for part in parts):
            return IndexMap.leaf(old, new)
        return IndexMap("product", old, new, parts=parts)

    @staticmethod
    def concat(parts: tuple[IndexMap, ...]) -> IndexMap:
        """A dim that is the concatenation of `parts`; merges what does not change."""
        if len(parts) == 1:
            return parts[0]
        old, new = sum(part.old for part in parts), sum(part.new for part in parts)
        if all(part.unchanged for part in parts):
            return IndexMap.leaf(old, new)
        return IndexMap("concat", old, new, parts=parts)

    @property
    def unchanged(self) -> bool:
        """True if every unit stays where it is."""
        if self.kind == "leaf":
            return self.old == self.new
        return all(part.unchanged for part in self.parts)

    def index(self) -> torch.Tensor:
        """int64 `[new]`: the old unit that each new unit takes its values from."""
        if self.kind == "leaf":
            if self.old == 0:
                return torch.arange(self.new) + (self.like or 0)
            if self.how == "free":
                return torch.arange(self.new) % self.old
            if self.how == "leading":
                return torch.arange(self.new)
            if self.how == "spread":
                return (torch.arange(self.new) * self.old + self.new - 1) // max(self.new, 1)
            return torch.arange(self.new) * self.old // self.new
        if self.kind == "product":
            total = torch.zeros(1, dtype=torch.int64)
            for part in self.parts:
                total = (total[:, None] * part.old + part.index()[None, :]).reshape(-1)
            return total
        pieces, offset = [], 0
        for part in self.parts:
            # A segment that did not exist before reads an absolute position, not one within itself.
            pieces.append(part.index() + (offset if part.old else 0))
            offset += part.old
        return torch.cat(pieces)

    def fresh(self) -> torch.Tensor:
        """bool `[new]`: units that are no copy of an old unit."""
        if self.kind == "leaf":
            if self.how == "free":
                return torch.arange(self.new) >= self.old
            return torch.zeros(self.new, dtype=torch.bool)
        if self.kind == "product":
            total = torch.zeros(1, dtype=torch.bool)
            for part in self.parts:
                total = (total[:, None] | part.fresh()[None, :]).reshape(-1)
            return total
        return torch.cat([part.fresh() for part in self.parts])

    def counts(self) -> torch.Tensor:
        """int64 `[new]`: how many units are copies of the same old unit (1 for fresh units)."""
        index, fresh = self.index(), self.fresh()
        tally = torch.zeros(max(self.old, int(index.max()) + 1 if len(index) else 1), dtype=torch.int64)
        tally.index_add_(0, index[~fresh], torch.ones_like(index[~fresh]))
        return torch.where(fresh, torch.ones_like(index), tally[index])

    def groups(self) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 `[new]` twice: for one padded axis in the dim, what a unit is along all else, and along the axis.

        Leaves that do not grow are "all else".
        """
        if self.kind == "leaf":
            where = torch.arange(self.new)
            return (where, torch.zeros_like(where)) if self.unchanged else (torch.zeros_like(where), where)
        if self.kind == "product":
            group = unit = torch.zeros(1, dtype=torch.int64)
            for part in self.parts:
                own_group, own_unit = part.groups()
                group = (group[:, None] * part.new + own_group[None, :]).reshape(-1)
                unit = (unit[:, None] + own_unit[None, :]).reshape(-1)
            return group, unit
        groups, units, offset = [], [], 0
        for part in self.parts:
            own_group, own_unit = part.groups()
            groups.append(own_group + offset)
            units.append(own_unit)
            offset += part.new
        return torch.cat(groups), torch.cat(units)

    @property
    def uniform(self) -> bool:
        """True if every old unit has the same number of copies and there are no fresh units."""
        counts = self.counts()
        return bool((counts == counts[0]).all()) and not bool(self.fresh().any())

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is the inverse."""
        if self.kind == "leaf":
            data: dict[str, Any] = {"old": self.old, "new": self.new}
            if self.how != "copy":
                data["how"] = self.how
            if self.like is not None:
                data["like"] = self.like
            return data
        return {self.kind: [part.to_json() for part in self.parts]}

    @staticmethod
    def from_json(data: dict[str, Any]) -> IndexMap:
        """Reads what `to_json` wrote."""
        if "product" in data:
            return IndexMap.product(tuple(IndexMap.from_json(part) for part in data["product"]))
        if "concat" in data:
            return IndexMap.concat(tuple(IndexMap.from_json(part) for part in data["concat"]))
        return IndexMap.leaf(data["old"], data["new"], data.get("how", "copy"), data.get("like"))
