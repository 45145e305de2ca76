"""Aligning a program with the program of a target model: on names, parameter shapes and graphs.

The target's own analysis gives the size of each axis: dims of tensors with the same name are matched factor by
factor. What does not correspond is listed module by module. After growth `differences` compares the two graphs
node by node, so that "loads into the target's class and computes the same" is proved, not hoped.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from progc.axes import AxisTable
from progc.axes import dims as D
from progc.axes.dims import Atom, Dim
from progc.errors import TargetError
from progc.program import Program

_SHOWN = 5


def target_depths(source: Program, target: Program) -> dict[str, int]:
    """Chain name to the target's depth, for the chains of `source` that get deeper.

    Raises:
        TargetError: a chain is shorter in the target.
    """
    depths = {}
    wanted = {chain.name: chain for chain in target.chains}
    for chain in source.chains:
        other = wanted.get(chain.name)
        if other is None or other.siblings == chain.siblings:
            continue
        if other.siblings < chain.siblings:
            raise TargetError(
                f"the target is smaller: {chain.name} has {chain.siblings} blocks in the source and {other.siblings} "
                f"in {target.class_name}; growth only adds blocks"
            )
        depths[chain.name] = other.siblings
    return depths


def target_widths(source: Program, target: Program) -> dict[str, int]:
    """Axis name to the target's size, for the axes that get wider.

    Raises:
        TargetError: tensors that do not correspond, listed by module; a smaller target; a pinned axis.
    """
    _check_names(source, target)
    sizes: dict[Atom, int] = {}
    open_dims: list[tuple[str, Dim, int]] = []
    for name, dims in source.axes.tensor_dims.items():
        if name.startswith("_constants.") or name not in target.tensors:
            continue  # what is persistent has a partner: _check_names
        shape = tuple(target.tensors[name].shape)
        if len(shape) != len(dims):
            raise TargetError(f"{name} has {len(dims)} dims in the source and {len(shape)} in the target")
        theirs = target.axes.tensor_dims.get(name)
        for position, dim in enumerate(dims):
            other = theirs[position] if theirs is not None else None
            if other is None or not _match(dim, other, sizes):
                open_dims.append((name, dim, shape[position]))
    _solve(open_dims, sizes)
    _check_shapes(source, target, sizes)
    return _by_axis(source.axes, sizes)


def _check_names(source: Program, target: Program) -> None:
    ours = set(source.state_dict())
    theirs = set(target.state_dict())
    lines = []
    for what, names in (("only in the source", ours - theirs), ("only in the target", theirs - ours)):
        modules = list(dict.fromkeys(name.rpartition(".")[0] or name for name in sorted(names)))
        if modules:
            more = f" and {len(modules) - _SHOWN} more" if len(modules) > _SHOWN else ""
            lines.append(f"{what}: {', '.join(modules[:_SHOWN])}{more}")
    if lines:
        raise TargetError(f"{source.class_name} does not grow into {target.class_name}; {'; '.join(lines)}")


def _match(ours: Dim, theirs: Dim, sizes: dict[Atom, int]) -> bool:
    """Assigns sizes factor by factor; False if the two dims are cut differently."""
    a, b = D.resolve(ours), D.resolve(theirs)
    if len(a) != len(b):
        return False
    pairs: list[tuple[Atom, int]] = []
    for x, y in zip(a, b, strict=True):
        if x.segments is not None and y.segments is not None and len(x.segments) == len(y.segments):
            if not all(_match(s, t, sizes) for s, t in zip(x.segments, y.segments, strict=True)):
                return False
        elif x.segments is None and y.segments is None:
            pairs.append((x, y.size))
        else:
            return False
    if any(sizes.get(atom, size) != size for atom, size in pairs):
        return False
    sizes.update(pairs)
    return True


def _solve(open_dims: list[tuple[str, Dim, int]], sizes: dict[Atom, int]) -> None:
    """Dims with one factor of unknown size left."""
    for _ in range(len(open_dims)):
        progress = False
        for _name, dim, total in open_dims:
            unknown = [atom for atom in D.leaves(dim) if atom not in sizes and not atom.reasons and not atom.extent]
            if len(unknown) == 1 and all(atom.segments is None for atom in D.resolve(dim)):
                known = math.prod(sizes.get(atom, atom.size) for atom in D.resolve(dim) if atom is not unknown[0])
                if total % known == 0:
                    sizes[unknown[0]] = total // known
                    progress = True
        if not progress:
            return


def _size(dim: Dim, sizes: dict[Atom, int]) -> int:
    total = 1
    for atom in D.resolve(dim):
        if atom.segments is not None:
            total *= sum(_size(segment, sizes) for segment in atom.segments)
        else:
            total *= sizes.get(atom, atom.size)
    return total


def _check_shapes(source: Program, target: Program, sizes: dict[Atom, int]) -> None:
    wrong = []
    smaller = []
    for name, dims in source.axes.tensor_dims.items():
        if name.startswith("_constants.") or not source.specs[name].persistent:
            continue
        wanted = tuple(target.tensors[name].shape)
        have = tuple(source.tensors[name].shape)
        if any(w < h for w, h in zip(wanted, have, strict=True)):
            smaller.append(f"{name} {list(have)} -> {list(wanted)}")
        reach = tuple(_size(dim, sizes) for dim in dims)
        if reach != wanted:
            wrong.append(f"{name} {list(have)} -> {list(wanted)}")
        for dim in dims:
            for atom in D.leaves(dim):
                if sizes.get(atom, atom.size) != atom.size and (atom.reasons or atom.extent):
                    why = "; ".join(atom.reasons) or "token, spatial or batch positions"
                    wrong.append(f"{name} {list(have)} -> {list(wanted)} ({why})")
    for name, tensor in source.tensors.items():
        if source.specs[name].persistent and source.tied.get(name, name) not in source.axes.tensor_dims:
            have, wanted = tuple(tensor.shape), tuple(target.tensors[name].shape)
            if have != wanted:
                change = f"{name} {list(have)} -> {list(wanted)}"
                wrong.append(f"{change} (no operation reads it, so how it grows is not known)")
    if smaller:
        raise TargetError(
            f"the target is smaller than the source: {_some(smaller)}; growth only adds units, "
            "exchange source and target"
        )
    if wrong:
        raise TargetError(f"{source.class_name} does not grow into {target.class_name}: {_some(wrong)}")


def _some(lines: list[str]) -> str:
    lines = list(dict.fromkeys(lines))
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return ", ".join(lines[:_SHOWN]) + more


def _by_axis(table: AxisTable, sizes: dict[Atom, int]) -> dict[str, int]:
    found = {}
    for axis in table.axes:
        size = sizes.get(axis.atom, axis.size)
        if size != axis.size:
            found[axis.name] = size
    return found


def differences(grown: Program, target: Program) -> Iterator[str]:
    """What differs between a grown program and the target's own eval graph; nothing if they are the same function."""
    ours = [node for node in grown.graphs["eval"].nodes if node.op not in ("get_attr", "placeholder")]
    theirs = [node for node in target.graphs["eval"].nodes if node.op not in ("get_attr", "placeholder")]
    numbers: tuple[dict[fx.Node, Any], dict[fx.Node, Any]] = ({}, {})
    for program, table in ((grown, numbers[0]), (target, numbers[1])):
        inputs = 0
        for node in program.graphs["eval"].nodes:
            if node.op == "placeholder":
                table[node] = ("input", inputs)
                inputs += 1
            elif node.op == "get_attr":
                table[node] = ("tensor", _tensor_key(program, str(node.target)))
    for position, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        numbers[0][a] = numbers[1][b] = position
        if a.target != b.target or a.op != b.op:
            yield f"{_where(a)} calls {a.target} and the target's {_where(b)} calls {b.target}"
            return
        left = fx.node.map_arg((a.args, a.kwargs), lambda n: numbers[0][n])
        right = fx.node.map_arg((b.args, b.kwargs), lambda n: numbers[1][n])
        if left != right:
            yield f"{_where(a)}: {a.target} has {_plain(left)} where the target has {_plain(right)}"
    if len(ours) != len(theirs):
        yield f"the grown graph has {len(ours)} operations, the target's {len(theirs)}"
    for name, spec in target.specs.items():
        if spec.persistent or name.startswith("_constants.") or name not in grown.tensors:
            continue
        mine, other = grown.tensors[name], target.tensors[name]
        if mine.shape != other.shape or not torch.equal(mine, other):
            yield f"buffer {name}, which no checkpoint holds, is another one in the target"


def _tensor_key(program: Program, name: str) -> Any:
    """Named tensors by name, lifted constants by value."""
    if not name.startswith("_constants."):
        return name
    value = program.tensors[name].detach().cpu().contiguous()
    if value.numel() <= _SHOWN:
        return value.dtype, str(value.tolist())
    digest = hashlib.sha256(value.flatten().view(torch.uint8).numpy().tobytes())
    return value.dtype, tuple(value.shape), digest.hexdigest()[:16]


def _where(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [value[0] for value in stack.values()]
    return str(paths[-1]) if paths and paths[-1] else node.name


def _plain(item: Any) -> str:
    text = str(item)
    return text if len(text) < 120 else text[:117] + "..."
