"""What a proxy is (options as a frozen dataclass, and one score per program), and which parameters proxies measure.

The published formulas speak of modules such as linear layers. Here the operation that reads a parameter decides, so
that a weight which the user's class contracts with `einsum` counts like that of a linear layer.
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
"""`reference` is the published formula, `default` is ours (docs/proxies.md describes the differences)."""


class Proxy(Protocol):
    """A score of a network and its trainable set that needs no training.

    Attributes:
        name: name in the registry.
        higher_is_better: whether the best candidate has the highest score.
        ranks_unfreezing: whether the score depends on which parameters train.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool]
    ranks_unfreezing: ClassVar[bool]

    def score(
        self, program: Program, batches: Sequence[Any], task: Task, *, seed: int, stage: int | None = None
    ) -> float:
        """Returns the score of a program with its present weights and trainable set.

        Weights, buffers, gradients, the trainable set and the states of random generators do not change.

        Args:
            program: the network.
            batches: batches of `Task.batches`, at the full image size or at the program's.
            task: inputs and loss.
            seed: seed of the masks of dropout and similar operations.
            stage: the stage, for a program that takes it as an input (None: the null row); ignored by others.

        Returns:
            A number; NaN if outputs, loss or gradients are not finite.

        Raises:
            InputError: too few samples, or the network has nothing that the proxy measures.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TwoModes:
    """The option `mode`, which all our proxies have.

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
            raise InputError(f"proxy {self.name}: unknown mode `{self.mode}`{hint}")


def check_at_least(name: str, option: str, value: int, least: int) -> None:
    """Checks that an option is at least `least`.

    Raises:
        InputError: it is smaller.
    """
    if value < least:
        raise InputError(f"proxy {name}: {option}: expected a number of at least {least}, got {value}")


_PUBLISHED = {"linear", "conv2d"}
_LOOKUPS = {"embedding", "embedding_bag"}


def contracted(program: Program, *, published: bool = False) -> set[str]:
    """Returns the names of parameters that an operation of the train graph contracts its input with.

    Args:
        published: whether only linear layers and 2-d convolutions count, as in the published formulas.
    """
    found: set[str] = set()
    for node in program.graphs["train"].nodes:
        name = op_name(node) if node.op == "call_function" else ""
        if name and name not in _LOOKUPS and (not published or name in _PUBLISHED):
            found.update(weights_of(node))
    return found & {name for name, _ in program.parameters()}


def measured(program: Program, *, vectors: bool) -> list[str]:
    """Returns the names of trainable parameters with at least two dims; with `vectors`, of all trainable ones."""
    return [
        name
        for name, tensor in program.parameters()
        if tensor.requires_grad and tensor.is_floating_point() and (vectors or tensor.dim() > 1)
    ]
