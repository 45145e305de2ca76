"""`zico`: signal to noise of the gradients over batches (ZiCo; Li et al., ICLR 2023)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from progc.data.task import Task
from progc.errors import InputError
from progc.ir.program import Program
from progc.search.proxies import samples
from progc.search.proxies.base import TwoModes, check_at_least, contracted, measured
from progc.search.proxies.running import Network, ProxyRun, loss_of, undisturbed


class Moments:
    """Mean of |g|, and mean and variance of g, entry by entry, in one pass over the batches (Welford 1962).

    Three tensors of a parameter's size, whatever the number of batches.
    """

    def __init__(self, like: Tensor) -> None:
        self.count = 0
        self.size = torch.zeros_like(like, requires_grad=False)
        self.mean = torch.zeros_like(like, requires_grad=False)
        self.squares = torch.zeros_like(like, requires_grad=False)

    def add(self, gradient: Tensor) -> None:
        """The gradient of one more batch; overwritten."""
        self.count += 1
        distance = gradient - self.mean
        self.mean.add_(distance, alpha=1 / self.count)
        self.squares.addcmul_(distance, distance, value=1 - 1 / self.count)
        self.size.add_(gradient.abs_())

    @property
    def finite(self) -> bool:
        """Whether all gradients are."""
        return math.isfinite(float(self.size.sum()))

    def ratios(self) -> Tensor:
        """Mean of |g| over the population's standard deviation of g, of entries with one, in float64."""
        varying = self.squares > 0
        spread = (self.squares[varying].double() / self.count).sqrt_()
        return (self.size[varying].double() / self.count).div_(spread)


class PairMoments:
    """The same of two batches, in closed form: |a| + |b| over |a - b|. One tensor of a parameter's size."""

    def __init__(self, like: Tensor) -> None:
        self.first: Tensor | None = None
        self.finite = True
        self._ratios = like.new_empty(0)

    def add(self, gradient: Tensor) -> None:
        """The gradient of the first or the second batch."""
        if self.first is None:
            self.first = gradient.clone()
            return
        distance = (self.first - gradient).abs_()
        size, varying = self.first.abs_().add_(gradient.abs()), distance > 0
        self.finite = math.isfinite(float(size.sum()))
        self._ratios = size[varying].double().div_(distance[varying])
        self.first = None

    def ratios(self) -> Tensor:
        """See `Moments.ratios`."""
        return self._ratios


@dataclasses.dataclass(frozen=True)
class ZiCo(TwoModes):
    """Mean size over spread of the gradients of the loss over batches, summed within and averaged over parameters.

    Per entry j of a parameter, z_j = mean |g_j| / std g_j, the population's, of the signed gradient; entries that do
    not vary are dropped. Default: the mean over parameters with two dims and more of log(mean_j z_j), over at least 8
    batches, so that neither a larger trainable set nor a larger layer scores higher for its size. Reference
    (AutoProg-Zero): the sum over weights of linear layers and 2-d convolutions of log(sum_j z_j), over the given
    batches (published: 2); it grows with every weight that is unfrozen.

    Attributes:
        mode: `default` or `reference`.
        batches: at least so many (default mode); fewer are cut up into so many smaller ones.
        vectors: norms, biases and other parameters of one dim count as well (default mode).

    Raises:
        InputError: an option out of range.
    """

    name: ClassVar[str] = "zico"
    ranks_unfreezing: ClassVar[bool] = True

    batches: int = 8
    vectors: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self.name, "batches", self.batches, 2)

    def score(
        self, program: Program, batches: Sequence[Any], task: Task, *, seed: int, stage: int | None = None
    ) -> float:
        """See `progc.search.proxies.base.Proxy.score`."""
        network = Network(program, task, stage)
        published = self.mode == "reference"
        wanted = measured(network.program, vectors=self.vectors and not published)
        if published:
            weights = contracted(network.program, published=True)
            wanted = [name for name in wanted if name in weights]
        if not wanted:
            raise InputError(f"proxy zico: nothing that it measures trains in {program.class_name}; unfreeze a part")
        pieces = self._pieces(network.fitted(batches))
        kind = PairMoments if len(pieces) == 2 else Moments
        moments = {name: kind(network.tensors[name]) for name in wanted}
        for found in gradients(network, pieces, wanted, seed):
            for name in wanted:
                moments[name].add(found.pop(name))
        logs = []
        for name in wanted:
            moment = moments.pop(name)
            if not moment.finite:
                return math.nan
            ratios = moment.ratios()
            if len(ratios):
                logs.append(math.log(float(ratios.sum() if published else ratios.mean())))
        if not logs:
            return -math.inf
        return sum(logs) if published else sum(logs) / len(logs)

    def _pieces(self, given: list[Any]) -> list[Any]:
        """The batches whose gradients are compared.

        Raises:
            InputError: too few samples, or batches.
        """
        if self.mode == "reference":
            if len(given) < 2:
                raise InputError(f"proxy zico needs 2 batches in reference mode and gets {len(given)}")
            return given
        if len(given) >= self.batches:
            return given
        there = sum(map(samples.size, given))
        if there < self.batches:
            raise InputError(f"proxy zico needs {self.batches} samples and gets {there}; give more or larger batches")
        return samples.regrouped(given, there // self.batches, self.batches)


def gradients(network: Network, pieces: Sequence[Any], wanted: Sequence[str], seed: int) -> Iterator[dict[str, Tensor]]:
    """Gradients of the loss by some parameters, batch by batch; a parameter that the loss does not depend on has zeros.

    Args:
        pieces: batches at the program's image size.
        seed: of the masks; another one per batch.
    """
    leaves = {name: network.tensors[name].detach().requires_grad_() for name in wanted}
    tensors = {**{name: tensor.detach() for name, tensor in network.tensors.items()}, **leaves}
    for place, piece in enumerate(pieces):
        with undisturbed(network.program, seed + place):
            flat = ProxyRun(network.program, tensors).run(*network.inputs(piece), enable_io_processing=False)
            loss = loss_of(network, flat, piece)
            del flat
            if not loss.requires_grad:
                found: Sequence[Tensor | None] = [None] * len(leaves)
            else:
                found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        yield {
            name: torch.zeros_like(leaf, requires_grad=False) if gradient is None else gradient.detach()
            for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
        }
