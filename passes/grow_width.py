"""`grow-width`: widens axes without changing the function."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from progc.analysis.axes import axes_of
from progc.errors import LOSSY, NotLosslessError, TargetError, VerifyError
from progc.ir.program import Program
from progc.lift.lift import NOISE
from progc.models.sizes import parse_sizes
from progc.pipeline.base import Pass, PassResult, option
from progc.transforms.width.plan import plan_widths
from progc.transforms.width.sizes import axis_sizes, named_sizes
from progc.transforms.width.widening import INITS, Widening, rewrite


@dataclasses.dataclass(frozen=True)
class GrowWidth(Pass):
    """Widens any set of axes: residual width, heads, head dim, MLP hidden, conv channels, groups.

    Idea: every parameter and buffer dim along a growing axis gets an index map. Tensors that produce the axis repeat
    their rows, and tensors that contract it divide their columns among the copies (Net2Net, Chen et al. 2015;
    docs/growth.md sections 0 and 1). The shares differ between output rows (zero-sum noise), so that copies diverge
    under Adam. Sizes written into the graph change with their axes.
    Preserved: the function, exactly, in eval mode and, without dropout, in train mode, for `copy` and `zero`.
    Normalised axes grow by integer factors, or are padded where that is exact (docs/growth.md 1.1). `random` does not
    preserve it. Growth that cannot be exact is refused unless `lossy` is set.
    Needs: the axes of the program, with the sizes that are written into both graphs.
    Leaves behind: a program whose tensors keep their names, and one tensor lift per tensor that grew.
    """

    name: ClassVar[str] = "grow-width"
    width: str | None = option(
        None,
        help="size of the residual stream (embedding dim), absolute or a factor such as *2; other sizes "
        "follow in proportion",
    )
    heads: int | None = option(None, help="number of attention heads")
    mlp: str | None = option(None, help="hidden size of the MLPs, absolute or a factor")
    axes: tuple[str, ...] = option((), help="single axes as name:size")
    init: str = option("copy", help="how new units are initialised", choices=INITS)
    noise: float = option(NOISE, help="spread of the copies' shares of a weight, relative to equal shares, in [0, 1)")
    seed: int = option(0, help="seed of noise and random units")
    lossy: bool = option(False, help="accept growth that is not exact")

    def run(self, program: Program) -> PassResult:
        """Widens `program`.

        Raises:
            TargetError: an unknown axis, a size below the present one, or an axis that cannot grow.
            NotLosslessError: `copy` or `zero` growth that cannot be exact, without `lossy`.
        """
        plan = plan_widths(program, self._sizes(program), init=self.init, seed=self.seed, noise=self.noise)
        if not plan.growths:
            return PassResult(program, False, lossless=True)
        if not plan.lossless and self.init != "random" and not self.lossy:
            more = f" (and {len(plan.obstacles) - 1} more)" if len(plan.obstacles) > 1 else ""
            raise NotLosslessError(f"grow-width cannot be exact: {plan.obstacles[0]}{more}; {LOSSY}")
        sizes = {growth.axis: growth.new for growth in plan.growths}
        try:
            grown = rewrite(program, Widening(axes_of(program), sizes, self.init), plan.lift.apply(program.tensors))
        except VerifyError as error:
            if not plan.lossless:  # a group count that divides the old sizes only, for example
                raise TargetError(f"grow-width: the network does not run at these sizes: {error}") from error
            raise VerifyError(f"after {self.name}: {error}") from error
        counts = {"axes widened": len(plan.growths), "tensors widened": len(plan.lift.tensors)}
        notes = (*plan.notes, *plan.obstacles)
        return PassResult(grown, True, counts, plan.lift, notes, plan.lossless)

    def _sizes(self, program: Program) -> dict[str, int]:
        sizes: dict[str, int] = {}
        keys = [
            f"{key}{value if str(value).startswith('*') else f'={value}'}"
            for key, value in (("width", self.width), ("heads", self.heads), ("mlp", self.mlp))
            if value is not None
        ]
        if keys:
            sizes.update(axis_sizes(program, parse_sizes(",".join(keys)), keep_frozen=True))
        return sizes | named_sizes(axes_of(program), self.axes)
