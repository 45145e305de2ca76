"""The notation for values, operations and arguments: `f32[2, 197, 192]`, `linear`, `%add_3`.

Printed graphs, error messages and fingerprints share it. It does not depend on addresses, versions or the order of
sets, so equal graphs give equal text in every process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from progc.ir.program import TensorMeta

_DTYPES: dict[torch.dtype, str] = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
    torch.complex64: "c64",
    torch.complex128: "c128",
}


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the short name of a dtype (`f32`, `bf16`, `i64`), or torch's name if it has none (`float8_e4m3fn`)."""
    return _DTYPES.get(dtype, str(dtype).removeprefix("torch."))


def meta_text(meta: Any) -> str:
    """Returns the text of a `node.meta["tensor"]`: `f32[2, 8]`, `(f32[2], i64[2])`, `int 2`, `none`."""
    if isinstance(meta, TensorMeta):
        return f"{dtype_name(meta.dtype)}[{', '.join(map(str, meta.shape))}]"
    if isinstance(meta, (tuple, list)):
        return f"({', '.join(meta_text(item) for item in meta)})"
    if meta is None:
        return "none"
    return f"{type(meta).__name__} {meta}"


def tensor_text(tensor: torch.Tensor) -> str:
    """Returns the dtype and shape of a tensor as text: `f32[2, 8]`."""
    return meta_text(TensorMeta(tuple(tensor.shape), tensor.dtype))


def target_text(target: Any, full: bool = True) -> str:
    """Returns the name of a node's target: `aten.linear.default`, or `linear` in short form (`full=False`)."""
    if isinstance(target, str):
        return target
    if isinstance(target, torch._ops.OpOverload):
        return str(target) if full else target._schema.name.split("::")[-1]
    name = getattr(target, "__name__", type(target).__name__)
    module = getattr(target, "__module__", "").lstrip("_")
    return f"{module}.{name}" if full and module else name


def argument_text(argument: Any) -> str:
    """Returns the text of an argument; tensors of the program appear under their dotted names."""
    if isinstance(argument, fx.Node):
        return str(argument.target) if argument.op == "get_attr" else f"%{argument.name}"
    if isinstance(argument, (list, tuple)):
        inner = ", ".join(argument_text(item) for item in argument)
        return f"[{inner}]" if isinstance(argument, list) or len(argument) != 1 else f"[{inner},]"
    if isinstance(argument, slice):
        return f"{argument_text(argument.start)}:{argument_text(argument.stop)}:{argument_text(argument.step)}"
    if isinstance(argument, dict):
        return "{" + ", ".join(f"{key}: {argument_text(item)}" for key, item in argument.items()) + "}"
    if isinstance(argument, torch.dtype):
        return dtype_name(argument)
    return repr(argument)


def call_text(node: fx.Node, full: bool = True) -> str:
    """Returns a call as text: `linear(%x, fc.weight, fc.bias)`."""
    arguments = [argument_text(argument) for argument in node.args]
    arguments += [f"{key}={argument_text(value)}" for key, value in node.kwargs.items()]
    return f"{target_text(node.target, full)}({', '.join(arguments)})"


def module_path(node: fx.Node) -> str:
    """Returns the dotted path of the innermost module that made this node; empty at the top level."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    return str(list(stack.values())[-1][0])
