"""Index maps: how one dim of a tensor grows or shrinks, as a nested structure of factors.

A flat dim is rarely one axis: `3 * heads * head_dim`, `[branch a, branch b]`, `groups * channels`. Its map is the
Kronecker product or the concatenation of the maps of its factors, in layout order (docs/growth.md 0.2). All index maps
of progc are computed here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch

How = Literal["copy", "free", "spread", "leading"]


@dataclasses.dataclass(frozen=True)
class IndexMap:
    """A map from a new dim of size `new` to the old dim of size `old`.

    Attributes:
        kind: `leaf` (one axis), `product` (outermost factor first) or `concat` (segments in order).
        old, new: sizes of the dim before and after.
        how: for a leaf that grows, `copy` or `free`. `copy`: unit i repeats old unit i * old // new, so copies are next
            to their source and contiguous groups stay contiguous. `free`: units beyond the old ones are new functions
            of the input, which exact consumers ignore; on a padded axis they are filled by `progc.lift.shares`.
            For a leaf that shrinks, `spread` (unit j is the first of the copies that `copy` would make of it) or
            `leading` (unit j stays unit j, which undoes `free`).
        like: for a leaf with `old == 0` in a concatenation: the position in the old dim whose values the new units
            take.
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
        """Returns the map of one axis that goes from `old` to `new` units."""
        return IndexMap("leaf", old, new, how, like)

    @staticmethod
    def product(parts: tuple[IndexMap, ...]) -> IndexMap:
        """Returns the map of a dim that is the product of `parts`, outermost first; merges parts that do not change."""
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
        """Returns the map of a dim that is the concatenation of `parts`; merges parts that do not change."""
        if len(parts) == 1:
            return parts[0]
        old, new = sum(part.old for part in parts), sum(part.new for part in parts)
        if all(part.unchanged for part in parts):
            return IndexMap.leaf(old, new)
        return IndexMap("concat", old, new, parts=parts)

    @property
    def unchanged(self) -> bool:
        """Whether every unit keeps its place."""
        if self.kind == "leaf":
            return self.old == self.new
        return all(part.unchanged for part in self.parts)

    def index(self) -> torch.Tensor:
        """Returns the old unit that each new unit takes its values from: int64 `[new]`."""
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
            # A new segment reads an absolute position in the old dim, not one within itself.
            pieces.append(part.index() + (offset if part.old else 0))
            offset += part.old
        return torch.cat(pieces)

    def fresh(self) -> torch.Tensor:
        """Returns which units are not copies of an old unit: bool `[new]`."""
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
        """Returns how many units are copies of the same old unit (1 for fresh units): int64 `[new]`."""
        index, fresh = self.index(), self.fresh()
        tally = torch.zeros(max(self.old, int(index.max()) + 1 if len(index) else 1), dtype=torch.int64)
        tally.index_add_(0, index[~fresh], torch.ones_like(index[~fresh]))
        return torch.where(fresh, torch.ones_like(index), tally[index])

    def groups(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Splits the dim into one padded axis and the rest.

        Returns:
            The position of each unit along the rest (leaves that do not grow) and along the axis: int64 `[new]` each.
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
        """Whether every old unit has the same number of copies and no unit is fresh."""
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
