"""Binds the inputs of a call to the flat inputs of a graph, checked against the captured example."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from progc.errors import InputError
from progc.ir.program import Program


class InputBinding:
    """Orders the inputs of a call like the captured example, and refuses inputs that the graphs cannot take."""

    def __init__(self, program: Program) -> None:
        args, kwargs = program.example
        self._example = program.example
        self._signature = program.signature
        self._leaves = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in program.flat_example()]
        placeholders = [node for node in program.graphs["eval"].nodes if node.op == "placeholder"]
        self._names = [node.name for node in placeholders]
        self._ranges = [node.meta.get("batch_range", (1, None)) for node in placeholders]
        # `forward`'s parameters in the order of its signature, as far as captured inputs give their position.
        known = {node.meta["argument"] for node in placeholders if "argument" in node.meta}
        self._positions = {index: name for name, index in known if index >= 0 and name}
        self._args = [self._positions.get(index, "") for index in range(len(args))]
        self._kwargs = list(kwargs)

    def flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Returns the flat inputs, in the order of the placeholders.

        Raises:
            InputError: the structure, a size or a constant differs from the captured one.
        """
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if spec != self._signature.in_spec:
            ordered = _like(self._example, self._arranged(args, kwargs))
            leaves, spec = pytree.tree_flatten(ordered)
            if spec != self._signature.in_spec:
                raise InputError(
                    f"inputs have the structure {_outline((args, kwargs))}; "
                    f"expected {_outline(self._example)}, as captured; call it with that structure, or capture it again"
                )
        for index, leaf in enumerate(leaves):
            self._check(index, leaf)
        return leaves

    def _arranged(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs split into positional and keyword ones as at capture, where parameter names allow it."""
        if any(index not in self._positions for index in range(len(args))):
            return args, kwargs
        values = {self._positions[index]: value for index, value in enumerate(args)}
        if values.keys() & kwargs.keys():
            return args, kwargs
        values.update(kwargs)
        if values.keys() != {*self._args, *self._kwargs}:
            return args, kwargs
        return tuple(values[name] for name in self._args), {name: values[name] for name in self._kwargs}

    def _check(self, index: int, leaf: Any) -> None:
        shape, name = self._signature.shapes[index], self._names[index]
        if shape is None:
            wanted = self._leaves[index]
            if isinstance(leaf, torch.Tensor) or type(leaf) is not type(wanted) or leaf != wanted:
                given = "a tensor" if isinstance(leaf, torch.Tensor) else repr(leaf)
                raise InputError(
                    f"input `{name}` is {given}; expected {wanted!r}, as captured; for another value, capture again"
                )
            return
        if not isinstance(leaf, torch.Tensor):
            raise InputError(f"input `{name}` is a {type(leaf).__name__}; expected a tensor of shape {list(shape)}")
        skip = 1 if self._signature.batch_dims[index] else 0
        free = self._signature.free_dims[index] if self._signature.free_dims else ()
        checked = [dim for dim in range(skip, len(shape)) if dim not in free]
        if leaf.dim() != len(shape) or any(leaf.shape[dim] != shape[dim] for dim in checked):
            sizes = ["any" if dim in free else str(size) for dim, size in enumerate(shape)]
            expected = ", ".join(["batch", *sizes[1:]] if skip else sizes)
            raise InputError(f"input `{name}` has shape {list(leaf.shape)}; expected [{expected}]")
        low, high = self._ranges[index]
        if skip and (leaf.shape[0] < low or (high is not None and leaf.shape[0] > high)):
            allowed = f"{low} to {high}" if high is not None else f"at least {low}"
            raise InputError(
                f"input `{name}` has batch size {leaf.shape[0]}; expected {allowed}: the model runs other code for "
                "other sizes; capture it with an example of that size"
            )


def _like(example: Any, given: Any) -> Any:
    """`given` with the keys of its plain dicts in the order of `example`'s."""
    if type(example) is dict and type(given) is dict and example.keys() == given.keys():
        return {key: _like(example[key], given[key]) for key in example}
    if type(example) is type(given) and type(example) in (tuple, list) and len(example) == len(given):
        return type(example)(_like(a, b) for a, b in zip(example, given, strict=True))
    return given


def _outline(tree: Any) -> str:
    """`(Tensor, {mask: Tensor})`: structure with the type of each leaf, on one line."""
    if isinstance(tree, tuple) and len(tree) == 2 and isinstance(tree[1], dict) and isinstance(tree[0], tuple):
        inner = [_outline_of(value) for value in tree[0]]
        inner += [f"{name}={_outline_of(value)}" for name, value in tree[1].items()]
        return f"({', '.join(inner)})"
    return _outline_of(tree)


def _outline_of(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_outline_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        left, right = "()" if isinstance(value, tuple) else "[]"
        return left + ", ".join(_outline_of(item) for item in value) + right
    return type(value).__name__
