"""One forward and one backward pass that compute the inner products of the gradients of all samples, use by use.

Autograd does not see the parameters here. Each operation that uses one is tapped: when the backward pass reaches its
result, the contributions of the samples are computed, multiplied with each other, and freed. No gradient of a sample is
ever held as a whole, autograd does not compute gradients of weights a second time, and the backward pass ends where
nothing earlier trains.
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from progc.ir.operations import mutates
from progc.ir.program import Program
from progc.search.proxies.local import SharedUse
from progc.search.proxies.running import ProxyRun
from progc.search.proxies.sample_dims import Coupled, Samples, Uses


class Products:
    """The matrix of inner products of gradients, `[samples, samples]` in float64.

    Products of float32 gradients are summed in float64: the smallest eigenvalue is a small difference of large ones.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.matrix = torch.zeros(count, count, dtype=torch.float64, device=device)

    def add_rows(self, rows: Tensor) -> None:
        """Adds per-sample gradients `[samples, ...]` of a part of the parameters."""
        rows = torch.view_as_real(rows) if rows.is_complex() else rows
        flat = rows.detach().flatten(1).double()
        self.matrix += flat @ flat.T

    def add_products(self, products: Tensor) -> None:
        """Adds inner products `[samples, samples]` over a part of the parameters."""
        self.matrix += products


class TappedRun(ProxyRun, abc.ABC):
    """Runs a train graph and calls `tap` at each use of some parameters.

    Args:
        wanted: names of the parameters that are differentiated; the others are constants.
    """

    def __init__(self, program: Program, tensors: Mapping[str, Tensor], uses: Uses, wanted: Collection[str]) -> None:
        super().__init__(program, {name: tensor.detach() for name, tensor in tensors.items()})
        self.uses = uses
        self.leaves = {name: self.tensors[name].detach().requires_grad_() for name in wanted}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Tensor:
        """Returns a tensor by name; for a differentiated parameter a leaf over the same memory."""
        return self.leaves[target] if target in self.leaves else super().get_attr(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node, and taps it if it is a use."""
        shared = self.uses.shared.get(n)
        if shared is None:
            return super().run_node(n)
        values = {item: self.env[item] for item in n.all_input_nodes}
        kept = {item: value.detach() if item in shared else value for item, value in values.items()}
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), lambda item: kept[item])
        result = n.target(*args, **kwargs)  # type: ignore[operator]
        if not result.requires_grad:
            result.requires_grad_()
            result.register_post_accumulate_grad_hook(_drop)
        self.tap(n, shared, values, result)
        changed = any(mutates(user) for user in n.users)  # a leaf cannot be written to
        return result.clone() if changed and result.is_leaf else result

    @abc.abstractmethod
    def tap(self, node: fx.Node, shared: tuple[fx.Node, ...], values: dict[fx.Node, Any], result: Tensor) -> None:
        """Called at a use, with its shared arguments, the values of its inputs, and its result."""


class Collector(TappedRun):
    """Collects inner products of per-sample gradients; can be used once.

    After `run`, a backward pass from a sum over samples collects them. `finish` adds those that must wait for its end:
    of parameters that are read more than once, and of those that reach samples only through operations on parameters.

    Raises:
        Coupled: in the backward pass, if a use cannot be split by sample.
    """

    def __init__(
        self,
        program: Program,
        tensors: Mapping[str, Tensor],
        uses: Uses,
        wanted: Collection[str],
        samples: Samples,
        products: Products,
    ) -> None:
        super().__init__(program, tensors, uses, wanted)
        self.samples, self.products = samples, products
        self.count = len(products.matrix)
        self._waiting: dict[fx.Node, tuple[Tensor, Tensor]] = {}

    def tap(self, node: fx.Node, shared: tuple[fx.Node, ...], values: dict[fx.Node, Any], result: Tensor) -> None:
        """Registers a hook for the gradient of the result."""
        held = [(values, _versions(values))]  # emptied when the gradient arrives, so that inputs are freed early
        result.register_hook(lambda gradient: self._collect(node, shared, held, gradient))

    def _collect(self, node: fx.Node, shared: tuple[fx.Node, ...], held: list[Any], gradient: Tensor) -> None:
        values, versions = held.pop()
        if _versions(values) != versions:
            raise Coupled(f"an input of {node.name} is written to after it is used")
        inputs = {item: value.detach() if isinstance(value, Tensor) else value for item, value in values.items()}
        use = SharedUse(node, inputs, gradient, self.samples, self.count)
        with torch.no_grad():
            for item in shared:
                if item.op == "get_attr" and item.target in self.uses.solo:
                    use.add_products(item, self.products.add_rows, self.products.add_products)
                    continue
                rows = use.rows((item,))[item]
                before = self._waiting.get(item)
                self._waiting[item] = (values[item], rows if before is None else before[1] + rows)

    def finish(self) -> None:
        """Propagates the rows of computed values back to their parameters, and adds them."""
        names = list(self.leaves)
        found: dict[str, Tensor] = {}

        def add(name: str, rows: Tensor) -> None:
            found[name] = found[name] + rows if name in found else rows

        computed = []
        for item, (value, rows) in self._waiting.items():
            if item.op == "get_attr":
                add(str(item.target), rows)
            elif value.requires_grad:  # not detached
                computed.append((value, rows))
        if computed:
            values = [value for value, _ in computed]
            pulled: list[tuple[Tensor | None, ...]] = [
                torch.autograd.grad(
                    values,
                    [self.leaves[name] for name in names],
                    [rows[sample] for _, rows in computed],
                    retain_graph=True,
                    allow_unused=True,
                )
                for sample in range(self.count)
            ]
            for name, *own in zip(names, *pulled, strict=True):
                if own[0] is not None:
                    add(name, torch.stack(own))
        for rows in found.values():
            self.products.add_rows(rows)


def _drop(leaf: Tensor) -> None:
    leaf.grad = None


def _versions(values: Mapping[fx.Node, Any]) -> list[int]:
    return [value._version for value in values.values() if isinstance(value, Tensor)]
