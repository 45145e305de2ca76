"""`zico`: signal-to-noise ratio of the gradients over batches (ZiCo; Li et al., ICLR 2023)."""

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

    Holds three tensors of the size of the parameter, for any number of batches.
    """

    def __init__(self, like: Tensor) -> None:
        self.count = 0
        self.size = torch.zeros_like(like, requires_grad=False)
        self.mean = torch.zeros_like(like, requires_grad=False)
        self.squares = torch.zeros_like(like, requires_grad=False)

    def add(self, gradient: Tensor) -> None:
        """Adds the gradient of a batch, which is overwritten."""
        self.count += 1
        distance = gradient - self.mean
        self.mean.add_(distance, alpha=1 / self.count)
        self.squares.addcmul_(distance, distance, value=1 - 1 / self.count)
        self.size.add_(gradient.abs_())

    @property
    def finite(self) -> bool:
        """Whether all gradients are finite."""
        return math.isfinite(float(self.size.sum()))

    def ratios(self) -> Tensor:
        """Returns mean |g| / std g (of the population) in float64, without entries whose std is zero."""
        varying = self.squares > 0
        spread = (self.squares[varying].double() / self.count).sqrt_()
        return (self.size[varying].double() / self.count).div_(spread)


class PairMoments:
    """`Moments` of two batches in closed form, (|a| + |b|) / |a - b|; holds one tensor of the size of the parameter."""

    def __init__(self, like: Tensor) -> None:
        self.first: Tensor | None = None
        self.finite = True
        self._ratios = like.new_empty(0)

    def add(self, gradient: Tensor) -> None:
        """Adds the gradient of the first or the second batch."""
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
    """Mean absolute gradient divided by the standard deviation of the gradient over batches.

    For each entry j of a parameter, z_j = mean |g_j| / std g_j over the batches (std of the population, signed
    gradient). Entries that do not vary are left out. Default: the mean over parameters with at least two dims of
    log(mean_j z_j), over at least 8 batches, so that neither a larger trainable set nor a larger layer scores higher
    for its size. Reference (AutoProg-Zero): the sum over weights of linear layers and 2-d convolutions of
    log(sum_j z_j), over the given batches (published: 2); it grows with every weight that is unfrozen.

    Attributes:
        mode: `default` or `reference`.
        batches: smallest number of batches; fewer ones are split into this many smaller ones (default mode).
        vectors: whether parameters with fewer than two dims (norms, biases) count as well (default mode).

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
            raise InputError(f"proxy zico: no parameter that it measures trains in {program.class_name}; unfreeze some")
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
            InputError: too few samples or batches.
        """
        if self.mode == "reference":
            if len(given) < 2:
                raise InputError(
                    f"proxy zico: expected at least 2 batches in mode reference, got {len(given)}; give more batches"
                )
            return given
        if len(given) >= self.batches:
            return given
        there = sum(map(samples.size, given))
        if there < self.batches:
            raise InputError(
                f"proxy zico: expected at least {self.batches} samples, got {there}; give more or larger batches"
            )
        return samples.regrouped(given, there // self.batches, self.batches)


def gradients(network: Network, pieces: Sequence[Any], wanted: Sequence[str], seed: int) -> Iterator[dict[str, Tensor]]:
    """Iterates over batches and returns the gradients of the loss with respect to some parameters, by name.

    A parameter that the loss does not depend on has a gradient of zeros.

    Args:
        pieces: batches at the program's image size.
        wanted: names of the parameters.
        seed: seed of the masks; each batch has another one.
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
