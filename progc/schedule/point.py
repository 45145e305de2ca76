"""A point of a growth space: the sub-network of the full network that a stage trains, and which of its blocks train.

Blocks unfreeze in levels. `interleave:2/4` trains the blocks b with b mod 4 < 2 (as AutoProg-Zero does). `prefix:2/4`
freezes the first half of the blocks and everything before and between them, so that the backward pass ends there.
`suffix:2/4` freezes the last half of the blocks.
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
"""Keys of `Point.widths` besides names of axes; they are options of shrink and grow-width as well."""
SHAPES = ("interleave", "prefix", "suffix")
_TEXT = re.compile(r"(?P<shape>[a-z]+):(?P<level>\d+)/(?P<of>\d+)")


@dataclasses.dataclass(frozen=True)
class Unfreeze:
    """Which blocks train: level `level` of `of` levels of a shape. At the last level everything trains.

    Raises:
        InputError: an unknown shape, or a level that is not in 1 to `of`.
    """

    shape: str
    level: int
    of: int

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            hint = did_you_mean(self.shape, SHAPES) or f"; shapes are {', '.join(SHAPES)}"
            raise InputError(f"unfreeze: there is no shape `{self.shape}`{hint}")
        if not 1 <= self.level <= self.of:
            raise InputError(f"unfreeze: expected a level from 1 to {max(self.of, 1)}, got {self.level} of {self.of}")

    @classmethod
    def parse(cls, text: str) -> Unfreeze:
        """Reads a text such as `interleave:2/4`.

        Raises:
            InputError: the text is not of this form.
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
        """The share of the blocks that train."""
        return Fraction(self.level, self.of)

    def frozen(self, blocks: int) -> int:
        """Returns how many of `blocks` blocks a prefix or suffix of this level freezes; at least one trains."""
        return min(blocks - 1, round(blocks * (1 - self.share))) if blocks else 0

    def freeze(self, blocks: int, *, measure: bool = False) -> Pass:
        """Returns the pass that sets this level in a program of `blocks` blocks; at the last level it unfreezes all."""
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


@dataclasses.dataclass(frozen=True)
class Point:
    """A sub-network of a full program, and its trainable set.

    A chain, an axis or a resolution that is left out has its size in the full program.

    Attributes:
        depths: name of a chain to its number of blocks (`Chain.siblings`).
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
        """Returns the passes from the full program to the network of this point; none if it is the full network."""
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
        """Returns the passes from the network of an earlier point to the network of this one, depth first.

        Args:
            before: the point of the previous stage, not larger than this one in any dimension.
            inits: how new weights are made (see `progc.pipeline.text.parse_inits`).
        """
        from progc.passes.grow_depth import GrowDepth
        from progc.passes.grow_resolution import GrowResolution
        from progc.passes.grow_width import GrowWidth
        from progc.pipeline.text import depth_options

        inits = inits or {}
        found: list[Pass] = []
        deeper = {name: depth for name, depth in self.depths.items() if before.depths.get(name) != depth}
        if deeper:
            to = tuple(f"{name}:{depth}" for name, depth in deeper.items())
            found.append(GrowDepth(to=to, **depth_options(inits)))
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
        """Returns the pass that sets the trainable set of this point; none if everything trains.

        Args:
            program: the network of this point.
            measure: whether the pass counts what freezing saves.
        """
        if self.unfreeze is None:
            return []
        from progc.transforms.freezing.blocks import Blocks

        return [self.unfreeze.freeze(len(Blocks(program).units), measure=measure)]

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON object, without the fields that have their size in the full program."""
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
        """Reads a point that `to_json` wrote.

        Raises:
            InputError: an unknown key or an invalid value.
        """
        unknown = data.keys() - {"depths", "widths", "resolution", "unfreeze"}
        if unknown:
            raise InputError(
                f"point: unknown key `{sorted(unknown)[0]}`; keys are depths, widths, resolution, unfreeze"
            )
        resolution = data.get("resolution")
        sizes: list[Any] = list(resolution) if isinstance(resolution, (list, tuple)) else [resolution]
        if resolution is not None and not (len(sizes) == 2 and all(_whole(size) for size in sizes)):
            raise InputError(f"point: resolution: expected [height, width] in pixels, got {resolution!r}")
        for key in ("depths", "widths"):
            value = data.get(key, {})
            if not isinstance(value, Mapping) or not all(_whole(size) for size in value.values()):
                raise InputError(f"point: {key}: expected names with integers of at least 1, got {value!r}")
        unfreeze = data.get("unfreeze")
        if unfreeze is not None and not isinstance(unfreeze, str):
            raise InputError(f"point: unfreeze: expected a text such as interleave:2/4, got {unfreeze!r}")
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
    """Returns a size as text: `224` for a square, `160x224` (height x width) otherwise."""
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


def _text(size: int | None) -> str | None:
    return None if size is None else str(size)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
