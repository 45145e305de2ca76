"""Graph utilities for passes: copies, shapes, fingerprints, aliases, and sizes written into graphs.

A pass works on `copy_graph(program.graphs[mode])`, edits the copy, builds its new program and calls `propagate` on it,
which updates `node.meta["tensor"]` for the next pass.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import operator
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from progc.errors import VerifyError, one_line
from progc.ir.devices import captured_device
from progc.ir.layouts import Evaluator, Layout
from progc.ir.notation import argument_text, call_text, meta_text, module_path, tensor_text
from progc.ir.program import MODES, Mode, Program, TensorMeta


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """Returns a copy of a graph, with the same names and metadata, that can be edited without changing `graph`.

    Every node, the output node included, gets its own `meta` dict, and dicts inside it (the module stack)
    are copied one level deep; tensors are shared, since graphs only name them.
    """
    copy = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        twin = copy.node_copy(node, lambda n: env[n])
        assert twin.name == node.name, f"{node.name} became {twin.name}"
        twin.meta = {key: dict(value) if isinstance(value, dict) else value for key, value in node.meta.items()}
        env[node] = twin
    return copy


def shape(node: fx.Node) -> tuple[int, ...]:
    """Returns the shape of a tensor-valued node at the example size; `node.meta["tensor"]` must be a `TensorMeta`."""
    meta = node.meta["tensor"]
    assert isinstance(meta, TensorMeta), f"{node.name} is not one tensor: {meta_text(meta)}"
    return meta.shape


def used_names(graph: fx.Graph) -> set[str]:
    """Returns the canonical names of the tensors (parameters, buffers, constants) that the graph reads."""
    return {str(node.target) for node in graph.nodes if node.op == "get_attr"}


def propagate(program: Program, graph: fx.Graph, mode: Mode) -> None:
    """Recomputes `meta["tensor"]` of every node of `graph` at the example sizes.

    Args:
        program: the tensors (their shapes, strides and dtypes) and the example inputs.
        graph: edited in place: only `meta["tensor"]` changes; the output node gets a tuple, one per output.
        mode: "train" or "eval", for messages.

    Raises:
        VerifyError: a node cannot be computed from its inputs; the message gives the node and their shapes.
    """
    for node, meta in infer(program, graph, mode).items():
        node.meta["tensor"] = meta


def infer(program: Program, graph: fx.Graph, mode: Mode, batch_factor: int = 1) -> dict[fx.Node, Any]:
    """Computes the metadata of every node by running `graph` on fake tensors: nothing is allocated or changed.

    Args:
        batch_factor: multiplies the batch size of the example where it is dynamic.

    Raises:
        VerifyError: see `propagate`.
    """
    metas: dict[fx.Node, Any] = {}
    env: dict[fx.Node, Any] = {}
    with Evaluator() as evaluator:
        inputs = iter(_inputs(program, evaluator, batch_factor))
        for node in graph.nodes:
            if node.op == "output":
                metas[node] = fx.node.map_arg(node.args[0], lambda n: metas[n])
            else:
                env[node] = _evaluate(program, node, env, inputs, mode, evaluator)
                metas[node] = _meta_of(env[node])
    return metas


def _evaluate(
    program: Program,
    node: fx.Node,
    env: dict[fx.Node, Any],
    inputs: Iterator[Any],
    mode: Mode,
    evaluator: Evaluator,
) -> Any:
    if node.op == "placeholder":
        missing = object()
        value = next(inputs, missing)
        if value is missing:
            raise VerifyError(
                f"{mode} graph, node `{node.name}`: this program takes {len(program.flat_example())} inputs, "
                "the graph has more placeholders"
            )
        return value
    if node.op == "get_attr":
        if node.target not in program.tensors:
            raise VerifyError(f"{mode} graph, node `{node.name}`: the program has no tensor `{node.target}`")
        tensor = program.tensors[str(node.target)]
        return dataclasses.replace(Layout.of(tensor), device=captured_device(program, tensor))
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: env[n])
    if node.op != "call_function":
        raise VerifyError(
            f"{mode} graph, node `{node.name}`: expected placeholder, get_attr, call_function or output, "
            f"found {node.op}"
        )
    try:
        return evaluator.call(node.target, args, kwargs)
    except Exception as error:  # kernels raise many types; the node and its operand shapes explain all of them
        reason = one_line(error)
        where = f" in {module_path(node)}" if module_path(node) else ""
        operands = ", ".join(f"{argument_text(n)} {meta_text(_meta_of(env[n]))}" for n in node.all_input_nodes)
        raise VerifyError(
            f"{mode} graph, node `{node.name}`{where}: {call_text(node)} cannot take {operands or 'these arguments'}: "
            f"{reason}"
        ) from error


def _inputs(program: Program, evaluator: Evaluator, batch_factor: int) -> list[Any]:
    values = [Layout.of(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in program.flat_example()]
    for index, dynamic in enumerate(program.signature.batch_dims):
        if batch_factor != 1 and dynamic:
            repeats = [batch_factor, *[1] * (len(values[index].shape) - 1)]
            values[index] = evaluator.call(torch.ops.aten.repeat.default, (values[index], repeats), {})
    return values


def _meta_of(value: Any) -> Any:
    if isinstance(value, Layout):
        return TensorMeta(value.shape, value.dtype)
    if isinstance(value, (tuple, list)):
        return tuple(_meta_of(item) for item in value)
    if isinstance(value, (torch.SymInt, int)):
        return int(value)
    return None


def fingerprint(program: Program) -> str:
    """Returns a sha256 (hex) of everything in a program except the values of its tensors; the same in every process.

    It covers both graphs with the names and metadata of their nodes; names, kinds, ties, shapes, dtypes and
    `requires_grad` of the tensors; structure, shapes, batch dims and constants of the inputs; structure of the outputs.
    """
    digest = hashlib.sha256()
    for mode in MODES:
        digest.update(f"{mode}\n".encode())
        for node in program.graphs[mode].nodes:
            call = [node.meta.get(key) for key in ("argument", "batch_range")] if node.op == "placeholder" else ""
            digest.update(
                f"{node.op} {node.name}: {meta_text(node.meta.get('tensor'))} = {call_text(node)} "
                f"# {module_path(node)} {call}\n".encode()
            )
    for name, tensor in program.tensors.items():
        spec, learns = program.specs.get(name), "trainable" if tensor.requires_grad else ""
        digest.update(f"{name} {tensor_text(tensor)} {spec} {program.tied.get(name, '')} {learns}\n".encode())
    signature = program.signature
    outputs = [_spec_text(signature.out_specs[mode]) for mode in MODES]
    constants = [None if isinstance(leaf, torch.Tensor) else repr(leaf) for leaf in program.flat_example()]
    dynamic = f"{signature.batch_dims} {signature.free_dims}"
    digest.update(f"{_spec_text(signature.in_spec)} {signature.shapes} {dynamic} {constants}\n".encode())
    digest.update(f"{outputs}\n".encode())
    return digest.hexdigest()


def _spec_text(spec: pytree.TreeSpec) -> str:
    """A structure of inputs or outputs as text, without memory addresses."""
    return " ".join(re.sub(r" at 0x[0-9a-f]+", "", repr(spec)).split())


def reshape_groups(old: list[int], wanted: list[int]) -> list[tuple[range, range]]:
    """Splits a reshape into the smallest runs of old and new dims with equal products.

    Args:
        old: sizes before the reshape.
        wanted: sizes after it.

    Returns:
        Pairs of index ranges into `old` and `wanted`. Factors are redistributed within a pair only.
    """
    found = []
    i = j = 0
    while i < len(old) or j < len(wanted):
        first_i, first_j = i, j
        left = right = 1
        while (left != right or (i == first_i and j == first_j)) and (i < len(old) or j < len(wanted)):
            if (left <= right and i < len(old)) or j >= len(wanted):
                left *= old[i]
                i += 1
            else:
                right *= wanted[j]
                j += 1
        found.append((range(first_i, i), range(first_j, j)))
    return found


def written_to(graph: fx.Graph) -> set[str]:
    """Returns the names of the nodes whose memory an operation of the graph writes to, directly or through a view."""
    found: set[str] = set()
    views: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        source = first_alias(node, write=False)
        if source is not None:
            views.setdefault(source, []).append(node)
    todo = [base for node in graph.nodes for base in aliases(node, write=True)]
    while todo:
        node = todo.pop()
        if node.name not in found:
            found.add(node.name)
            todo.extend(views.get(node, ()))
            base = first_alias(node, write=False)
            todo.extend([base] if base is not None else [])
    return found


def first_alias(node: fx.Node, write: bool) -> fx.Node | None:
    """Returns the first operand that a node writes to (`write`), or that its result is a view of."""
    return next(aliases(node, write), None)


def aliases(node: fx.Node, write: bool) -> Iterator[fx.Node]:
    """Yields the operands that a node writes to (`write`), or that its result may be a view of."""
    if node.target is operator.getitem and not write:
        yield from (value for value in node.args[:1] if isinstance(value, fx.Node))
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and (argument.alias_info.is_write or not write):
            given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            for value in given if isinstance(given, (list, tuple)) else [given]:
                if isinstance(value, fx.Node):
                    yield value


def stale_reads(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yields (writer, reader): the reader sees an in-place write through an alias from before the write."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    family: dict[fx.Node, list[fx.Node]] = {}
    writes = []
    for node in graph.nodes:
        base = first_alias(node, write=False)
        if base is not None:
            members = family.setdefault(base, [base])
            members.append(node)
            family[node] = members
        target = first_alias(node, write=True)
        if target is not None:
            writes.append((node, target))
    for node, target in writes:
        for member in family.get(target, [target]):
            if order[member] < order[node]:
                for reader in member.users:
                    if order[reader] > order[node]:
                        yield node, reader


def set_literal(node: fx.Node, path: tuple[int | str, ...], old: int, new: int | float) -> None:
    """Replaces the argument at `path` (position or keyword, then indices into lists), in place.

    Args:
        node: the operation.
        path: where the argument is.
        old: the present size, at the batch size of the example.
        new: the new size. Where the argument is a node (a size that depends on the batch), it is multiplied by
            new / old.
    """
    first, rest = path[0], path[1:]
    if isinstance(first, int):
        args = list(node.args)
        args[first] = _replaced(node, args[first], rest, old, new)
        node.args = tuple(args)
    else:
        node.kwargs = {**node.kwargs, first: _replaced(node, node.kwargs[first], rest, old, new)}


def _replaced(reader: fx.Node, argument: Any, path: tuple[int | str, ...], old: int, new: int | float) -> Any:
    if not path:
        return _scaled(argument, reader, old, int(new)) if isinstance(argument, fx.Node) else new
    items = list(argument)
    items[path[0]] = _replaced(reader, items[path[0]], path[1:], old, new)  # type: ignore[index]
    return items


def _scaled(size: fx.Node, reader: fx.Node, old: int, new: int) -> fx.Node:
    """A size that also depends on the batch, times new / old: `batch * heads` is computed next to the old node."""
    graph = size.graph
    if size.target is operator.mul and sum(isinstance(arg, int) for arg in size.args) == 1:
        args = tuple(arg if isinstance(arg, fx.Node) else arg * new // old for arg in size.args)  # type: ignore[operator]
        exact = all(isinstance(arg, fx.Node) or (arg * new) % old == 0 for arg in size.args)  # type: ignore[operator]
    else:
        exact, args = False, ()
    earlier = itertools.takewhile(lambda node: node is not reader, graph.nodes)
    known = [node for node in earlier if node.target is operator.mul and node.args == args and node is not size]
    if exact and known:
        return known[0]
    with graph.inserting_after(size):
        if exact:
            made = graph.call_function(operator.mul, args)
            made.meta = dict(size.meta)
            return made
        product = graph.call_function(operator.mul, (size, new))
    with graph.inserting_after(product):
        made = graph.call_function(operator.floordiv, (product, old))
    product.meta, made.meta = dict(size.meta), dict(size.meta)
    return made


def drop_unread_sizes(graph: fx.Graph) -> None:
    """Removes products of sizes that have no users left, in place."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and node.target is operator.mul and not node.users:
            graph.erase_node(node)
