"""The axis walk: one pass over a graph that assigns factored dims to every value and records what ops do with them.

A rule (progc/analysis/axes/rules, one file per op family) handles a single op. It states which dims are equal, returns
the dims of the result, and records *events*: what the op does with a dim besides passing it through. An op without a
rule pins every axis it touches, with a reason: the analysis then finds fewer growable axes, but is never wrong.
"""

from __future__ import annotations

import itertools
import operator
from typing import Any

from torch import fx

from progc.analysis.axes import dims as D
from progc.analysis.axes import lengths
from progc.analysis.axes.context import Args, Context
from progc.analysis.axes.records import DECIDING, Value, flat_values, fresh_like
from progc.analysis.axes.registry import rule_for
from progc.errors import one_line
from progc.ir.check import stochastic
from progc.ir.graphs import written_to
from progc.ir.program import MODES, TensorMeta

# Ops that read a part of an operand, or only the size, dtype or device of one.
_LEAVES_OUT = frozenset(
    f"aten.{name}" for name in "slice slice_copy narrow to type_as new_zeros new_ones new_empty new_full".split()
)


class AxisWalk(Context):
    """One walk over both graphs; `run` fills the attributes that `Context` declares."""

    def run(self) -> None:
        """Walks both graphs. They share the dims of parameters, so one analysis holds for both."""
        for mode in MODES:
            if mode not in self.program.graphs:
                continue
            self.mode = mode
            self.values = {}
            graph = self.program.graphs[mode]
            written = written_to(graph)
            # Dropout belongs to the train graph. In eval mode, copies of a unit must not get different random numbers.
            drawn = {node.name for node in stochastic(graph)} if mode == "eval" else set()
            for node in graph.nodes:
                self.node_name = node.name
                D.here.set((mode, node.name))
                self.decided.clear()
                value = lengths.follow(self, node, self._visit(node))
                if node.name in written:
                    value = self._overwritten(value)
                if node.name in drawn:
                    for part in flat_values([value]):
                        D.pin(D.channels(sum(part.dims, ())), f"{self.op} draws random numbers in eval mode")
                self.values[node.name] = value
            self.value_dims.update({(mode, name): value for name, value in self.values.items()})
        D.here.set(None)

    def _visit(self, node: fx.Node) -> Any:
        meta = node.meta.get("tensor")
        if node.op == "placeholder":
            return self._input(meta)
        if node.op == "get_attr":
            return self.tensor(str(node.target))
        if node.op == "output":
            for value in flat_values(self.resolve(list(node.args))):
                for dim in value.dims:
                    D.pin(dim, D.OUTPUT)
            return None
        if isinstance(meta, int):
            return meta
        if node.target is operator.getitem:
            return self.resolve(node.args[0])[node.args[1]]
        name, found = rule_for(node)
        self.op = name
        if found is None or meta is None:
            return self._opaque(node, meta)
        own = name.startswith("aten.")
        try:
            value = found(self, node, Args(self, node))
            fits = _same_sizes(value, meta)
        except (LookupError, TypeError, ValueError, AttributeError, D.Clash) as error:
            # The rule does not cover this form of the op: treat the op as one without a rule, never guess.
            return self._opaque(node, meta, "" if own else _fault(name, error))
        except Exception as error:
            if own:
                raise  # a bug in progc
            return self._opaque(node, meta, _fault(name, error))
        if not fits:
            return self._opaque(
                node, meta, "" if own else f"the rule of {name} returns sizes that differ from the result of the op"
            )
        if not own:
            self._ask_origin(node, value)
        self._account(node, value)
        return value

    def _account(self, node: fx.Node, value: Any) -> None:
        """Pins axes that enter an op, do not leave it and were not recorded: the rule has forgotten them."""
        if self.op in _LEAVES_OUT:
            return
        inputs = [part for item in self.resolve([*node.args, *node.kwargs.values()]) for part in flat_values([item])]
        entered = {atom for part in inputs for atom in D.channels(sum(part.dims, ())) if not atom.reasons}
        entered.difference_update(atom for part in flat_values([value]) for atom in D.leaves(sum(part.dims, ())))
        if not entered:
            return
        here = (self.mode, self.node_name)
        for event in itertools.takewhile(lambda event: (event.mode, event.node) == here, reversed(self.events)):
            entered.difference_update(D.leaves(event.dim) if event.kind in DECIDING else ())
        for use in itertools.takewhile(lambda use: (use.mode, use.node) == here, reversed(self.uses)):
            entered.difference_update(D.leaves(use.part) if use.role == "consume" else ())
        for atom in entered:
            D.pin((atom,), f"the rule of {self.op} does not say what happens to it")

    def _ask_origin(self, node: fx.Node, value: Any) -> None:
        """Pins axes that a user's rule returns although no operand holds them and no size argument was declared."""
        inputs = flat_values(self.resolve([*node.args, *node.kwargs.values()]))
        known = {atom for part in inputs for atom in D.leaves(sum(part.dims, ()))}
        here = (self.mode, self.node_name)
        for literal in itertools.takewhile(lambda item: (item.mode, item.node) == here, reversed(self.literals)):
            known.update(atom for part in literal.parts for atom in D.leaves(part))
        for part in flat_values([value]):
            for atom in D.channels(sum(part.dims, ())):
                if atom not in known:
                    D.pin((atom,), f"the rule of {self.op} returns it but does not say where it comes from")

    def _overwritten(self, value: Any) -> Any:
        """Drops the source of a value that is written to in place: it is no longer just a moved tensor."""
        if not isinstance(value, Value) or value.source is None:
            return value
        self.carry(value)
        return Value(value.dims)

    def _input(self, meta: Any) -> Any:
        if not isinstance(meta, TensorMeta):
            return None
        return Value(tuple(D.new(size, extent=True) for size in meta.shape))

    def _opaque(self, node: fx.Node, meta: Any, why: str = "") -> Any:
        """Pins every axis that enters or leaves an op without a rule or with a wrong one."""
        for value in flat_values(self.resolve(list(node.args)) + self.resolve(list(node.kwargs.values()))):
            touched = D.channels(sum(value.dims, ()))
            if any(not atom.reasons for atom in touched):
                self.unknown[self.op] = self.unknown.get(self.op, 0) + 1
            D.pin(touched, why or f"no rule for op {self.op}")
        return fresh_like(meta)


def _fault(op: str, error: Exception) -> str:
    """Describes the exception of a user's rule in one line."""
    return f"the rule of {op} raised {type(error).__name__}: {one_line(error, empty='no message')}"


def _same_sizes(value: Any, meta: Any) -> bool:
    """Returns True if the dims that a rule returned have the sizes of the op's result."""
    if isinstance(meta, TensorMeta):
        return isinstance(value, Value) and value.shape == meta.shape
    if isinstance(meta, tuple):
        return isinstance(value, (list, tuple)) and len(value) == len(meta) and all(map(_same_sizes, value, meta))
    return True
