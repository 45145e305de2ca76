"""Grows dense chains: a new block reads the whole concatenation and appends a segment to it.

Existing layers read the new segment with zero weights only, so the function does not change. The segment itself is not
zero, so these weights get a gradient in the first step, and the new block in the second one (docs/growth.md 1.2:
exactly one side is zero). Per-channel operations between the concatenation and the weights that contract it grow with
it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import fx

from progc.analysis.chains import Chain
from progc.analysis.demand.contractions import Contraction, contraction
from progc.errors import TargetError
from progc.ir.operations import (
    HOMOGENEOUS,
    POINTWISE,
    RUNNING_NORMS,
    SHAPE_ONLY,
    SPATIAL,
    ZERO_PRESERVING,
    argument,
    describe,
    op_name,
    shape_of,
)
from progc.ir.program import MODES, Mode, Program
from progc.lift.entry import Split, TensorLift
from progc.lift.index_map import How, IndexMap
from progc.transforms.depth.insertion import Editor
from progc.transforms.depth.naming import BlockPlace, Naming

_CHANNELWISE = POINTWISE | HOMOGENEOUS | ZERO_PRESERVING | SPATIAL | {
    "relu6", "hardtanh", "hardsigmoid", "sigmoid", "softplus", "max_pool1d", "max_pool2d", "max_pool3d",
    "adaptive_max_pool2d",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Growth:
    """`count` segments of `width` new channels each, before position `at` of a dim of size `old`."""

    dim: int
    at: int
    width: int
    count: int
    old: int


Grown = dict[str, tuple[int, _Growth]]
"""Tensor name after growth to the dim that grows and how."""


def insert_dense(
    editor: Editor,
    chain: Chain,
    places: Sequence[BlockPlace],
    naming: Naming,
    lifts: dict[str, TensorLift],
    random: bool,
) -> None:
    """Inserts copies of the last block after it, and grows what reads the final concatenation.

    Args:
        lifts: by name after growth; must already hold those of inserted blocks and of every renamed tensor.

    Raises:
        TargetError: an operation after the concatenation does not accept more channels.
    """
    found = {mode: _insert(editor, mode, chain, places, naming) for mode in MODES}
    if found["train"] != found["eval"]:
        raise TargetError(f"chain {chain.name}: the train graph and the eval graph read its concatenation differently")
    inside, outside = found["eval"]
    for name, (dim, growth) in inside.items():
        # An inserted block may read the new segments: no old layer reads its output.
        lifts[name] = _grown(editor.program, lifts[name], dim, growth, "free" if random else "copy", contracts=False)
    for name, (dim, growth) in outside.items():
        lift = lifts.get(name, TensorLift(name, name))
        lift = dataclasses.replace(lift, init="random" if random else "copy")
        lifts[name] = _grown(editor.program, lift, dim, growth, "free", contracts=True)


def _grown(program: Program, lift: TensorLift, dim: int, growth: _Growth, how: How, contracts: bool) -> TensorLift:
    tensor = program.tensors[lift.source]
    if any(lift.dims) or tensor.shape[dim] != growth.old:
        raise TargetError(f"{lift.name} reads concatenations of several growing chains; grow them one after the other")
    # New per-channel values are copied from the segment before them.
    segment = IndexMap.leaf(0, growth.width, how, growth.at - growth.width)
    parts = [IndexMap.leaf(growth.at, growth.at), *[segment] * growth.count]
    if growth.at < growth.old:
        parts.append(IndexMap.leaf(growth.old - growth.at, growth.old - growth.at))
    index_map = IndexMap.concat(tuple(parts))
    return dataclasses.replace(
        lift,
        dims=tuple(index_map if i == dim else None for i in range(tensor.dim())),
        splits=(Split(dim),) if contracts and tensor.dim() > 1 else (),
    )


def _insert(
    editor: Editor, mode: Mode, chain: Chain, places: Sequence[BlockPlace], naming: Naming
) -> tuple[Grown, Grown]:
    """Edits one graph; returns what grows in inserted blocks and what grows after the final concatenation."""
    graph, last = editor.graphs[mode], len(chain.blocks) - 1
    head, final = chain.cats[mode][last], editor.now[mode][chain.cats[mode][last + 1]]
    (exit_name,) = (name for name in chain.carried[mode][last + 1] if name not in chain.carried[mode][last])
    exit_, dim, parts = editor.now[mode][exit_name], _cat_dim(final), _parts(final)
    if parts[-1] is not exit_:
        raise TargetError(f"chain {chain.name}: {describe(final)} does not append the last block's output at the end")
    nested = editor.now[mode][head] in parts
    width, old = shape_of(exit_)[dim], shape_of(editor.originals[mode][head])[dim]
    readers, whole, count = list(final.users), final, 0
    inside: Grown = {}
    for index, place in enumerate(places):
        if not place.copy:
            continue
        if not nested:
            with graph.inserting_before(final):
                whole = _joined(graph, final, parts)
        before = whole.next if nested else final
        label = naming.copy_labels[index]
        copies = editor.copy(mode, chain, place.source, naming.copies[index], label, {head: whole}, before)
        count += 1
        for reader in [user for user in whole.users if user in copies.values()]:
            _follow(reader, whole, _Growth(dim, old, width, count, old), inside)
        parts = [*([whole] if nested else parts), copies[exit_name]]
        if nested:
            with graph.inserting_before(before):
                whole = _joined(graph, final, parts)
    outside: Grown = {}
    size = shape_of(final)[dim]
    for reader in readers:
        _follow(reader, final, _Growth(dim, size, width, count, size), outside)
    if nested:
        final.replace_all_uses_with(whole, delete_user_cb=lambda user: user in set(readers))
    else:
        final.args = (parts, *final.args[1:])
    return inside, outside


def _joined(graph: fx.Graph, like: fx.Node, parts: Sequence[fx.Node]) -> fx.Node:
    node = graph.create_node("call_function", like.target, (list(parts), *like.args[1:]), dict(like.kwargs))
    node.meta = dict(like.meta)
    return node


def _parts(cat: fx.Node) -> list[fx.Node]:
    assert isinstance(cat.args[0], (list, tuple))
    return [part for part in cat.args[0] if isinstance(part, fx.Node)]


def _cat_dim(cat: fx.Node) -> int:
    dim = argument(cat, "dim", 0)
    assert isinstance(dim, int)
    return dim % len(shape_of(cat))


def _follow(node: fx.Node, source: fx.Node, growth: _Growth, grown: Grown) -> None:
    """Grows the parameters that read the new channels of `source` through `node`, down to where they are contracted.

    Raises:
        TargetError: an operation that neither treats channels one by one nor contracts them with a parameter.
    """
    name, here = op_name(node), growth
    if name in SHAPE_ONLY:
        return
    found = contraction(node) if node.op == "call_function" else None
    if name in RUNNING_NORMS and growth.dim == 1:
        for kind in ("weight", "bias", "running_mean", "running_var"):
            _grow_tensor(argument(node, kind), 0, growth, grown)
    elif name in _CHANNELWISE and node.args[0] is source and growth.dim < 2:
        pass
    elif name == "flatten" and argument(node, "start_dim") == growth.dim and argument(node, "end_dim") == -1:
        inner = int(torch.Size(shape_of(source)[growth.dim + 1 :]).numel())
        here = _Growth(growth.dim, growth.at * inner, growth.width * inner, growth.count, growth.old * inner)
    elif name == "mean" and found is not None and found.operands[0].labels[growth.dim] in found.out:
        here = dataclasses.replace(growth, dim=found.out.index(found.operands[0].labels[growth.dim]))
    elif name == "cat" and _cat_dim(node) == growth.dim:
        parts = _parts(node)
        offset = sum(shape_of(part)[growth.dim] for part in parts[: parts.index(source)])
        here = dataclasses.replace(growth, at=offset + growth.at, old=shape_of(node)[growth.dim])
    elif found is not None and argument(node, "groups", 1) == 1 and _contracted(found, source, growth, grown):
        return
    else:
        raise TargetError(f"{describe(node)} reads a concatenation that would grow, and does not accept more channels")
    for user in node.users:
        _follow(user, node, here, grown)


def _contracted(found: Contraction, source: fx.Node, growth: _Growth, grown: Grown) -> bool:
    """Whether the operation sums over the grown dim of `source` with a parameter, which then grows."""
    labels = {operand.node: operand.labels for operand in found.operands}
    if source not in labels or labels[source][growth.dim] in found.out:
        return False
    label = labels.pop(source)[growth.dim]
    partners = [(node, own.index(label)) for node, own in labels.items() if label in own]
    if len(partners) != 1 or partners[0][0].op != "get_attr":
        return False
    _grow_tensor(partners[0][0], partners[0][1], growth, grown)
    return True


def _grow_tensor(node: object, dim: int, growth: _Growth, grown: Grown) -> None:
    if not isinstance(node, fx.Node):
        return
    if node.op != "get_attr" or len(node.users) != 1 or grown.get(str(node.target), (dim, growth)) != (dim, growth):
        raise TargetError(f"{node} is used in several ways, so it cannot accept more channels")
    grown[str(node.target)] = (dim, growth)
