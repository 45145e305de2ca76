"""Finds places where a row per sample can be added: values of both graphs, with their batch dim and channel dim."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from progc.analysis.axes import axes_of
from progc.analysis.axes import dims as D
from progc.ir.graphs import first_alias, infer
from progc.ir.notation import module_path, target_text
from progc.ir.operations import SHAPE_ONLY, op_name
from progc.ir.program import MODES, Mode, Program, TensorMeta


@dataclasses.dataclass(frozen=True)
class SitePlace:
    """One value that gets the row.

    Attributes:
        nodes: its name in each graph.
        batch: the dim of the samples.
        channel: the dim of the row's entries.
        rank: number of dims.
    """

    nodes: Mapping[Mode, str]
    batch: int
    channel: int
    rank: int


class Survey:
    """Answers the questions of the site search about the values of a program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes = {mode: {node.name: node for node in program.graphs[mode].nodes} for mode in MODES}

    @cached_property
    def twins(self) -> dict[str, str]:
        """Nodes of the eval graph to the equivalent nodes of the train graph; nodes without one are missing.

        Names do not decide this: an additional operation in train mode shifts the numbers in them.
        """
        by_key: dict[Mode, dict[tuple[Any, ...], list[str]]] = {}
        for mode in MODES:
            by_key[mode] = defaultdict(list)
            for node in self.program.graphs[mode].nodes:
                name = node.name if node.op == "placeholder" else target_text(node.target)
                key = (node.op, module_path(node), name, node.meta.get("tensor"))
                by_key[mode][key].append(node.name)
        return {
            own: other
            for key, names in by_key["eval"].items()
            if len(names) == len(by_key["train"].get(key, ()))
            for own, other in zip(names, by_key["train"][key], strict=True)
        }

    @cached_property
    def depends(self) -> dict[str, frozenset[str]]:
        """For the eval graph: the inputs whose contents a value depends on; reading a size does not count."""
        found: dict[str, frozenset[str]] = {}
        for node in self.program.graphs["eval"].nodes:
            if node.op == "placeholder":
                found[node.name] = frozenset((node.name,))
            elif op_name(node) in SHAPE_ONLY or not isinstance(node.meta.get("tensor"), (TensorMeta, tuple)):
                found[node.name] = frozenset()
            else:
                found[node.name] = frozenset().union(*(found[item.name] for item in node.all_input_nodes))
        return found

    @cached_property
    def learned(self) -> frozenset[str]:
        """For the eval graph: the values that depend on parameters."""
        found: set[str] = set()
        for node in self.program.graphs["eval"].nodes:
            own = node.op == "get_attr" and self.program.specs[str(node.target)].kind == "parameter"
            if own or any(item.name in found for item in node.all_input_nodes):
                found.add(node.name)
        return frozenset(found)

    @cached_property
    def batch(self) -> int | None:
        """Batch size of the example; None if no input has a dim."""
        leaves = zip(self.program.flat_example(), self.program.signature.batch_dims, strict=True)
        sizes = [(dynamic, leaf.shape[0]) for leaf, dynamic in leaves if isinstance(leaf, torch.Tensor) and leaf.dim()]
        return max(sizes, key=lambda item: item[0])[1] if sizes else None

    @cached_property
    def _doubled(self) -> Mapping[str, Any]:
        if not any(self.program.signature.batch_dims):
            return {}
        metas = infer(self.program, self.program.graphs["eval"], "eval", batch_factor=2)
        return {node.name: meta for node, meta in metas.items()}

    def batch_dim(self, name: str) -> int | None:
        """The dim of a value that counts samples, one entry each: it doubles when the batch size does."""
        meta = self.nodes["eval"][name].meta.get("tensor")
        if not isinstance(meta, TensorMeta):
            return None
        if not self._doubled:
            return 0 if meta.shape and meta.shape[0] == self.batch else None
        wider = self._doubled[name].shape
        grown = [dim for dim, (old, new) in enumerate(zip(meta.shape, wider, strict=True)) if new == 2 * old]
        fits = len(grown) == 1 and meta.shape[grown[0]] == self.batch
        return grown[0] if fits else None

    def channel_dim(self, name: str, batch: int) -> int | None:
        """The dim of a value that holds units of an axis, the last of several.

        For an image without such a dim, its channel dim.
        """
        value = axes_of(self.program).values.get(("eval", name))
        dims = getattr(value, "dims", ())
        found = [i for i, dim in enumerate(dims) if i != batch and D.channels(D.resolve(dim))]
        if len(found) == 1:
            return found[0]
        last = (1 if len(dims) > 3 else len(dims) - 1) if not found else found[-1]
        return last if 0 < len(dims) and last != batch else None

    def place(self, name: str) -> SitePlace | None:
        """The place of a value of the eval graph; None if it has no samples, no channels or no twin."""
        node = self.nodes["eval"][name]
        meta = node.meta.get("tensor")
        if not isinstance(meta, TensorMeta) or not meta.dtype.is_floating_point or name not in self.twins:
            return None
        batch = self.batch_dim(name)
        channel = None if batch is None else self.channel_dim(name, batch)
        if batch is None or channel is None or not node.users:
            return None
        place = SitePlace({"eval": name, "train": self.twins[name]}, batch, channel, len(meta.shape))
        return None if any(self._written_through(place, mode) for mode in MODES) else place

    def _written_through(self, place: SitePlace, mode: Mode) -> bool:
        """Whether the value shares memory with a value that is read elsewhere, and that memory is written later."""
        node = self.nodes[mode][place.nodes[mode]]
        root, shared = node, False
        while (base := first_alias(root, write=False)) is not None:
            root, shared = base, shared or len(base.users) > 1
        if not shared:
            return False
        order = {other: position for position, other in enumerate(self.nodes[mode].values())}
        same, todo = {root}, [root]
        while todo:
            for user in todo.pop().users:
                if first_alias(user, write=True) in same and order[user] > order[node]:
                    return True
                if first_alias(user, write=False) in same and user not in same:
                    same.add(user)
                    todo.append(user)
        return False
