"""Assigns noise, sizes and counters to blocks, and maps nodes of the eval graph to nodes of the train graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from progc.analysis.chains.canonical import View
from progc.analysis.chains.names import own_names
from progc.analysis.chains.repeats import label, sequence
from progc.ir.program import Mode


def train_nodes(views: Mapping[Mode, View]) -> dict[fx.Node, fx.Node]:
    """Maps eval nodes to train nodes by walking both sequences in parallel; stops at the first difference.

    Operations of the train graph that nothing reads (the batch counter of BatchNorm) are skipped.
    """
    view = views["train"]
    train = [node for node in sequence(view, set()) if node is not None]
    mapping: dict[fx.Node, fx.Node] = {}
    k = 0
    for node in (node for node in sequence(views["eval"], set()) if node is not None):
        wanted = label(views["eval"], node, both_modes=True)
        while k < len(train) and label(view, train[k], both_modes=True) != wanted and not train[k].users:
            k += 1
        if k == len(train) or label(view, train[k], both_modes=True) != wanted:
            break
        mapping[node] = train[k]
        k += 1
    return mapping


def filled_blocks(view: View, blocks: Sequence[Sequence[fx.Node]]) -> list[list[fx.Node]]:
    """Adds to each block the noise, sizes and unread operations between its first node and the next block."""
    out: list[list[fx.Node]] = []
    starts = [view.position[block[0]] for block in blocks]
    for b, block in enumerate(blocks):
        inside = set(block)
        last = view.position[block[-1]]
        stop = starts[b + 1] if b + 1 < len(blocks) else last + 1
        if b + 1 == len(blocks):
            while stop < len(view.nodes) and _noise_on(view, view.nodes[stop], inside | set(view.nodes[last:stop])):
                stop += 1
        inside |= {node for node in view.nodes[starts[b] : stop] if node.op == "call_function"}
        out.append(completed(view, sorted(inside, key=view.position.__getitem__)))
    _place_leading_noise(view, out)
    return out


def _place_leading_noise(view: View, blocks: list[list[fx.Node]]) -> None:
    """Adds noise at the start of a block (dropout on its input), which precedes its first operation, to the block.

    Noise at the end of the block before is different: the block does not also read its source directly.
    """
    for b, block in enumerate(blocks):
        inside = set(block)
        reads = {arg for node in block for arg in node.all_input_nodes if arg not in inside}
        lead = [
            node
            for node in reads
            if node in view.alias and view.alias[node] in reads and all(user in inside for user in node.users)
        ]
        if lead:
            if b:
                blocks[b - 1] = [node for node in blocks[b - 1] if node not in lead]
            blocks[b] = sorted([*block, *lead], key=view.position.__getitem__)


def place_unread(view: View, blocks: list[list[fx.Node]], names: Sequence[Mapping[str, str]]) -> None:
    """Moves operations that nothing reads (counters) into the block that owns the neighbouring tensors."""
    home: dict[str, int | None] = {}
    for index, known in enumerate(names):
        for parent in {name.rpartition(".")[0] for name in known} - {""}:
            home[parent] = index if parent not in home else None
    for node in view.nodes:
        if node.op != "call_function" or node.users or node in view.hidden:
            continue
        found = {home.get(name.rpartition(".")[0]) for name in own_names(node)}
        b = found.pop() if len(found) == 1 else None
        if b is not None and node not in blocks[b]:
            for block in blocks:
                if node in block:
                    block.remove(node)
            blocks[b] = sorted([*blocks[b], node], key=view.position.__getitem__)


def _noise_on(view: View, node: fx.Node, inside: set[fx.Node]) -> bool:
    if node.op != "call_function":
        return node.op == "get_attr"
    return node in view.hidden or (node in view.alias and view.alias[node] in inside)


def completed(view: View, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Returns the nodes of a block, with nodes that have no module stack and without sizes that other blocks read.

    A call node without a module stack belongs to the block if all its readers do, and it reads either a value of the
    block or no computed value.
    """
    inside = set(nodes)
    if not inside:
        return []
    low = min(view.position[node] for node in inside)
    high = max(view.position[node] for node in inside)
    if high - low + 1 > len(inside):
        for node in reversed(view.nodes[low:high]):
            if node in inside or node.op != "call_function" or not node.users:
                continue
            if all(user in inside for user in node.users):
                reads = [arg for arg in node.all_input_nodes if arg.op == "call_function" and not View.is_size(arg)]
                if not reads or any(arg in inside for arg in reads):
                    inside.add(node)
    shared_sizes = {node for node in inside if View.is_size(node) and any(user not in inside for user in node.users)}
    return sorted(inside - shared_sizes, key=view.position.__getitem__)
