"""Compares two programs node by node: which operations correspond, and where a grown graph differs from the target's.

This proves that the grown weights, loaded into the target's class, compute the same function.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from progc.ir.deferred import values
from progc.ir.notation import module_path
from progc.ir.program import Mode, Program

_SHOWN = 5


def operations(program: Program, mode: Mode) -> list[fx.Node]:
    """Returns the nodes of a graph that compute something, in order; the output node is the last."""
    return [node for node in program.graphs[mode].nodes if node.op not in ("get_attr", "placeholder")]


def pairs(ours: Program, theirs: Program, mode: Mode) -> list[tuple[fx.Node, fx.Node]] | None:
    """Returns the corresponding operations of two programs; None if the graphs do not call the same operations."""
    a, b = operations(ours, mode), operations(theirs, mode)
    if len(a) != len(b) or any(x.target != y.target or x.op != y.op for x, y in zip(a, b, strict=True)):
        return None
    return list(zip(a, b, strict=True))


def parting(ours: Program, theirs: Program) -> str:
    """Returns, in words, where the eval graphs of two programs first call different operations; empty if nowhere."""
    a, b = operations(ours, "eval"), operations(theirs, "eval")
    for x, y in zip(a, b, strict=False):
        if x.target != y.target or x.op != y.op:
            return f"{where(x)} calls {x.target} and the target's {where(y)} calls {y.target}"
    return f"the graph has {len(a)} operations, the target's {len(b)}" if len(a) != len(b) else ""


def differences(grown: Program, target: Program, mode: Mode = "eval") -> Iterator[str]:
    """Yields the differences between the graphs of a grown program and its target; none if they are equal."""
    ours, theirs = operations(grown, mode), operations(target, mode)
    numbers: tuple[dict[fx.Node, Any], dict[fx.Node, Any]] = ({}, {})
    for program, table in ((grown, numbers[0]), (target, numbers[1])):
        inputs = 0
        for node in program.graphs[mode].nodes:
            if node.op == "placeholder":
                table[node] = ("input", inputs)
                inputs += 1
            elif node.op == "get_attr":
                table[node] = ("tensor", _tensor_key(program, str(node.target)))
    for position, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        numbers[0][a] = numbers[1][b] = position
        if a.target != b.target or a.op != b.op:
            yield f"{where(a)} calls {a.target} and the target's {where(b)} calls {b.target}"
            return
        left = fx.node.map_arg((a.args, a.kwargs), lambda n: numbers[0][n])
        right = fx.node.map_arg((b.args, b.kwargs), lambda n: numbers[1][n])
        if left != right:
            yield f"{where(a)}: {a.target} has {_plain(left)} where the target has {_plain(right)}"
    if len(ours) != len(theirs):
        yield f"the grown graph has {len(ours)} operations, the target's {len(theirs)}"
    for name, spec in target.specs.items():
        if spec.persistent or name.startswith("_constants.") or name not in grown.tensors:
            continue
        found = _apart(values(grown.tensors[name]), values(target.tensors[name]))
        if found:
            yield f"buffer {name}, which no checkpoint holds, differs from the target's: {found}"


def where(node: fx.Node) -> str:
    """Returns the module path of a node for messages; at the top level, its name."""
    return module_path(node) or node.name


def _apart(mine: torch.Tensor, other: torch.Tensor) -> str:
    """How much two buffers differ, in words; empty if they are equal."""
    if mine.shape != other.shape:
        return f"{list(mine.shape)} and {list(other.shape)}"
    if mine.dtype != other.dtype:
        return f"{mine.dtype} and {other.dtype}"
    if torch.equal(mine, other):
        return ""
    if not (mine.is_floating_point() or mine.is_complex()):
        return f"{int((mine != other).sum())} of {mine.numel()} entries"
    apart, size = float((mine - other).abs().max()), float(other.abs().max())
    return f"they differ by up to {apart:.2g} (largest value {size:.2g})"


def _tensor_key(program: Program, name: str) -> Any:
    """Named tensors by name, lifted constants by value."""
    if not name.startswith("_constants."):
        return name
    value = values(program.tensors[name]).detach().cpu().contiguous()
    if value.numel() <= _SHOWN:
        return value.dtype, str(value.tolist())
    digest = hashlib.sha256(value.flatten().view(torch.uint8).numpy().tobytes())
    return value.dtype, tuple(value.shape), digest.hexdigest()[:16]


def _plain(item: Any) -> str:
    text = str(item)
    return text if len(text) < 120 else text[:117] + "..."
