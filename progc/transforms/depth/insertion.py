"""Copies the nodes of blocks to new places of both graphs, for one or several chains.

The program's own graphs stay unchanged. A copied block reads what its source reads, with three exceptions: values that
cross the boundary before it are those of its new place, its own parameters are new ones, and a value that another
insertion replaced is read in its replaced form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from torch import fx

from progc.analysis.chains import Chain
from progc.ir.graphs import copy_graph
from progc.ir.program import MODES, Mode, Program
from progc.transforms.depth.naming import BlockPlace, Naming, renamed_stack


@dataclasses.dataclass(frozen=True)
class Inserted:
    """One inserted block: its place, and in each graph its entry and exit values and its nodes by source name."""

    chain: Chain
    place: int
    source: int
    entries: Mapping[Mode, tuple[fx.Node, ...]]
    exits: Mapping[Mode, tuple[fx.Node, ...]]
    nodes: Mapping[Mode, Mapping[str, fx.Node]]


def units(blocks: Sequence[Inserted]) -> list[list[Inserted]]:
    """Inserted blocks grouped by period; the blocks of a chain are adjacent and in order."""
    found: list[list[Inserted]] = []
    for block in blocks:
        last = found[-1] if found else []
        if last and last[0].chain is block.chain and len(last) < block.chain.period:
            last.append(block)
        else:
            found.append([block])
    return found


def joined(unit: Sequence[Inserted]) -> Inserted:
    """Returns consecutive blocks as one."""
    nodes = {mode: {name: node for block in unit for name, node in block.nodes[mode].items()} for mode in MODES}
    return dataclasses.replace(unit[0], exits=unit[-1].exits, nodes=nodes)


class Editor:
    """The graphs of a program while blocks are inserted."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.graphs = {mode: copy_graph(program.graphs[mode]) for mode in MODES}
        self.originals = {mode: {node.name: node for node in program.graphs[mode].nodes} for mode in MODES}
        self.now = {mode: {node.name: node for node in self.graphs[mode].nodes} for mode in MODES}
        self.groups: dict[str, set[str]] = {}
        for name in program.tensors:
            self.groups.setdefault(program.tied.get(name, name), set()).add(name)

    def owned(self, chain: Chain, block: int) -> set[str]:
        """Canonical names of tensors that belong to this block alone; ties that reach outside stay shared."""
        tensors = set(chain.blocks[block].tensors)
        return {name for name in tensors if name in self.groups and self.groups[name] <= tensors}

    def insert(self, chain: Chain, places: Sequence[BlockPlace], naming: Naming) -> list[Inserted]:
        """Inserts a copy at every place that needs one; returns the inserted blocks in order."""
        found: list[dict[Mode, tuple[tuple[fx.Node, ...], tuple[fx.Node, ...], dict[str, fx.Node]]]] = [
            {} for _ in places
        ]
        for mode in MODES:
            live: list[fx.Node] = []
            own: list[fx.Node] = []
            for index, place in enumerate(places):
                if not place.copy:
                    live = [self.now[mode][name] for name in chain.carried[mode][place.source + 1]]
                    own = [self.now[mode][name] for name in chain.blocks[place.source].nodes[mode]]
                    continue
                position = {node: i for i, node in enumerate(self.graphs[mode].nodes)}
                before = max((*own, *live), key=lambda node: position[node]).next
                reads = dict(zip(chain.carried[mode][place.source], live, strict=True))
                label = naming.copy_labels[index]
                copies = self.copy(mode, chain, place.source, naming.copies[index], label, reads, before)
                names = chain.carried[mode][place.source + 1]
                exits = [copies.get(name, live[k]) for k, name in enumerate(names)]
                found[index][mode] = (tuple(live), tuple(exits), copies)
                self._hand_over(mode, live, exits, [*own, *copies.values()])
                live, own = exits, list(copies.values())
        return [
            Inserted(
                chain,
                index,
                place.source,
                {mode: found[index][mode][0] for mode in MODES},
                {mode: found[index][mode][1] for mode in MODES},
                {mode: found[index][mode][2] for mode in MODES},
            )
            for index, place in enumerate(places)
            if place.copy
        ]

    def rename(self, tensors: Mapping[str, str], labels: Mapping[str, str]) -> None:
        """Renames existing tensors and modules. Call it before `insert`, whose nodes have their final names."""
        for graph in self.graphs.values():
            for node in graph.nodes:
                if node.op == "get_attr":
                    node.target = tensors.get(str(node.target), str(node.target))
                if "nn_module_stack" in node.meta:
                    node.meta["nn_module_stack"] = renamed_stack(node.meta["nn_module_stack"], labels)

    def finish(self) -> dict[Mode, fx.Graph]:
        """The edited graphs, in an order in which every value is computed before it is read."""
        for graph in self.graphs.values():
            for node in reversed(list(graph.nodes)):
                # A size that a block passed to the next one, which now reads it from the new block.
                if node.op == "call_function" and not node.users and isinstance(node.meta.get("tensor"), int):
                    graph.erase_node(node)
        return {mode: sorted_graph(graph) for mode, graph in self.graphs.items()}

    def copy(
        self,
        mode: Mode,
        chain: Chain,
        source: int,
        names: Mapping[str, str],
        label: tuple[str, str],
        reads: Mapping[str, fx.Node],
        before: fx.Node,
    ) -> dict[str, fx.Node]:
        """Copies the nodes of block `source` before the node `before`.

        Args:
            names: old to new state names of the block's tensors.
            label: old and new module path of the block.
            reads: what the copy reads instead of the values of these names.

        Returns:
            The new nodes by the names of their sources.
        """
        graph, owned = self.graphs[mode], self.owned(chain, source)
        copies: dict[str, fx.Node] = {}
        tensors: dict[str, fx.Node] = {}

        def argument(node: fx.Node) -> fx.Node:
            if node.name in reads:
                return reads[node.name]
            if node.name in copies:
                return copies[node.name]
            if node.op == "get_attr" and node.target in owned:
                name = names[str(node.target)]
                if name not in tensors:
                    tensors[name] = graph.get_attr(name)
                    tensors[name].meta = dict(node.meta)
                return tensors[name]
            return self.now[mode][node.name]

        with graph.inserting_before(before):
            for name in chain.blocks[source].nodes[mode]:
                if name in reads:
                    continue
                original = self.originals[mode][name]
                args, kwargs = fx.node.map_arg((original.args, original.kwargs), argument)
                copy = graph.create_node(original.op, original.target, args, kwargs)
                copy.meta = {key: dict(v) if isinstance(v, dict) else v for key, v in original.meta.items()}
                copy.meta["nn_module_stack"] = renamed_stack(original.meta.get("nn_module_stack"), dict([label]))
                copies[name] = copy
        return copies

    def _hand_over(self, mode: Mode, old: Sequence[fx.Node], new: Sequence[fx.Node], keep: Iterable[fx.Node]) -> None:
        """Whatever read the old exits reads the new ones, but for the two blocks between them."""
        kept = set(keep)
        for before, after in zip(old, new, strict=True):
            if before is not after:
                before.replace_all_uses_with(after, delete_user_cb=lambda user: user not in kept)
                for name, node in self.now[mode].items():
                    if node is before:
                        self.now[mode][name] = after


def sorted_graph(graph: fx.Graph) -> fx.Graph:
    """The graph with every node after what it reads; nodes that already are stay in order."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    if all(position[source] < position[node] for node in graph.nodes for source in node.all_input_nodes):
        return graph
    done: set[fx.Node] = set()
    order: list[fx.Node] = []
    for node in graph.nodes:
        pending = [node]
        while pending:
            missing = [source for source in pending[-1].all_input_nodes if source not in done]
            if missing:
                pending.append(max(missing, key=lambda source: position[source]))
            elif (ready := pending.pop()) not in done:
                done.add(ready)
                order.append(ready)
    for node in order:
        next(reversed(graph.nodes)).append(node)
    return graph
