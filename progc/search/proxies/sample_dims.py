"""Finds the dim of the samples in every value of a graph, and the operations where parameters first meet samples.

A dim holds the samples if it doubles when the batch size doubles. Values that do not depend on the batch are *shared*:
the parameters, and values computed only from them (a table of relative positions that is looked up, a standardised
weight). A *use* is an operation that combines trainable shared values with values of samples. The contribution of a
sample to the gradient of a parameter is known at its uses, because everything before them is the same for all samples.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, fx

from progc.errors import VerifyError
from progc.ir.graphs import infer
from progc.ir.operations import SHAPE_ONLY, argument, describe, is_float, mutates, op_name
from progc.ir.program import Program, TensorMeta


class Coupled(Exception):
    """Gradients cannot be split by sample at the uses of the parameters; the message says why."""


@dataclasses.dataclass(frozen=True)
class SamplePlace:
    """Where the samples are in one value.

    Attributes:
        dim: the dim that holds them.
        each: number of its entries that belong to one sample.
        inner: whether the samples are the inner index (`[tokens * samples]`), so that the entries of one sample are not
            adjacent.
    """

    dim: int
    each: int
    inner: bool = False

    def split(self, value: Tensor, count: int) -> Tensor:
        """Returns `value` as `[count, ...]`, with the entries of one sample at the position of the dim."""
        if self.inner:
            return value.unflatten(self.dim, (self.each, count)).movedim(self.dim + 1, 0)
        return value.unflatten(self.dim, (count, self.each)).movedim(self.dim, 0)


@dataclasses.dataclass(frozen=True)
class Samples:
    """Where the samples are in the values of a train graph.

    Attributes:
        dims: for nodes with a dim of samples, where it is; shapes alone do not tell whether it is `inner`.
        numbers: for nodes that are sizes and proportional to the batch size, their value for one sample.
        dependent: nodes whose value depends on the samples.
    """

    dims: Mapping[fx.Node, SamplePlace]
    numbers: Mapping[fx.Node, int]
    dependent: Collection[fx.Node]


@dataclasses.dataclass(frozen=True)
class _Named:
    """`Samples` by names, for the cache: nodes would keep their graph alive."""

    dims: Mapping[str, SamplePlace]
    numbers: Mapping[str, int]
    dependent: Collection[str]


_known: weakref.WeakKeyDictionary[fx.Graph, _Named | str] = weakref.WeakKeyDictionary()


def find_samples(program: Program) -> Samples:
    """Finds the samples in the train graph of a program from shapes alone; once per graph.

    Raises:
        Coupled: the batch size is fixed, or an operation mixes samples.
    """
    graph = program.graphs["train"]
    if graph not in _known:
        try:
            found = _find(program, graph)
        except Coupled as reason:
            _known[graph] = str(reason)
        else:
            dims = {node.name: place for node, place in found.dims.items()}
            numbers = {node.name: value for node, value in found.numbers.items()}
            _known[graph] = _Named(dims, numbers, frozenset(node.name for node in found.dependent))
    named = _known[graph]
    if isinstance(named, str):
        raise Coupled(named)
    nodes = {node.name: node for node in graph.nodes}
    return Samples(
        {nodes[name]: place for name, place in named.dims.items()},
        {nodes[name]: value for name, value in named.numbers.items()},
        frozenset(nodes[name] for name in named.dependent),
    )


def _find(program: Program, graph: fx.Graph) -> Samples:
    batches = [leaf.shape[0] for leaf, free in _inputs(program) if free]
    if not batches or len(set(batches)) > 1:
        raise Coupled("the batch size is fixed, or inputs have different batch sizes")
    try:
        doubled = infer(program, graph, "train", batch_factor=2)
    except VerifyError as error:
        raise Coupled(f"the graph cannot run at twice the batch size: {error}") from error
    inputs = iter(_inputs(program))
    dims: dict[fx.Node, SamplePlace] = {}
    numbers: dict[fx.Node, int] = {}
    dependent: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "output":
            continue
        if node.op == "placeholder" and next(inputs)[1]:
            dependent.add(node)
        if node.op == "call_function" and op_name(node) not in SHAPE_ONLY:
            if any(source in dependent for source in node.all_input_nodes):
                dependent.add(node)
        if op_name(node) == "batch_norm" and argument(node, "training") is True:
            raise Coupled(f"{describe(node)} uses statistics of the batch")
        found = _grown(node.meta.get("tensor"), doubled[node], batches[0])
        if isinstance(found, int):
            numbers[node] = found
        elif found is not None:
            dims[node] = found
        elif (
            node in dependent
            and isinstance(node.meta.get("tensor"), TensorMeta)
            and (is_float(node) or is_complex(node))
        ):
            raise Coupled(f"{describe(node)} has no dim of samples")
    return Samples(dims, numbers, frozenset(dependent))


def _inputs(program: Program) -> list[tuple[Any, bool]]:
    return list(zip(program.flat_example(), program.signature.batch_dims, strict=True))


def _grown(before: Any, after: Any, batch: int) -> SamplePlace | int | None:
    """The dim that doubled, with its entries per sample; for a number that doubled, its value for one sample."""
    if isinstance(before, int) and isinstance(after, int):
        if after == before:
            return None
        if after != 2 * before or before % batch:
            raise Coupled(f"a size of {before} becomes {after} at twice the batch size")
        return before // batch
    if not isinstance(before, TensorMeta) or not isinstance(after, TensorMeta) or before.shape == after.shape:
        return None
    changed = [dim for dim, (a, b) in enumerate(zip(before.shape, after.shape, strict=True)) if a != b]
    (dim, *others) = changed
    size = before.shape[dim]
    if others or after.shape[dim] != 2 * size or size % batch:
        raise Coupled(f"a value of shape {list(before.shape)} becomes {list(after.shape)} at twice the batch size")
    return SamplePlace(dim, size // batch)


def is_complex(node: fx.Node) -> bool:
    """Returns whether a node's value is complex, or contains a complex value."""
    meta = node.meta.get("tensor")
    items = meta if isinstance(meta, tuple) else (meta,)
    return any(isinstance(item, TensorMeta) and item.dtype.is_complex for item in items)


@dataclasses.dataclass(frozen=True)
class Uses:
    """Where parameters meet samples.

    Attributes:
        shared: for each use, its arguments that train and are the same for all samples.
        solo: names of parameters that are read by a single use and by nothing else.
    """

    shared: Mapping[fx.Node, tuple[fx.Node, ...]]
    solo: Collection[str]


def find_uses(program: Program, samples: Samples, wanted: Collection[str]) -> Uses:
    """Finds the uses of some parameters.

    Args:
        wanted: canonical names of the parameters.

    Raises:
        Coupled: a use that writes in place, or has several results.
    """
    training: set[fx.Node] = set()
    shared: dict[fx.Node, tuple[fx.Node, ...]] = {}
    readers: dict[str, list[fx.Node]] = {}
    for node in program.graphs["train"].nodes:
        if node.op == "get_attr" and node.target in wanted:
            if is_complex(node):
                raise Coupled(f"{node.target} is complex")
            training.add(node)
            readers.setdefault(str(node.target), []).extend(node.users)
        if node.op != "call_function":
            continue
        mine = tuple(source for source in node.all_input_nodes if source in training)
        if mine and is_complex(node):
            raise Coupled(f"{describe(node)} returns complex values")
        if not mine or not is_float(node):
            continue
        if node not in samples.dims and node not in samples.dependent:
            training.add(node)
            if mutates(node):
                raise Coupled(f"{describe(node)} writes to a parameter")
        elif mutates(node) or not isinstance(node.meta.get("tensor"), TensorMeta):
            raise Coupled(f"{describe(node)} writes in place, or has several results")
        else:
            shared[node] = mine
    solo = {name for name, users in readers.items() if len(users) == 1 and users[0] in shared}
    return Uses(shared, frozenset(solo))
