"""The contribution of every sample to the gradient of a shared value, at one use of it.

A use is one operation. Its inputs are known from the forward pass, and the gradient of its result from the backward
pass. The contribution of a sample is the vector-Jacobian product of the operation for the entries of the sample: a
matrix product for linear maps, else computed with `torch.func.vmap` and `vjp`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from progc.errors import one_line
from progc.ir.operations import describe, op_name
from progc.search.proxies.sample_dims import Coupled, Samples

_CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
_BYTES = 2**25
"""Bytes of per-sample gradients that are computed at a time, if they are not kept."""


@dataclasses.dataclass(frozen=True)
class SharedUse:
    """A use with its values.

    Attributes:
        node: the operation.
        values: values of the node's inputs in the forward pass.
        gradient: gradient of the sum over samples with respect to the node's result.
        samples: where the samples are.
        count: number of samples.
    """

    node: fx.Node
    values: Mapping[fx.Node, Any]
    gradient: Tensor
    samples: Samples
    count: int

    def rows(self, shared: tuple[fx.Node, ...]) -> dict[fx.Node, Tensor]:
        """Returns per-sample gradients `[samples, *shape]` of some shared arguments."""
        if self._is("linear"):
            return self._linear(shared)
        if self._is(*_CONVOLUTIONS) and not isinstance(self._argument(4), str):
            return self._convolution(shared)
        return self._by_vmap(shared)

    def add_products(self, shared: fx.Node, add: Callable[[Tensor], None], products: Callable[[Tensor], None]) -> None:
        """Adds the contribution of a shared argument to the inner products of per-sample gradients.

        Args:
            add: called with per-sample gradients `[samples, ...]` of a part of the argument's entries.
            products: called with inner products `[samples, samples]` in float64.
        """
        if self._is("linear") and shared is self._argument(1):
            self._linear_products(add, products)
        elif op_name(self.node) == "embedding" and self._plain_embedding(shared):
            add(self._embedding_rows())
        else:
            add(self.rows((shared,))[shared])

    # --- matrices ---------------------------------------------------------------------------------------------------

    def _is(self, *names: str) -> bool:
        """Whether the node is one of these operations, with samples as input, shared weights, and no keywords."""
        if op_name(self.node) not in names or self.node.kwargs:
            return False
        source, weight = self.node.args[0], self.node.args[1]
        matrix = isinstance(weight, fx.Node) and weight not in self.samples.dims and self.values[weight].dim() > 1
        return matrix and source in self.samples.dims and self.node.args.count(weight) == 1

    def _argument(self, position: int) -> Any:
        return self.node.args[position] if len(self.node.args) > position else None

    def _split(self, node: Any) -> Tensor:
        return self.samples.dims[node].split(self.values[node], self.count)

    def _gradients(self) -> Tensor:
        return self.samples.dims[self.node].split(self.gradient, self.count)

    def _tokens(self) -> tuple[Tensor, Tensor]:
        """The input and the gradient of a linear map, each `[samples, tokens, channels]`."""
        gradient = self._gradients()
        return self._split(self._argument(0)).flatten(1, -2), gradient.flatten(1, -2)

    def _linear(self, shared: tuple[fx.Node, ...]) -> dict[fx.Node, Tensor]:
        a, g = self._tokens()
        return {item: g.mT @ a if item is self._argument(1) else g.sum(1) for item in shared}

    def _linear_products(self, add: Callable[[Tensor], None], products: Callable[[Tensor], None]) -> None:
        """Inner products for the weight of a linear map.

        With inputs a and gradients g, the product of samples i and j is the sum over tokens s and t of
        (a_is . a_jt) (g_is . g_jt). With few tokens this needs no gradient of the size of the weight.
        """
        a, g = self._tokens()
        tokens, rows, columns = a.shape[1], g.shape[2], a.shape[2]
        if self.count * tokens**2 * (rows + columns) < rows * columns * (tokens + self.count):
            flat_a, flat_g = a.flatten(0, 1).double(), g.flatten(0, 1).double()
            pairs = (flat_a @ flat_a.T) * (flat_g @ flat_g.T)
            products(pairs.view(self.count, tokens, self.count, tokens).sum((1, 3)))
            return
        step = max(1, _BYTES // (self.count * columns * a.element_size()))
        for start in range(0, rows, step):
            add(g[:, :, start : start + step].mT @ a)

    def _convolution(self, shared: tuple[fx.Node, ...]) -> dict[fx.Node, Tensor]:
        """Sample by sample, because the kernel for gradients of weights takes no batch of weights."""
        dims = _CONVOLUTIONS[op_name(self.node)]
        weight, bias = self.values[self._argument(1)], self._argument(2)
        stride, padding, dilation = (
            _spread(self._argument(position), dims, default) for position, default in ((3, 1), (4, 0), (5, 1))
        )
        mask = [False, self._argument(1) in shared, bias in shared]
        sizes = [weight.shape[0]] if bias is not None else None
        pieces: list[tuple[Any, ...]] = []
        inputs = self._split(self._argument(0))
        gradients = self._gradients()
        for x, g in zip(inputs, gradients, strict=True):
            pieces.append(
                torch.ops.aten.convolution_backward(
                    g, x, weight, sizes, stride, padding, dilation, False, [0] * dims, self._argument(6) or 1, mask
                )
            )
        return {
            item: torch.stack([piece[1 if item is self._argument(1) else 2] for piece in pieces]) for item in shared
        }

    # --- tables -----------------------------------------------------------------------------------------------------

    def _plain_embedding(self, table: fx.Node) -> bool:
        counted = self._argument(3) or self.node.kwargs
        return table is self._argument(0) and self._argument(1) in self.samples.dims and not counted

    def _embedding_rows(self) -> Tensor:
        """Per-sample gradients `[samples, rows, width]` of the rows of the table that any sample looks up."""
        indices = self._split(self._argument(1)).flatten(1)
        gradient = self._gradients().flatten(1, -2)
        padding = self._argument(2)
        if padding is not None and padding >= 0:
            gradient = gradient * (indices != padding).unsqueeze(-1)
        found, places = indices.unique(return_inverse=True)
        result = gradient.new_zeros(self.count * len(found), gradient.shape[-1])
        starts = torch.arange(self.count, device=indices.device).unsqueeze(1) * len(found)
        result.index_add_(0, (starts + places).flatten(), gradient.flatten(0, 1))
        return result.view(self.count, len(found), -1)

    # --- anything else ----------------------------------------------------------------------------------------------

    def _by_vmap(self, shared: tuple[fx.Node, ...]) -> dict[fx.Node, Tensor]:
        """The vector-Jacobian product of the operation for each sample, in one vectorised call."""
        node, samples = self.node, self.samples
        others = [item for item in node.all_input_nodes if item in samples.dims]

        def one(gradient: Tensor, *own: Tensor) -> Any:
            known = {**self.values, **{item: samples.numbers[item] for item in self.values if item in samples.numbers}}
            known.update(zip(others, own, strict=True))

            def call(*values: Tensor) -> Any:
                table = {**known, **dict(zip(shared, values, strict=True))}
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda item: table[item])
                return node.target(*args, **kwargs)  # type: ignore[operator]

            return torch.func.vjp(call, *(self.values[item] for item in shared))[1](gradient)

        gradients = self._gradients()
        try:
            found = torch.func.vmap(one)(gradients, *(self._split(item) for item in others))
        except (
            RuntimeError,
            ValueError,
            NotImplementedError,
        ) as error:
            raise Coupled(f"{describe(node)} cannot be vectorised: {one_line(error)}") from error
        return dict(zip(shared, found, strict=True))


def _spread(value: Any, dims: int, default: int) -> list[int]:
    """A number per dim."""
    given = [default] if value is None else [value] if isinstance(value, int) else list(value)
    return given * dims if len(given) == 1 else given
