"""`shrink`: a sub-network by depth, width and resolution (AutoProg, Li et al., CVPR 2022)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, cast

from progc.analysis.axes import axes_of
from progc.analysis.chains import chains_of
from progc.errors import TargetError
from progc.ir.program import Program
from progc.lift.lift import composed
from progc.passes.grow_resolution import GrowResolution
from progc.pipeline.base import Pass, PassResult, option
from progc.transforms.depth.targets import choose, parse_depth
from progc.transforms.shrinking.removal import Rule, kept_blocks
from progc.transforms.shrinking.shrink import Units, shrunk
from progc.transforms.width.sizes import fitted_sizes, named_sizes, parse_axis, shrink_sizes


@dataclasses.dataclass(frozen=True)
class Shrink(Pass):
    """Takes a smaller network out of a program.

    Idea: progressive training starts from a sub-network of the full model, and an elastic supernet trains many
    sub-networks on one set of weights (AutoProg, Li et al., CVPR 2022; slimmable networks, Yu et al., ICLR 2019).
    Blocks are removed from their chains, and units from their axes. The blocks and units that stay are those that
    growth copies from, so growing back by the same plan puts each of them where it was. With storage=share a kept
    tensor is the full one or a view of it: training the small network trains these entries of the full one and no
    others. With storage=copy, weights that sum over fewer inputs are multiplied by the square root of the ratio of
    fan-ins, which keeps the variance of their outputs (He et al., ICCV 2015).
    Preserved: names, ties, and which parameters train; not the function, because a sub-network computes another one.
    Needs: chains for the depth, axes for the width, with the sizes that are written into both graphs.
    Leaves behind: tensors with the names of the model class of that size, and one tensor lift per tensor that moved or
    shrank.
    """

    name: ClassVar[str] = "shrink"

    depth: tuple[str, ...] = option(
        (), help="number of blocks (6), a factor (0.5, *0.5), or either per chain (layer3:6,layer4:0.5)"
    )
    chains: tuple[str, ...] = option(
        (), help="names or globs of the chains that a depth without a name applies to; empty: all"
    )
    rule: str = option(
        "spread",
        help="which blocks stay: those that growth copies from, or those of one end",
        choices=("spread", "first", "last"),
    )
    width: str | None = option(
        None,
        help="size of the residual stream (embedding dim), absolute (192) or a factor (*0.5); other sizes "
        "follow in proportion",
    )
    heads: int | None = option(None, help="number of attention heads")
    mlp: str | None = option(None, help="hidden size of the MLPs, absolute or a factor")
    axes: tuple[str, ...] = option((), help="single axes as name:size, by their names before shrinking")
    units: str = option(
        "spread",
        help="which units of an axis stay: those that growth by copy repeats, or the first ones",
        choices=("spread", "leading"),
    )
    resolution: tuple[str, ...] = option(
        (), help="size of the image in pixels, as for grow-resolution: 160, 160x224 or a factor such as *0.5"
    )
    storage: str = option(
        "share",
        help="share: views of the full tensors where possible; copy: copies scaled to the smaller fan-in",
        choices=("share", "copy"),
    )

    def __post_init__(self) -> None:
        for field in ("depth", "chains", "axes", "resolution"):
            if isinstance(getattr(self, field), (str, int, float)):
                object.__setattr__(self, field, (str(getattr(self, field)),))
        for field in ("width", "mlp"):
            if isinstance(getattr(self, field), (int, float)):
                object.__setattr__(self, field, str(getattr(self, field)))
        super().__post_init__()
        for text in self.depth:
            parse_depth(text, shrink=True)
        shrink_sizes(self.width, self.heads, self.mlp)
        for text in self.axes:
            parse_axis(text, self.name)

    def run(self, program: Program) -> PassResult:
        """Returns the sub-network: blocks and units are removed first, then the input size changes.

        Raises:
            PassOptionError: a chain that does not exist, or chains that overlap.
            TargetError: a depth or size that is larger than the present one or that the network cannot have.
        """
        depths = [parse_depth(text, shrink=True) for text in self.depth]
        choice = choose(chains_of(program), depths, self.chains, shrink=True)
        kept, remarks = kept_blocks(choice.blocks, cast(Rule, self.rule))
        sizes, rounded = self._sizes(program)
        notes = [*choice.notes, *remarks, *rounded]
        resize = GrowResolution(to=self.resolution) if self.resolution else None
        if not (kept or sizes):
            result = self._resized(resize, program) if resize is not None else PassResult(program, False)
            if not self._asked:
                notes.append("nothing to shrink: set depth, width, heads, mlp, axes or resolution")
            if not result.changed or self.storage == "share":
                return dataclasses.replace(result, notes=(*notes, *result.notes))
        small = shrunk(program, kept, sizes, units=cast(Units, self.units), storage=self.storage)
        after, lift = small.program, small.lift
        if resize is not None:
            resized = self._resized(resize, after)
            after, notes = resized.program, [*notes, *resized.notes]
            lift = composed(lift, resized.lift) if resized.lift is not None else lift
        for one in kept:
            own = [difference.partition(":")[0] for difference in one.chain.differences]
            if own:
                notes.append(f"blocks of {one.chain.name} keep their own {' and '.join(own)}")
        notes += small.notes
        counts = {
            "blocks left out": sum(len(one.dropped) for one in kept),
            "axes narrowed": len(small.axes),
            "tensors narrowed": sum(any(entry.dims) for entry in small.lift.tensors),
        }
        return PassResult(after, True, counts, lift, tuple(notes), lossless=False)

    def _sizes(self, program: Program) -> tuple[dict[str, int], list[str]]:
        """New size of every axis that shrinks, and notes; a single axis overrides the proportions."""
        table, wanted = axes_of(program), shrink_sizes(self.width, self.heads, self.mlp)
        sizes, notes = fitted_sizes(program, wanted, shrink=True, keep_frozen=True)
        sizes |= named_sizes(table, self.axes, shrink=True)
        return {name: size for name, size in sizes.items() if size != table[name].size}, notes

    @property
    def _asked(self) -> bool:
        """Whether any size is given."""
        return any((self.depth, self.axes, self.width, self.heads, self.mlp, self.resolution))

    def _resized(self, resize: Pass, program: Program) -> PassResult:
        result = resize.run(program)
        for old, new in zip(program.signature.shapes, result.program.signature.shapes, strict=True):
            if old is not None and new is not None and any(b > a for a, b in zip(old, new, strict=True)):
                raise TargetError(
                    f"shrink: resolution={','.join(self.resolution)}: the image is {list(old)} and would get "
                    f"{list(new)}; use grow-resolution"
                )
        return result
