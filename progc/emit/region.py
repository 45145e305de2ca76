"""Turns a piece of a graph into a function whose values, tensors and drop rates are arguments.

Two pieces with the same text are one region: they share one Python function and therefore one compiled function. Rates
of dropout and stochastic depth differ between blocks along a ramp, so they are arguments too (0-d tensors). Operations
that take them as numbers are rewritten for that: a mask is `rand(...) < keep`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import linecache
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from progc.emit.pieces import Piece
from progc.emit.rates import is_nothing, rates_of, with_rate
from progc.ir.notation import meta_text
from progc.ir.program import Mode, Program

_counter = itertools.count()


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """A function that one or several pieces share.

    Attributes:
        key: sha256 (hex) of its text: graph, shapes, dtypes, and which arguments need a gradient.
        graph: placeholders for values, then tensors, then rates; returns a list.
        source: the graph as Python: `def region(*arguments)`.
        scope: the names that the source uses.
        computes: whether it makes a tensor; sizes alone are not worth compiling.
    """

    key: str
    graph: fx.Graph
    source: str
    scope: Mapping[str, Any]
    computes: bool = True

    def __deepcopy__(self, memo: object) -> Region:
        return self  # a value object; the names in its scope cannot be copied

    @functools.cached_property
    def function(self) -> Callable[..., Any]:
        """The source as a function with its own code object, so that it has its own compiled form."""
        return _function(self.source, self.scope)


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A call of a region by a piece.

    Attributes:
        piece: the piece.
        region: the region, shared by equal pieces.
        values: nodes of the program's graph that are passed, in order.
        tensors: names of the program's tensors that are passed, in order.
        rates: numbers that are passed, in order.
        exits: nodes that others read, in order.
    """

    piece: Piece
    region: Region
    values: tuple[fx.Node, ...]
    tensors: tuple[str, ...]
    rates: tuple[float, ...]
    exits: tuple[fx.Node, ...]

    def __deepcopy__(self, memo: object) -> Call:
        return self


class Regions:
    """Regions of one graph by key; equal pieces get the same one.

    Args:
        lift_rates: whether rates become arguments. Without it, operations stay unchanged and draw the same random
            numbers as the program's own graph.
    """

    def __init__(self, program: Program, mode: Mode, *, lift_rates: bool) -> None:
        self.program = program
        self.lift_rates = lift_rates
        self._rates = rates_of(program.graphs[mode]) if lift_rates else {}
        self.by_key: dict[str, Region] = {}

    def call(self, piece: Piece, learns: set[fx.Node]) -> Call:
        """Returns the call of a piece.

        Args:
            piece: the piece.
            learns: nodes of the graph whose value needs a gradient. They are part of the key, because frozen parameters
                compile to another backward.
        """
        inside = set(piece.nodes)
        values: list[fx.Node] = []
        tensors: list[fx.Node] = []
        for node in piece.nodes:
            for source in node.all_input_nodes:
                if source not in inside:
                    kind = tensors if source.op == "get_attr" else values
                    if source not in kind:
                        kind.append(source)
        # One tensor may be read by several get_attr nodes.
        names = list(dict.fromkeys(str(node.target) for node in tensors))
        exits = [node for node in piece.nodes if any(user not in inside for user in node.users)]
        graph = fx.Graph()
        env: dict[fx.Node, fx.Node] = {node: graph.placeholder(f"v{i}") for i, node in enumerate(values)}
        held = {name: graph.placeholder(f"t{i}") for i, name in enumerate(names)}
        env.update({node: held[str(node.target)] for node in tensors})
        lifting = {node: self._rates[node] for node in piece.nodes if node in self._rates}
        given = {node: graph.placeholder(f"r{i}") for i, node in enumerate(lifting)}
        home = next((held[name] for name in names), None)
        for node in piece.nodes:
            if node in lifting:
                env[node] = with_rate(graph, node, lifting[node], env, given[node])
            elif self.lift_rates and is_nothing(node):
                env[node] = env[node.args[0]]  # type: ignore[index]
            else:
                env[node] = _on_device_of(graph.node_copy(node, lambda n: env[n]), home)
        graph.output([env[node] for node in exits])
        gradient = [node in learns for node in values] + [self.program.tensors[name].requires_grad for name in names]
        key = self._key(graph, values, names, gradient)
        if key not in self.by_key:
            computes = any(not isinstance(node.meta.get("tensor"), (int, float, bool)) for node in piece.nodes)
            self.by_key[key] = Region(key, graph, *_source(graph), computes)
        return Call(
            piece,
            self.by_key[key],
            tuple(values),
            tuple(names),
            tuple(rate.value for rate in lifting.values()),
            tuple(exits),
        )

    def _key(
        self,
        graph: fx.Graph,
        values: Sequence[fx.Node],
        names: Sequence[str],
        gradient: Sequence[bool],
    ) -> str:
        order = {node: f"n{index}" for index, node in enumerate(graph.nodes)}
        lines = [f"{meta_text(node.meta.get('tensor'))}" for node in values]
        for name in names:
            tensor = self.program.tensors[name]
            lines.append(f"{tuple(tensor.shape)} {tensor.dtype} {tensor.stride()}")
        lines.append(str(list(gradient)))
        for node in graph.nodes:
            spelled = pytree.tree_map_only(fx.Node, lambda n: _Name(order[n]), (node.args, dict(node.kwargs)))
            lines.append(f"{order[node]} {node.op} {node.target if node.op == 'call_function' else ''} {spelled}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class _Name:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _on_device_of(node: fx.Node, home: fx.Node | None) -> fx.Node:
    """Makes a call that creates a tensor on a fixed device create it on the device of the piece's tensors."""
    if home is None:
        return node
    leaves = [leaf for leaf in pytree.tree_leaves((list(node.args), dict(node.kwargs))) if type(leaf) is torch.device]
    if leaves:
        with node.graph.inserting_before(node):
            place = node.graph.call_function(getattr, (home, "device"))
        node.args, node.kwargs = pytree.tree_map_only(torch.device, lambda _: place, (node.args, dict(node.kwargs)))
    return node


def as_function(graph: fx.Graph) -> Callable[..., Any]:
    """Returns a graph of placeholders and calls as a Python function."""
    return _function(*_source(graph))


def _source(graph: fx.Graph) -> tuple[str, dict[str, Any]]:
    code = graph.python_code("self")
    text = code.src.replace("def forward(self, ", "def region(", 1).replace("def forward(self)", "def region()", 1)
    return text, dict(code.globals)


def _function(source: str, scope: Mapping[str, Any]) -> Callable[..., Any]:
    filename = f"<progc region {next(_counter)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    names = dict(scope)
    exec(compile(source, filename, "exec"), names)  # the source is generated from a graph
    function: Callable[..., Any] = names["region"]
    return function
