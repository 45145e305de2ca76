"""Divides a network into units of training: its blocks in execution order, and what is before, between and after them.

Blocks are those of the outermost chains, and the numbered modules in the same row that do not belong to the chain, such
as the first block of a stage that changes the width. Positions come from the data flow, not from names: the stem is
everything that the first block's inputs are computed from.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from functools import cached_property

from torch import fx

from progc.analysis.chains import Chain, chains_of
from progc.ir.program import Program


@dataclasses.dataclass(frozen=True)
class Unit:
    """One block: its label, its chain, and the canonical names of the parameters that belong to it alone."""

    label: str
    chain: str
    parameters: frozenset[str]


class Blocks:
    """The blocks of a program and the parameters around them, by canonical name; read from the train graph.

    Attributes:
        units: the blocks in execution order.
        stem: parameters outside of blocks that the first block depends on: patch embedding, positions, conditioning.
        inside: parameters of all blocks.
    """

    def __init__(self, program: Program, chains: Sequence[Chain] | None = None) -> None:
        """Uses `chains`, which share no node; by default the outermost ones."""
        self.program = program
        self._chains = chains_of(program).outermost("train") if chains is None else list(chains)
        self._readers: dict[str, list[fx.Node]] = {}
        self._position: dict[fx.Node, int] = {}
        for index, node in enumerate(program.graphs["train"].nodes):
            self._position[node] = index
            if node.op == "get_attr":
                self._readers[str(node.target)] = list(node.users)
        self.units = tuple(sorted(self._find(), key=self._start))
        self.inside = frozenset().union(*(unit.parameters for unit in self.units))
        self.stem = self._before(self.units[:1])

    def between(self, count: int) -> frozenset[str]:
        """Parameters outside of blocks and stem that one of the first `count` blocks depends on."""
        return self._before(self.units[:count]) - self.stem

    @cached_property
    def behind(self) -> frozenset[str]:
        """Parameters outside of blocks and stem that only the outputs depend on, not the last block."""
        rest = {name for name, _ in self.program.parameters()} - self.inside
        return frozenset(rest - self.stem - self._before(self.units)) if self.units else frozenset()

    def around(self, node: fx.Node) -> frozenset[str]:
        """Parameters of the block that contains a node of the train graph; empty outside of blocks."""
        for chain in chains_of(self.program):
            for block in chain.blocks:
                if node.name in block.nodes["train"]:
                    own = frozenset(block.tensors)
                    return next((unit.parameters for unit in self.units if unit.parameters & own), frozenset())
        return frozenset()

    def _find(self) -> list[Unit]:
        units = []
        groups: dict[str, set[str]] = {}
        for name, spec in self.program.specs.items():
            if spec.kind == "parameter":
                groups.setdefault(self.program.tied.get(name, name), set()).add(name)
        # One container may hold several chains: a block of another chain is no sibling, and a sibling counts once.
        placed = {block.label: set(block.tensors) for chain in self._chains for block in chain.blocks}
        for chain in self._chains:
            pieces = {block.label: set(block.tensors) for block in chain.blocks}
            siblings = _siblings(chain, [name for names in groups.values() for name in names], placed)
            placed |= siblings
            for label, names in {**pieces, **siblings}.items():
                # A parameter tied to another part of the network does not belong to a block alone.
                own = frozenset(canonical for canonical, aliases in groups.items() if aliases <= names)
                if own:
                    units.append(Unit(label, chain.name, own))
        return units

    def _start(self, unit: Unit) -> int:
        readers = self._nodes([unit])
        return min((self._position[node] for node in readers), default=len(self._position))

    def _nodes(self, units: Iterable[Unit]) -> set[fx.Node]:
        return {node for unit in units for name in unit.parameters for node in self._readers.get(name, [])}

    def _before(self, units: tuple[Unit, ...]) -> frozenset[str]:
        """Parameters outside of blocks that values in these blocks are computed from."""
        seen = self._nodes(units)
        todo = list(seen)
        found = set()
        while todo:
            node = todo.pop()
            if node.op == "get_attr":
                found.add(str(node.target))
            for source in node.all_input_nodes:
                if source not in seen and not isinstance(source.meta.get("tensor"), int):
                    seen.add(source)
                    todo.append(source)
        return frozenset(name for name in found - self.inside if self.program.specs[name].kind == "parameter")


def _siblings(chain: Chain, names: list[str], members: dict[str, set[str]]) -> dict[str, set[str]]:
    """Numbered neighbours of the blocks in the same container: label to the names of their parameters."""
    if chain.source != "modules" or not chain.pattern.endswith("#."):
        return {}
    prefix = chain.pattern[:-2]
    found: dict[str, set[str]] = {}
    for name in names:
        match = re.match(re.escape(prefix) + r"([0-9]+)\.", name)
        if match and not any(name in own for own in members.values()):
            found.setdefault(prefix + match[1], set()).add(name)
    return {label: own for label, own in found.items() if label not in members}
