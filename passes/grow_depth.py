"""`grow-depth`: inserts blocks into chains (AutoProg, Li et al., CVPR 2022; docs/growth.md section 2)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from progc.analysis.chains import chains_of
from progc.errors import PassOptionError
from progc.ir.program import Program
from progc.pipeline.base import Pass, PassResult, option
from progc.transforms.depth.attempt import InsertionOptions, deepened
from progc.transforms.depth.grow import averaged_note, chosen_average
from progc.transforms.depth.targets import parse_depth


@dataclasses.dataclass(frozen=True)
class GrowDepth(Pass):
    """Makes chains of isomorphic blocks longer.

    Idea: a network that was trained shallow continues deeper (AutoProg, Li et al., CVPR 2022). New blocks are copies of
    blocks next to them. `identity` then silences every branch that an inserted block adds to its skip path, through the
    parameters nearest to the addition (gate, last linear, last norm). The block computes the identity and trains from
    the first step on. In a post-norm block the gain and shift of the previous norm move into the inserted one. In a
    plain chain of layers with an idempotent activation the new layers are the identity (Net2Net, Chen et al. 2015).
    Preserved: the function, exactly, with `identity`. Not with `interpolate` (each block followed by its copies, extra
    ones deepest), `mogrow` (the same, with copies taken from an averaged copy of the weights, EMA), `stack` (the whole
    chain again) and `random` (new weights at the end).
    Needs: chains with their boundaries and shapes on both graphs.
    Leaves behind: blocks named by position, as in the model class of that depth, and one tensor lift per tensor of each
    grown container.
    """

    name: ClassVar[str] = "grow-depth"

    to: tuple[str, ...] = option(
        ("*2",), help="number of blocks (12), a factor (*2), or either per chain (layer3:23,layer4:*2)"
    )
    chains: tuple[str, ...] = option(
        (), help="names or globs of the chains that a depth without a name applies to; empty: all"
    )
    init: str = option(
        "identity",
        help="how new blocks are initialised",
        choices=("identity", "interpolate", "stack", "mogrow", "random"),
    )
    ema: float | None = option(None, help="with init=mogrow: decay of the averaged copy to use; none: the slowest")
    source: str = option(
        "new",
        help="with init=mogrow: take only new blocks from the averaged copy, or all tensors",
        choices=("new", "all"),
    )
    seed: int = option(0, help="seed of random blocks")
    lossy: bool = option(False, help="with init=identity: accept blocks that cannot be exactly the identity")

    def __post_init__(self) -> None:
        if isinstance(self.to, (int, str)):
            object.__setattr__(self, "to", (str(self.to),))
        if isinstance(self.chains, str):
            object.__setattr__(self, "chains", (self.chains,))
        super().__post_init__()
        for text in self.to:
            parse_depth(text)
        if self.init != "mogrow" and (self.ema is not None or self.source != "new"):
            raise PassOptionError(f"grow-depth: ema and source need init=mogrow, got init={self.init}")

    def run(self, program: Program) -> PassResult:
        """Grows every selected chain. A depth for all chains skips those that cannot grow exactly.

        Raises:
            PassOptionError: a chain that does not exist, or chains that overlap.
            TargetError: a depth below the present one or between periods.
            NotLosslessError: with init=identity and without `lossy`: a block of a named chain cannot be the identity,
                or no chain can grow.
        """
        average = chosen_average(program, self.ema) if self.init == "mogrow" else None
        init = "interpolate" if self.init == "mogrow" else self.init
        deeper = deepened(
            program,
            InsertionOptions([parse_depth(text) for text in self.to], self.chains, init, self.lossy),  # type: ignore[arg-type]
        )
        notes = [*deeper.notes, *deeper.eval_only, *deeper.reasons]
        grown, growing = deeper.grown, deeper.growing
        if not len(chains_of(program)):
            notes.append(
                "the program has no chain of blocks, so nothing can get deeper; progc inspect --chains says why"
            )
        if grown is None:
            return PassResult(program, changed=False, notes=tuple(notes))
        for chain, _ in growing:
            kept = [difference.partition(":")[0] for difference in chain.differences]
            if kept:
                notes.append(f"new blocks of {chain.name} have the {' and the '.join(kept)} of their source")
        if self.init == "mogrow":
            notes.append(averaged_note(average, self.source))
        result, lift = grown.finish(self.seed, average, everything=self.source == "all")
        return PassResult(
            result,
            changed=True,
            counts={
                "blocks inserted": sum(place.copy for _, places in growing for place in places),
                "chains grown": len(growing),
            },
            lift=lift,
            notes=tuple(notes),
            lossless=self.init == "identity" and not deeper.reasons,
            eval_only=deeper.eval_only,
        )
