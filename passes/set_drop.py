"""`set-drop`: sets the rates of drop-path and dropout (progc/transforms/dropping, docs/passes/set-drop.md)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from progc.errors import PassOptionError
from progc.ir.program import Program
from progc.pipeline.base import Pass, PassResult, option
from progc.transforms.dropping import set_drops


@dataclasses.dataclass(frozen=True)
class SetDrop(Pass):
    """Sets the rates of drop-path and dropout.

    Idea: a small network early in progressive training needs less regularisation than the full one (AutoProg, Li et
    al., CVPR 2022; progressive learning, Tan and Le 2021), so the probabilities in the train graph are rewritten from
    stage to stage. Drop-path (stochastic depth, Huang et al. 2016) is found by its computation: a random mask over
    samples, divided by the keep probability, multiplies a branch that is then added. A rate of 0 is exact and draws no
    random numbers.
    Preserved: the function in eval mode, whose graph stays unchanged, and all tensors.
    Needs: operations that drop in the train graph, so rates above 0 when the model was captured.
    Leaves behind: the proportion of each rate to the largest one, so that a rate of 0 can be undone.
    """

    name: ClassVar[str] = "set-drop"

    path: float | None = option(None, help="largest drop-path rate, in [0, 1); none: unchanged")
    dropout: float | None = option(None, help="largest dropout rate, in [0, 1); none: unchanged")
    ramp: str = option(
        "keep",
        help="keep: rates keep their proportions; linear: drop-path rises from 0 over the blocks; uniform: equal rates",
        choices=("keep", "linear", "uniform"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("path", "dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise PassOptionError(f"set-drop: {name}={value:g}: expected a probability in [0, 1)")

    def run(self, program: Program) -> PassResult:
        """Sets the rates.

        Raises:
            PassOptionError: a rate above 0, and the train graph has no operation of that kind.
        """
        done = set_drops(program, path=self.path, dropout=self.dropout, shape=self.ramp)  # type: ignore[arg-type]
        if done.program is program:
            return PassResult(program, changed=False, lossless=True)
        only = ("drop-path and dropout rates change in train mode",)
        return PassResult(done.program, True, done.counts, None, done.notes, lossless=True, eval_only=only)
