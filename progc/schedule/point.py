"""One point of a growth space: the sub-network of the full network that a stage trains, and how much of it trains.

Which blocks of a stage train: interleaved, or all but a closed prefix or a suffix, in levels.

`interleave:2/4` trains blocks b with b mod 4 < 2 (the levels of AutoProg-Zero); `prefix:2/4` freezes the first half of
the blocks with everything before and between them, so that the backward ends there; `suffix:2/4` freezes the last
half.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from progc.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from progc.ir.program import Program
    from progc.pipeline.base import Pass

WIDTH_KEYS = ("width", "heads", "mlp")
"""Keys of `Point.widths` besides names of axes, as the options of shrink and grow-width."""


@dataclasses.dataclass(frozen=True)
class Point:
    """A sub-network of a full program, and its trainable set. What a field leaves out is as in the full program.

    Attributes:
        depths: chain name to depth as users count it (`Chain.siblings`).
        widths: `width`, `heads`, `mlp` or the name of an axis to its size in units.
        resolution: height and width of the image in pixels.
        unfreeze: which blocks train; None: all.
    """

    depths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    widths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    resolution: tuple[int, int] | None = None
    unfreeze: Unfreeze | None = None

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def network(self) -> Point:
        """The same network with everything trainable."""
        return dataclasses.replace(self, unfreeze=None)

    def shrinking(self, storage: str = "share") -> list[Pass]:
        """The passes that make this point's network of the full program; none if it is the full one."""
        from progc.passes.shrink import Shrink

        if not (self.depths or self.widths or self.resolution):
            return []
        return [
            Shrink(
                depth=tuple(f"{chain}:{depth}" for chain, depth in self.depths.items()),
                width=_text(self.widths.get("width")),
                heads=self.widths.get("heads"),
                mlp=_text(self.widths.get("mlp")),
                axes=tuple(f"{name}:{size}" for name, size in self.widths.items() if name not in WIDTH_KEYS),
                resolution=(size_text(self.resolution),) if self.resolution else (),
                storage=storage,
            )
        ]

    def growing(self, before: Point, inits: Mapping[str, str] | None = None) -> list[Pass]:
        """The passes that lead from the network of an earlier point to this one's, depth first.

        Args:
            before: the point of the stage before; no larger than this one in any dim.
            inits: `depth` and `width` to how new weights are made (progc/pipeline/text.py).
        """
        from progc.passes.grow_depth import GrowDepth
        from progc.passes.grow_resolution import GrowResolution
        from progc.passes.grow_width import GrowWidth

        inits = inits or {}
        found: list[Pass] = []
        deeper = {name: depth for name, depth in self.depths.items() if before.depths.get(name) != depth}
        if deeper:
            to = tuple(f"{name}:{depth}" for name, depth in deeper.items())
            found.append(GrowDepth(to=to, init=inits.get("depth", "identity")))
        wider = {name: size for name, size in self.widths.items() if before.widths.get(name) != size}
        if wider:
            found.append(
                GrowWidth(
                    width=_text(wider.get("width")),
                    heads=wider.get("heads"),
                    mlp=_text(wider.get("mlp")),
                    axes=tuple(f"{name}:{size}" for name, size in wider.items() if name not in WIDTH_KEYS),
                    init=inits.get("width", "copy"),
                )
            )
        if self.resolution and self.resolution != before.resolution:
            found.append(GrowResolution(to=(size_text(self.resolution),)))
        return found

    def freezing(self, program: Program, *, measure: bool = False) -> list[Pass]:
        """The pass that sets this point's trainable set in `program`, a network of this point; none where all trains.

        Args:
            measure: whether the pass counts what it saves.
        """
        if self.unfreeze is None:
            return []
        from progc.transforms.freezing.blocks import Blocks

        return [self.unfreeze.freeze(len(Blocks(program).units), measure=measure)]

    def to_json(self) -> dict[str, Any]:
        """A JSON object; fields that are as in the full program are left out."""
        data: dict[str, Any] = {}
        if self.depths:
            data["depths"] = dict(self.depths)
        if self.widths:
            data["widths"] = dict(self.widths)
        if self.resolution:
            data["resolution"] = list(self.resolution)
        if self.unfreeze:
            data["unfreeze"] = str(self.unfreeze)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Point:
        """What `to_json` gave.

        Raises:
            InputError: a key or a value that is none.
        """
        unknown = data.keys() - {"depths", "widths", "resolution", "unfreeze"}
        if unknown:
            raise InputError(
                f"point: unknown key `{sorted(unknown)[0]}`; keys are depths, widths, resolution, unfreeze"
            )
        resolution = data.get("resolution")
        sizes: list[Any] = list(resolution) if isinstance(resolution, (list, tuple)) else [resolution]
        if resolution is not None and not (len(sizes) == 2 and all(_whole(size) for size in sizes)):
            raise InputError(f"point: resolution is [height, width] in pixels, not {resolution!r}")
        for key in ("depths", "widths"):
            value = data.get(key, {})
            if not isinstance(value, Mapping) or not all(_whole(size) for size in value.values()):
                raise InputError(f"point: {key} maps names to whole numbers from 1 on, not {value!r}")
        unfreeze = data.get("unfreeze")
        if unfreeze is not None and not isinstance(unfreeze, str):
            raise InputError(f"point: unfreeze is a text such as interleave:2/4, not {unfreeze!r}")
        return cls(
            dict(data.get("depths", {})),
            dict(data.get("widths", {})),
            (sizes[0], sizes[1]) if resolution is not None else None,
            Unfreeze.parse(unfreeze) if unfreeze is not None else None,
        )

    def __str__(self) -> str:
        parts = [f"{name}:{depth}" for name, depth in self.depths.items()]
        parts += [f"{name}={size}" for name, size in self.widths.items()]
        parts += [size_text(self.resolution)] if self.resolution else []
        parts += [str(self.unfreeze)] if self.unfreeze else []
        return " ".join(parts) or "full"


def size_text(size: Iterable[int]) -> str:
    """`224` for a square, `160x224` (height x width) otherwise."""
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


def _text(size: int | None) -> str | None:
    return None if size is None else str(size)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


SHAPES = ("interleave", "prefix", "suffix")


_TEXT = re.compile(r"(?P<shape>[a-z]+):(?P<level>\d+)/(?P<of>\d+)")


@dataclasses.dataclass(frozen=True)
class Unfreeze:
    """Level `level` of `of` levels of one shape; at the last level everything trains.

    Raises:
        InputError: an unknown shape, or a level out of 1 to `of`.
    """

    shape: str
    level: int
    of: int

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            hint = did_you_mean(self.shape, SHAPES) or f"; shapes are {', '.join(SHAPES)}"
            raise InputError(f"unfreeze: there is no shape `{self.shape}`{hint}")
        if not 1 <= self.level <= self.of:
            raise InputError(f"unfreeze: level {self.level} of {self.of} is out of range; give 1 to {max(self.of, 1)}")

    @classmethod
    def parse(cls, text: str) -> Unfreeze:
        """`interleave:2/4`.

        Raises:
            InputError: another text.
        """
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise InputError(f"unfreeze `{text}`: expected shape:level/levels, such as interleave:2/4")
        return cls(match["shape"], int(match["level"]), int(match["of"]))

    @property
    def full(self) -> bool:
        """Whether everything trains."""
        return self.level == self.of

    @property
    def share(self) -> Fraction:
        """Share of the blocks that trains."""
        return Fraction(self.level, self.of)

    def frozen(self, blocks: int) -> int:
        """How many of `blocks` blocks are frozen by a prefix or suffix of this level; at least one trains."""
        return min(blocks - 1, round(blocks * (1 - self.share))) if blocks else 0

    def freeze(self, blocks: int, *, measure: bool = False) -> Pass:
        """The pass that sets this level in a program of that many blocks; one that frees everything at the last."""
        from progc.passes.freeze import Freeze

        if self.full:
            return Freeze(measure=measure)
        if self.shape == "interleave":
            return Freeze(level=self.level, of=self.of, measure=measure)
        count = self.frozen(blocks)
        if self.shape == "prefix":
            return Freeze(prefix=count, stem=True, measure=measure)
        return Freeze(suffix=count, measure=measure)

    def __str__(self) -> str:
        return f"{self.shape}:{self.level}/{self.of}"
