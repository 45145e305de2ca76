"""Writes a stage identifier into both graphs of a program, changes its stage, and removes it.

The graphs get these operations, for a table of K + 1 rows whose last row is the null row:

    both    row = embedding(table, stage)       the stage is an input, or new_full(input, [batch], k) for a fixed k
            value + row                         the row's dims are placed at the sample and channel dims of the value;
                                                a token is appended by cat
    train   masked_fill(stage, rand_like(stage) < p, K) replaces the stage
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from progc.ir.graphs import copy_graph, propagate
from progc.ir.operations import op_name
from progc.ir.program import MODES, Mode, Program, StageIdentifier, TensorSpec
from progc.transforms.sid.places import SitePlace

_aten = torch.ops.aten


def with_sid(program: Program, sid: StageIdentifier, table: nn.Parameter, places: Sequence[SitePlace]) -> Program:
    """Returns the program with the rows of `table` `[K + 1, width]` added at `places`."""
    result = program.replace(
        tensors={**program.tensors, sid.table: table},
        specs={**program.specs, sid.table: TensorSpec("parameter")},
        graphs={mode: copy_graph(program.graphs[mode]) for mode in MODES},
        sid=sid,
    )
    result = _with_input(result, sid) if sid.input is not None else result
    for mode in MODES:
        graph = result.graphs[mode]
        nodes = {node.name: node for node in graph.nodes}
        row = _row(result, graph, mode, sid, {nodes[place.nodes[mode]] for place in places})
        laid: dict[tuple[int, int, int], fx.Node] = {}
        for place in places:
            _join(graph, nodes[place.nodes[mode]], row, place, laid, sid.form)
    return _finished(result)


def with_stage(program: Program, sid: StageIdentifier) -> Program:
    """Returns the program with its identifier used as `sid` says: another fixed stage, an input, another dropout."""
    assert program.sid is not None and program.sid.table == sid.table
    table = program.tensors[sid.table]
    assert isinstance(table, nn.Parameter)
    plain, places = without_sid(program)
    return with_sid(plain, sid, table, places)


def without_sid(program: Program) -> tuple[Program, list[SitePlace]]:
    """Returns the program without its stage identifier, and the values that the row was added to.

    The function is that of a zero row.
    """
    sid = program.sid
    assert sid is not None
    result = program.replace(
        tensors={name: tensor for name, tensor in program.tensors.items() if name != sid.table},
        specs={name: spec for name, spec in program.specs.items() if name != sid.table},
        graphs={mode: copy_graph(program.graphs[mode]) for mode in MODES},
        sid=None,
    )
    found: dict[Mode, list[tuple[str, int, int, int]]] = {}
    for mode in MODES:
        graph = result.graphs[mode]
        look = _lookup(graph, sid.table)
        found[mode] = []
        for total, dims in _sums(look):
            value = total.args[0] if sid.form == "add" else total.args[0][0]  # type: ignore[index]
            assert isinstance(value, fx.Node)
            found[mode].append((value.name, *dims))
            total.replace_all_uses_with(value)
        _erase_dead(graph, look)
    if sid.input is not None:
        result = _without_input(result, sid.input)
    places = [
        SitePlace({"eval": own[0], "train": other[0]}, own[1], own[2], own[3])
        for own, other in zip(found["eval"], found["train"], strict=True)
    ]
    return _finished(result), places


def free_name(program: Program, wanted: str = "stage_embedding") -> str:
    """Returns a name for the table that no tensor and no module of the program has."""
    taken = {part for name in program.tensors for part in (name.split(".")[0], name)}
    number, name = 1, wanted
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    return f"{name}.weight"


def input_name(program: Program) -> str:
    """Returns a name for the stage's keyword input that no input of the network has."""
    placeholders = [node for node in program.graphs["eval"].nodes if node.op == "placeholder"]
    taken = {node.name for mode in MODES for node in program.graphs[mode].nodes} | set(program.example[1])
    taken |= {node.meta.get("argument", ("",))[0] for node in placeholders}
    return next(name for name in ("stage", "stage_index", "stage_identifier", "stage_number") if name not in taken)


# --- the sum --------------------------------------------------------------------------------------------------------


def _join(graph: fx.Graph, value: fx.Node, row: fx.Node, place: SitePlace, laid: dict[Any, fx.Node], form: str) -> None:
    """Adds the row to the value, or appends it as a token; all readers of the value read the result."""
    key = (place.batch, place.channel, place.rank)
    if key not in laid:
        laid[key] = _laid(graph, row, place)
    order = {node: position for position, node in enumerate(graph.nodes)}
    with graph.inserting_after(max(value, laid[key], key=lambda node: order[node])):
        if form == "token":
            (dim,) = {0, 1, 2} - {place.batch, place.channel}
            total = _call(graph, _aten.cat.default, ([value, laid[key]], dim), "stage_token")
        else:
            total = _call(graph, _aten.add.Tensor, (value, laid[key]), "stage_sum")
    total.meta = {key: dict(item) if isinstance(item, dict) else item for key, item in value.meta.items()}
    for note in ("argument", "batch_range"):
        total.meta.pop(note, None)
    value.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)


def _laid(graph: fx.Graph, row: fx.Node, place: SitePlace) -> fx.Node:
    """The row `[batch, width]` with its dims at those of the value, and dims of size 1 elsewhere."""
    after = row
    if place.channel < place.batch:
        after = _after(graph, after, _aten.transpose.int, (0, 1))
    for dim in range(place.rank):
        if dim not in (place.batch, place.channel):
            after = _after(graph, after, _aten.unsqueeze.default, (dim,))
    return after


def _after(graph: fx.Graph, node: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
    with graph.inserting_after(node):
        return _call(graph, target, (node, *args), "stage_view")


def _call(graph: fx.Graph, target: Any, args: tuple[Any, ...], name: str, **kwargs: Any) -> fx.Node:
    return graph.create_node("call_function", target, args, kwargs, name=name)


# --- the row --------------------------------------------------------------------------------------------------------


def _row(program: Program, graph: fx.Graph, mode: Mode, sid: StageIdentifier, values: set[fx.Node]) -> fx.Node:
    """The row of each sample, `[batch, width]`; it is computed after the first of `values`.

    Not earlier: an axis is named after the first tensor that makes it, and the names must not change.
    """
    calls = [node for node in graph.nodes if node.op in ("call_function", "output")]
    first = next((node.next for node in calls if node in values), calls[0])
    dropping = mode == "train" and sid.dropout > 0
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_before(first):
        table = graph.get_attr(sid.table)
        if sid.input is None:
            sampled = placeholders[_batched(program)]
            batch = _call(graph, _aten.sym_size.int, (sampled, 0), "stage_batch")
            index = _call(
                graph, _aten.new_full.default, (sampled, [batch], sid.stage), "stage_fixed", dtype=torch.int64
            )
        else:
            index = placeholders[-1]
        if dropping:
            drawn = _call(graph, _aten.rand_like.default, (index,), "stage_drawn", dtype=torch.float32)
            dropped = _call(graph, _aten.lt.Scalar, (drawn, sid.dropout), "stage_dropped")
            index = _call(graph, _aten.masked_fill.Scalar, (index, dropped, sid.null), "stage_index")
        return _call(graph, _aten.embedding.default, (table, index), "stage_row")


def _batched(program: Program) -> int:
    """Which input counts the samples: one with a dynamic batch if there is one."""
    leaves = list(zip(program.flat_example(), program.signature.batch_dims, strict=True))
    able = [i for i, (leaf, _) in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    return max(able, key=lambda i: (leaves[i][1], -i))


def _lookup(graph: fx.Graph, table: str) -> fx.Node:
    """The node whose value is the row."""
    source = next(node for node in graph.nodes if node.op == "get_attr" and node.target == table)
    (row,) = source.users
    return row


def _sums(row: fx.Node) -> list[tuple[fx.Node, tuple[int, int, int]]]:
    """Where the row is added or appended, in graph order, with the dims of samples, of channels, and the rank."""
    found: list[tuple[fx.Node, tuple[int, int, int]]] = []
    todo: list[tuple[fx.Node, tuple[int | None, ...]]] = [(row, (0, 1))]
    while todo:
        node, dims = todo.pop()
        for user in node.users:
            if op_name(user) in ("add", "cat"):
                found.append((user, (dims.index(0), dims.index(1), len(dims))))
            elif op_name(user) == "transpose":
                todo.append((user, dims[::-1]))
            else:
                dim = user.args[1]
                assert op_name(user) == "unsqueeze" and isinstance(dim, int)
                todo.append((user, (*dims[:dim], None, *dims[dim:])))
    order = {node: position for position, node in enumerate(row.graph.nodes)}
    return sorted(found, key=lambda item: order[item[0]])


def _erase_dead(graph: fx.Graph, last: fx.Node) -> None:
    """Removes nodes that nothing reads any more: views and sums of the row, and everything that made it."""
    made = {last}
    for node in graph.nodes:
        if node.op == "call_function" and any(item in made for item in node.all_input_nodes):
            made.add(node)
    todo = [last]
    while todo:
        for item in todo.pop().all_input_nodes:
            if item not in made:
                made.add(item)
                todo.append(item)
    for node in reversed(list(graph.nodes)):
        if node in made and not node.users and node.op != "placeholder" and node.op != "output":
            graph.erase_node(node)


# --- the input ------------------------------------------------------------------------------------------------------


def _with_input(program: Program, sid: StageIdentifier) -> Program:
    """The program with one more keyword input at the end, int64 `[batch]`."""
    assert sid.input is not None
    args, kwargs = program.example
    sampled = _batched(program)
    leaf, dynamic = program.flat_example()[sampled], program.signature.batch_dims[sampled]
    stages = torch.arange(leaf.shape[0], device=leaf.device) % sid.stages
    example = (args, {**kwargs, sid.input: stages})
    for graph in program.graphs.values():
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        with graph.inserting_after(placeholders[-1]):
            node = graph.placeholder(sid.input)
        assert node.name == sid.input
        node.meta = {"argument": (sid.input, -1)}
        if "batch_range" in placeholders[sampled].meta:
            node.meta["batch_range"] = placeholders[sampled].meta["batch_range"]
    signature = dataclasses.replace(
        program.signature,
        in_spec=pytree.tree_structure(example),
        shapes=(*program.signature.shapes, tuple(stages.shape)),
        batch_dims=(*program.signature.batch_dims, dynamic),
    )
    return program.replace(example=example, signature=signature)


def _without_input(program: Program, name: str) -> Program:
    args, kwargs = program.example
    example = (args, {key: value for key, value in kwargs.items() if key != name})
    for graph in program.graphs.values():
        node = next(node for node in graph.nodes if node.op == "placeholder" and node.name == name)
        graph.erase_node(node)
    signature = dataclasses.replace(
        program.signature,
        in_spec=pytree.tree_structure(example),
        shapes=program.signature.shapes[:-1],
        batch_dims=program.signature.batch_dims[:-1],
    )
    return program.replace(example=example, signature=signature)


def _finished(program: Program) -> Program:
    for mode in MODES:
        propagate(program, program.graphs[mode], mode)
    return program
