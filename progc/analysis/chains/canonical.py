"""The canonical form of a part of a graph: blocks with equal forms are isomorphic.

The walk follows graph order, which is execution order: two blocks traced from the same code have the same sequence of
operations. Three things are left out, because they may differ between corresponding blocks:

- noise that vanishes at rate 0: dropout, multiplication by a random mask (drop-path), and values replaced under a
  random mask (dropout of labels or stages);
- sizes: an int computed in the graph is replaced by its value at the example size (torch.export computes such an int
  once, and all blocks read it);
- soft literals: floats and the shifts of `roll`, whose values are recorded separately.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from progc.ir.norms import written
from progc.ir.operations import op_name
from progc.ir.program import Mode, Program, TensorMeta

_DROPOUT = frozenset({"dropout", "feature_dropout", "alpha_dropout"})
_RANDOM = frozenset({"rand", "rand_like", "randn", "randn_like", "empty", "empty_like", "new_empty"})


def meta_key(value: Any) -> Any:
    """Returns a hashable form of `meta["tensor"]`: shape and dtype of a tensor, tuples of them, ints."""
    if isinstance(value, TensorMeta):
        return (value.shape, str(value.dtype))
    if isinstance(value, tuple):
        return tuple(meta_key(item) for item in value)
    return value


class View:
    """One graph of a program with the lookup tables of the walks.

    Attributes:
        position: index of every node in graph order.
        alias: noise node to the node that it equals at rate 0.
        hidden: nodes that are not part of a canonical form: sizes, random masks, checks without users.
    """

    def __init__(self, program: Program, mode: Mode) -> None:
        self.program = program
        self.mode: Mode = mode
        self.nodes: list[fx.Node] = list(program.graphs[mode].nodes)
        self.position = {node: index for index, node in enumerate(self.nodes)}
        self.alias: dict[fx.Node, fx.Node] = {}
        self.hidden: set[fx.Node] = set()
        self._constants: dict[str, str] = {}
        random: set[fx.Node] = set()
        for node in self.nodes:
            if node.op != "call_function":
                continue
            name = op_name(node)
            inputs = [arg for arg in node.all_input_nodes if not self.is_size(arg)]
            if self.is_size(node) or (node.meta.get("tensor") is None and not node.users):
                self.hidden.add(node)
            elif name in _DROPOUT and isinstance(node.args[0], fx.Node):
                self.alias[node] = node.args[0]
            elif name in _RANDOM or (inputs and all(arg in random for arg in inputs)):
                random.add(node)
            elif name == "mul" and len(inputs) == 2 and (inputs[0] in random) != (inputs[1] in random):
                kept = inputs[1] if inputs[0] in random else inputs[0]
                self.alias[node] = kept
                if op_name(kept) == "div" and len(kept.users) == 1 and isinstance(kept.args[1], float):
                    self.alias[kept] = kept.all_input_nodes[0]
            elif name == "masked_fill" and inputs[0] not in random and node.args[1] in random:
                self.alias[node] = inputs[0]
        # Other random values (noise added to an input) are part of the computation of a block.
        used = {node for node in random if all(user in random or user in self.alias for user in node.users)}
        while True:
            kept_random = {node for node in used if all(user in used or user in self.alias for user in node.users)}
            if kept_random == used:
                break
            used = kept_random
        self.hidden |= used

    @staticmethod
    def is_size(node: fx.Node) -> bool:
        """Returns whether the value of a call node is an int, a float or a bool."""
        return node.op == "call_function" and isinstance(node.meta.get("tensor"), (int, float, bool))

    def constant(self, name: str) -> str:
        """Returns a digest of the value of a lifted constant."""
        if name not in self._constants:
            tensor = self.program.tensors[name].detach().cpu().contiguous()
            raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
            self._constants[name] = hashlib.sha256(raw).hexdigest()[:16]
        return self._constants[name]


@dataclasses.dataclass(frozen=True)
class Form:
    """The canonical form of a set of nodes.

    Attributes:
        key: hashable; equal keys mean isomorphic blocks.
        nodes: all call nodes of the block, in graph order.
        order: the nodes that are part of the key, in its order.
        slots: values from outside, in order of first use.
        tensors: names of the tensors of the block, in order of first use.
        soft: `(what, value)` of literals that may differ, in walk order.
        noise: `(what, rate)` of the noise that is left out, in graph order.
        exits: nodes whose value is read outside, with their place in `order`. The place is `-1 - k` if the value of
            slot k is passed through, and None for a value without a place (a random mask, a tensor of the block).
    """

    key: Any
    nodes: tuple[fx.Node, ...]
    order: tuple[fx.Node, ...]
    slots: tuple[fx.Node, ...]
    tensors: tuple[str, ...]
    soft: tuple[tuple[str, Any], ...]
    noise: tuple[tuple[str, float], ...]
    exits: tuple[tuple[fx.Node, int | None], ...]

    def at(self, place: int) -> fx.Node:
        """Returns the node whose value leaves the block at `place`; if noise follows it, the last noise node."""
        for node, found in self.exits:
            if found == place:
                return node
        return self.order[place] if place >= 0 else self.slots[-1 - place]


def canonical_form(view: View, nodes: Sequence[fx.Node], own: Callable[[str], str | None]) -> Form:
    """Computes the canonical form of a block.

    Args:
        view: the graph.
        nodes: the nodes of the block in graph order.
        own: returns the local name of a tensor of the block, and None for other tensors.
    """
    inside = set(nodes)
    walk = _Walk(view, inside, own)
    entries = []
    for node in nodes:
        if node in view.hidden:
            walk.note_noise(node)
            continue
        if node in view.alias:
            walk.note_noise(node)
            continue
        entries.append(walk.entry(node))
    exits = []
    for node in nodes:
        if view.is_size(node) or all(user in inside for user in node.users):
            continue
        place = None if node in view.hidden else walk.place(node)
        exits.append((node, place if isinstance(place, int) else None))
    metas = tuple(meta_key(slot.meta.get("tensor")) for slot in walk.slots)
    return Form(
        key=(tuple(entries), metas),
        nodes=tuple(nodes),
        order=tuple(walk.index),
        slots=tuple(walk.slots),
        tensors=tuple(walk.tensors),
        soft=tuple(walk.soft),
        noise=tuple(walk.noise),
        exits=tuple(exits),
    )


class _Walk:
    def __init__(self, view: View, inside: set[fx.Node], own: Callable[[str], str | None]) -> None:
        self.view = view
        self.inside = inside
        self.own = own
        self.index: dict[fx.Node, int] = {}
        self.slots: dict[fx.Node, int] = {}
        self.tensors: dict[str, int] = {}
        self.soft: list[tuple[str, Any]] = []
        self.noise: list[tuple[str, float]] = []

    def note_noise(self, node: fx.Node) -> None:
        name = op_name(node)
        rates = [arg for arg in node.args if isinstance(arg, float)]
        if name in _DROPOUT and rates:
            self.noise.append(("dropout probability", rates[0]))
        elif name.startswith("bernoulli") and rates:
            self.noise.append(("drop-path keep probability", rates[0]))
        elif name in ("add", "floor") and node in self.view.hidden and rates:
            self.noise.append(("drop-path keep probability", rates[0]))

    def entry(self, node: fx.Node) -> Any:
        name = op_name(node)
        args = tuple(self.value(name, arg) for arg in written(node))  # frozen normalisations compare equal to others
        kwargs = tuple((key, self.value(name, node.kwargs[key])) for key in sorted(node.kwargs))
        if name == "roll":
            self.soft.append(("window shift", node.args[1]))
            args = (args[0], "shift", *args[2:])
        self.index[node] = len(self.index)
        return (str(node.target), args, kwargs, node.op)

    def value(self, op: str, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.reference(value)
        if isinstance(value, (tuple, list)):
            return tuple(self.value(op, item) for item in value)
        if isinstance(value, float):
            self.soft.append((f"scalar of {op}", value))
            return "float"
        if value is None or isinstance(value, (int, str)):
            return value
        if isinstance(value, slice):
            return ("slice", *(self.value(op, part) for part in (value.start, value.stop, value.step)))
        return str(value)

    def reference(self, node: fx.Node) -> Any:
        if View.is_size(node):
            return node.meta["tensor"]
        place = self.place(node)
        if isinstance(place, int):
            return ("node", place) if place >= 0 else ("outside", -1 - place)
        return place

    def place(self, node: fx.Node) -> Any:
        """Returns the place in the order, `-1 - k` for slot k, or the key of a constant or a tensor of the block."""
        while node in self.inside and node in self.view.alias:
            node = self.view.alias[node]
        if node in self.index:
            return self.index[node]
        if node.op == "get_attr":
            name = str(node.target)
            spec = self.view.program.specs[name]
            meta = meta_key(node.meta.get("tensor"))
            if spec.kind == "constant":
                return ("constant", meta, self.view.constant(name))
            local = self.own(name)
            if local is not None:
                self.tensors.setdefault(name, len(self.tensors))
                return ("own", local, meta)
        return -1 - self.slots.setdefault(node, len(self.slots))
