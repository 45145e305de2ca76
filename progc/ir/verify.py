"""The verifier: checks that a program is valid, and that a pass preserved what it must preserve.

The pass manager runs it before the first and after every pass, on the result. Four groups of checks:

- structure: well-formed graphs, tensors that exist under canonical names, ties, inputs as in the signature,
  and, compared with the program before the pass, no new dead operation and no new unread parameter;
- shapes: every node is recomputed on fake tensors and compared with what the graph records (fx's own
  `Graph.lint` accepts a weight of the wrong shape), at a second batch size too where the batch is dynamic;
- modes and outputs: train and eval graphs read the same parameters, outputs keep number, shape and dtype;
- memory: no two parameters share elements without being tied.

A message names the pass, the node, what was expected and what was found.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from progc.errors import VerifyError, one_line
from progc.ir.graphs import infer, used_names
from progc.ir.notation import call_text, meta_text, module_path, target_text
from progc.ir.program import MODES, Mode, Program, TensorMeta


def verify(program: Program, pass_name: str | None = None, before: Program | None = None) -> None:
    """Checks a program.

    Args:
        program: the program.
        pass_name: the pass that made the program, for the message.
        before: the program before that pass; without it, checks that compare the two are left out.

    Raises:
        VerifyError: the first problem found.
    """
    blame = f"after {pass_name}: " if pass_name else ""
    for check in (_tensors, _graphs, _shapes):
        for problem in check(program):
            raise VerifyError(blame + problem)
    if before is not None:
        for relative in (_outputs, _ties, _memory, _unread, _modes, _dead, _batch):
            for problem in relative(program, before):
                raise VerifyError(blame + problem)


def _tensors(program: Program) -> Iterator[str]:
    """Checks that every tensor has a matching spec, and every alias is the same object as its canonical tensor."""
    for name in sorted(program.tensors.keys() ^ program.specs.keys()):
        have, lack = ("tensor", "spec") if name in program.tensors else ("spec", "tensor")
        yield f"`{name}` has a {have} and no {lack}; expected both"
    for alias, canonical in program.tied.items():
        for name in (alias, canonical):
            if name not in program.tensors:
                yield f"`{alias}` is tied to `{canonical}`, but the program has no tensor `{name}`"
        if canonical in program.tied:
            yield f"`{alias}` is tied to `{canonical}`, itself an alias; expected `{program.tied[canonical]}`"
        if program.tensors[alias] is not program.tensors[canonical]:
            yield f"`{alias}` is tied to `{canonical}`: expected one tensor under both names, found two"
    first: dict[int, str] = {}
    for name, tensor in program.tensors.items():
        is_parameter = isinstance(tensor, nn.Parameter)
        if is_parameter != (program.specs[name].kind == "parameter"):
            found = "nn.Parameter" if is_parameter else type(tensor).__name__
            yield f"`{name}`: expected a {program.specs[name].kind}, found {found}"
        if name not in program.tied and first.setdefault(id(tensor), name) != name:
            yield f"`{name}` and `{first[id(tensor)]}` are one tensor; expected `{name}` to be tied"


def _graphs(program: Program) -> Iterator[str]:
    inputs = program.flat_example()
    for mode in MODES:
        graph = program.graphs[mode]
        try:
            graph.lint()
        except RuntimeError as error:
            yield f"{mode} graph: {one_line(error)}"
        for node in graph.nodes:
            yield from (f"{mode} graph, node `{node.name}`: {problem}" for problem in _node(program, node))
        yield from _signature(program, mode, inputs)


def _node(program: Program, node: fx.Node) -> Iterator[str]:
    if node.op not in ("placeholder", "get_attr", "call_function", "output"):
        yield f"expected placeholder, get_attr, call_function or output, found {node.op}"
    if node.op == "get_attr":
        name = str(node.target)
        if name not in program.tensors:
            yield f"expected the name of a tensor of the program, found `{name}`"
        if name in program.tied:
            yield f"expected the canonical name `{program.tied[name]}`, found its alias `{name}`"
        if not node.users:
            yield f"`{name}` is fetched and not used; expected a user or no node"


def _signature(program: Program, mode: Mode, inputs: list[Any]) -> Iterator[str]:
    signature = program.signature
    placeholders = [node for node in program.graphs[mode].nodes if node.op == "placeholder"]
    counts = {len(signature.shapes), len(signature.batch_dims), len(inputs), len(placeholders)}
    if len(counts) > 1:
        yield f"{mode} graph: expected {len(signature.shapes)} inputs, found {len(placeholders)} placeholders"
        return
    if pytree.tree_structure(program.example) != signature.in_spec:
        yield "the structure of the example inputs differs from the signature; expected them to agree"
    for node, shape, dynamic in zip(placeholders, signature.shapes, signature.batch_dims, strict=True):
        if dynamic and not shape:
            yield f"{mode} graph, input `{node.name}`: expected a batch dim, found shape {shape}"
    for node, leaf, shape in zip(placeholders, inputs, signature.shapes, strict=True):
        found = tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else None
        if found != shape:
            yield f"{mode} graph, input `{node.name}`: expected shape {shape}, found example {found}"
    outputs = _output_metas(program, mode)
    if len(outputs) != signature.out_specs[mode].num_leaves:
        yield f"{mode} graph: expected {signature.out_specs[mode].num_leaves} outputs, found {len(outputs)}"


def _shapes(program: Program) -> Iterator[str]:
    for mode in MODES:
        try:
            metas = infer(program, program.graphs[mode], mode)
        except VerifyError as error:
            yield str(error)
            return
        for node, found in metas.items():
            yield from (f"{mode} graph, node `{node.name}`{problem}" for problem in _recorded(node, found))


def _recorded(node: fx.Node, found: Any) -> Iterator[str]:
    if "tensor" not in node.meta:
        yield f": expected recorded metadata {meta_text(found)}, found none"
    elif node.meta["tensor"] != found:
        what = str(node.target) if node.op in ("placeholder", "get_attr") else call_text(node)
        yield f", {what}: expected {meta_text(node.meta['tensor'])} as recorded, found {meta_text(found)}"


def _output_metas(program: Program, mode: Mode) -> list[Any]:
    output = next(node for node in reversed(program.graphs[mode].nodes) if node.op == "output")
    leaves = output.args[0] if isinstance(output.args[0], (list, tuple)) else [output.args[0]]
    return [leaf.meta.get("tensor") if isinstance(leaf, fx.Node) else leaf for leaf in leaves]


def _outputs(program: Program, before: Program) -> Iterator[str]:
    for mode in MODES:
        sizes, known = _input_metas(program, mode), _input_metas(before, mode)
        common = sizes.keys() & known.keys()
        same_inputs = program.signature.shapes == before.signature.shapes or (
            bool(common) and all(sizes[name] == known[name] for name in common)
        )
        old, new = _output_metas(before, mode), _output_metas(program, mode)
        if len(old) != len(new):
            yield f"{mode} graph: expected {len(old)} outputs as before, found {len(new)}"
        if program.signature.out_specs[mode] != before.signature.out_specs[mode]:
            yield f"{mode} graph: expected the structure of outputs to stay, found another"
        for index, (a, b) in enumerate(zip(old, new, strict=False)):
            if (a if same_inputs else _rank(a)) != (b if same_inputs else _rank(b)):
                yield f"{mode} graph, output {index}: expected {meta_text(a)} as before, found {meta_text(b)}"


def _input_metas(program: Program, mode: Mode) -> dict[str, Any]:
    return {node.name: node.meta.get("tensor") for node in program.graphs[mode].nodes if node.op == "placeholder"}


def _rank(meta: Any) -> Any:
    return (len(meta.shape), meta.dtype) if isinstance(meta, TensorMeta) else type(meta)


def _ties(program: Program, before: Program) -> Iterator[str]:
    for alias, canonical in before.tied.items():
        if alias in program.tensors and canonical in program.tensors:
            if program.tensors[alias] is not program.tensors[canonical]:
                yield f"expected `{alias}` to stay tied to `{canonical}`, found two tensors"


def _memory(program: Program, before: Program) -> Iterator[str]:
    """Parameters may be views of one storage, but two that share elements without being tied would train as one."""
    known = {frozenset(id(before.tensors[name]) for name in pair) for pair in _overlaps(before)}
    for pair in _overlaps(program):
        if frozenset(id(program.tensors[name]) for name in pair) not in known:
            yield f"`{pair[0]}` and `{pair[1]}` share memory; expected separate memory, or one tied tensor"


def _overlaps(program: Program) -> Iterator[tuple[str, str]]:
    """Pairs of parameters that are not tied and have elements in common."""
    stored: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in program.parameters():
        if not tensor.is_meta and tensor.numel():
            stored.setdefault(tensor.untyped_storage().data_ptr(), []).append((name, tensor))
    for group in stored.values():
        group.sort(key=lambda item: _reach(item[1]))
        if any(_reach(a)[1] > _reach(b)[0] for (_, a), (_, b) in itertools.pairwise(group)):
            yield from _shared(group)


def _reach(tensor: torch.Tensor) -> tuple[int, int]:
    """The address of a tensor's first element, and the first address after its last element."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _shared(group: list[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, str]]:
    """Each tensor marks its elements. Interleaved views, such as the columns of a matrix, do not overlap."""
    start, unit = _reach(group[0][1])[0], min(tensor.element_size() for _, tensor in group)
    owner = torch.zeros((max(_reach(tensor)[1] for _, tensor in group) - start) // unit, dtype=torch.int32)
    for number, (name, tensor) in enumerate(group, 1):
        strides = [stride * tensor.element_size() // unit for stride in tensor.stride()]
        mine = owner.as_strided(tensor.shape, strides, (tensor.data_ptr() - start) // unit)
        taken = int(mine.max())
        if taken:
            yield group[taken - 1][0], name
        mine.fill_(number)


def _unread(program: Program, before: Program) -> Iterator[str]:
    known = {_pattern(name) for name in _unread_names(before)}
    for name in _unread_names(program):
        if _pattern(name) not in known:
            yield f"parameter `{name}`: expected a graph that reads it, found none"


def _unread_names(program: Program) -> list[str]:
    read = used_names(program.graphs["train"]) | used_names(program.graphs["eval"])
    return [name for name, _ in program.parameters() if name not in read]


def _modes(program: Program, before: Program) -> Iterator[str]:
    known = {(mode, _pattern(name)) for mode, name in _one_mode_only(before)}
    for mode, name in _one_mode_only(program):
        if (mode, _pattern(name)) not in known:
            other = "eval" if mode == "train" else "train"
            yield f"{other} graph: expected it to read parameter `{name}` as the {mode} graph does, found no such node"


def _one_mode_only(program: Program) -> list[tuple[Mode, str]]:
    read = {mode: used_names(program.graphs[mode]) for mode in MODES}
    names = [name for name, _ in program.parameters()]
    found: list[tuple[Mode, str]] = [("train", n) for n in names if n in read["train"] and n not in read["eval"]]
    return found + [("eval", n) for n in names if n in read["eval"] and n not in read["train"]]


def _dead(program: Program, before: Program) -> Iterator[str]:
    for mode in MODES:
        known = {_dead_key(node) for node in _dead_nodes(before.graphs[mode])}
        for node in _dead_nodes(program.graphs[mode]):
            if _dead_key(node) not in known:
                yield f"{mode} graph, node `{node.name}`, {call_text(node)}: expected a user, found none"


def _dead_nodes(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_function" and not node.users and not node.is_impure()]


def _dead_key(node: fx.Node) -> tuple[str, str]:
    return target_text(node.target), _pattern(module_path(node))


def _pattern(name: str) -> str:
    """The name without block numbers: a copy of a block may lack what its original lacks."""
    return re.sub(r"[0-9]+", "#", name)


def _batch(program: Program, before: Program) -> Iterator[str]:
    """Finds sizes written into the graph that depend on the batch: they are right at the example's batch size only."""
    if not any(program.signature.batch_dims):
        return
    for mode in MODES:
        try:
            infer(program, program.graphs[mode], mode, batch_factor=2)
        except VerifyError as error:
            try:
                infer(before, before.graphs[mode], mode, batch_factor=2)
            except VerifyError:
                return  # it did not work before either
            yield f"at twice the batch size, {error}"
