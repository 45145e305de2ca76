"""What a proxy is: options as a frozen dataclass, and one score per program.

Parameters by what they do in the graph: contracted with a value, looked up, or added and multiplied by entry.

Where the published formulas say "module", this is the operation that reads the parameter, so that a weight which a
user's class contracts by `einsum` counts like that of a linear layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from progc.errors import InputError, did_you_mean
from progc.ir.operations import op_name
from progc.ir.program import Program
from progc.transforms.freezing.flow import weights_of

if TYPE_CHECKING:
    from progc.data.task import Task
    from progc.ir.program import Program

MODES = ("default", "reference")
"""`reference` reproduces the published formula, `default` is ours (docs/proxies.md says how they differ)."""


class Proxy(Protocol):
    """A score of a network and its trainable set, found without training it.

    Attributes:
        name: as in the registry.
        higher_is_better: whether the best candidate has the highest score.
        ranks_unfreezing: whether the score depends on which parameters train.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool]
    ranks_unfreezing: ClassVar[bool]

    def score(
        self, program: Program, batches: Sequence[Any], task: Task, *, seed: int, stage: int | None = None
    ) -> float:
        """The score of a program with its present weights and trainable set.

        Nothing is changed: not weights, buffers, gradients, what trains, or the state of random generators.

        Args:
            batches: as `Task.batches` gives them, at the full image size or at the program's.
            seed: of the masks that dropout and its like draw.
            stage: passed on where the program takes its stage as an input (None: the null row); ignored elsewhere.

        Returns:
            A number; NaN where outputs, loss or gradients are not finite.

        Raises:
            InputError: too few samples, or a network that has nothing which the proxy measures.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TwoModes:
    """The option that our proxies share.

    Attributes:
        mode: one of `MODES`.

    Raises:
        InputError: an unknown mode.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool] = True

    mode: str = "default"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            hint = did_you_mean(self.mode, MODES) or f"; modes are {', '.join(MODES)}"
            raise InputError(f"proxy {self.name}: there is no mode `{self.mode}`{hint}")


def check_at_least(name: str, option: str, value: int, least: int) -> None:
    """Refuses a number that is too small.

    Raises:
        InputError: the option is below `least`.
    """
    if value < least:
        raise InputError(f"proxy {name}: {option} is at least {least}, not {value}")


_PUBLISHED = {"linear", "conv2d"}


_LOOKUPS = {"embedding", "embedding_bag"}


def contracted(program: Program, *, published: bool = False) -> set[str]:
    """Names of parameters that an operation of the train graph contracts its input with.

    Args:
        published: of linear layers and 2-d convolutions alone.
    """
    found: set[str] = set()
    for node in program.graphs["train"].nodes:
        name = op_name(node) if node.op == "call_function" else ""
        if name and name not in _LOOKUPS and (not published or name in _PUBLISHED):
            found.update(weights_of(node))
    return found & {name for name, _ in program.parameters()}


def measured(program: Program, *, vectors: bool) -> list[str]:
    """Names of trainable parameters with at least two dims, and with `vectors` of all others."""
    return [
        name
        for name, tensor in program.parameters()
        if tensor.requires_grad and tensor.is_floating_point() and (vectors or tensor.dim() > 1)
    ]
