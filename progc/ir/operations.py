"""Families of operations that a factor passes through, and properties of single nodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from progc.errors import NotLosslessError
from progc.ir.notation import module_path, target_text
from progc.ir.program import TensorMeta


class DemandRefused(NotLosslessError):
    """No choice of parameters meets the demand; the message gives the operation, the node and the reason."""


# Linear in one tensor operand, elementwise.
POINTWISE = {
    "neg", "dropout", "feature_dropout", "clone", "contiguous", "alias", "detach", "lift_fresh", "lift_fresh_copy",
    "to", "_to_copy", "type_as", "positive",
}  # fmt: skip
# The output holds elements of the operands, and zeros.
MOVEMENT = {
    "view", "reshape", "_unsafe_view", "view_as", "reshape_as", "permute", "transpose", "t", "mT", "movedim",
    "swapaxes", "swapdims", "select", "slice", "narrow", "split", "split_with_sizes", "chunk", "unbind",
    "tensor_split", "getitem", "cat", "concat", "stack", "expand", "expand_as", "broadcast_to", "squeeze",
    "unsqueeze", "flatten", "unflatten", "roll", "flip", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    "repeat", "repeat_interleave", "tile", "index_select", "index", "unfold", "rot90",
}  # fmt: skip
# As movement when what they put in is zero.
PADDING = {"pad", "constant_pad_nd"}
# Linear per channel over (batch, channels, space ...): a factor must be the same all over the space.
SPATIAL = {
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_bicubic2d", "upsample_trilinear3d",
}  # fmt: skip
# phi(0) = 0 with a slope there: a zeroed input silences the branch and still lets gradients through.
ZERO_PRESERVING = {"gelu", "silu", "tanh", "leaky_relu", "hardswish", "mish", "elu", "softsign"}
# phi(s x) = s phi(x) for s > 0. Their slope at 0 may be zero, so a factor 0 would leave the branch dead.
HOMOGENEOUS = {"relu", "leaky_relu", "abs"}
# Normalisations. Over the trailing dims of each sample:
FEATURE_NORMS = {"layer_norm", "rms_norm"}
# With running statistics of each channel, and the argument that makes them use the statistics of the batch instead:
RUNNING_NORMS = {"batch_norm": "training", "instance_norm": "use_input_stats"}
# With a gain and a shift for each channel (dim 1):
CHANNEL_NORMS = {"group_norm", *RUNNING_NORMS}
NORMS = FEATURE_NORMS | CHANNEL_NORMS
CONCATENATIONS = {"cat", "concat", "concatenate"}
# Operations that read the shape of an operand, never its values.
SHAPE_ONLY = {
    "sym_size", "size", "new_empty", "new_zeros", "new_ones", "new_full", "empty_like", "zeros_like", "ones_like",
    "full_like", "rand_like", "randn_like", "_assert_tensor_metadata", "_assert_scalar",
}  # fmt: skip


def op_name(node: fx.Node) -> str:
    """Returns the name of the operation that a node calls; see `target_name`."""
    return target_name(node.target)


def target_name(target: Any) -> str:
    """Returns the name by which tables of operations know a target: `linear`, `add`, `getitem`, `mylib.glu`.

    The overload and the underscore of an in-place variant are left out (`aten.add_.Tensor` is `add`; `__and__` keeps
    its underscores). ATen's namespace is left out too; other namespaces stay, since `mylib::mul` need not be a product.
    """
    name = target_text(target, full=False)
    if not isinstance(target, torch._ops.OpOverload):
        return name
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name if target.namespace == "aten" else f"{target.namespace}.{name}"


def is_product(node: fx.Node) -> bool:
    """Whether a node is a multiplication, or a division that does not round."""
    return op_name(node) == "mul" or (op_name(node) == "div" and argument(node, "rounding_mode") is None)


def mutates(node: fx.Node) -> bool:
    """Whether a node is an in-place operation, or a custom operation that writes to an argument."""
    name = target_text(node.target, full=False)
    schema = getattr(node.target, "_schema", None)
    own = schema is not None and schema.is_mutable and getattr(node.target, "namespace", "aten") != "aten"
    return node.op == "call_function" and (own or (name.endswith("_") and not name.endswith("__")))


def describe(node: fx.Node) -> str:
    """Returns a node as text for messages: `aten.softmax.int (softmax_3 in blocks.1.attn)`."""
    where = module_path(node)
    return f"{target_text(node.target)} ({node.name}{f' in {where}' if where else ''})"


def argument(node: fx.Node, name: str, default: Any = None) -> Any:
    """Returns an argument of an ATen call by its schema name, passed by position or by keyword."""
    schema = getattr(node.target, "_schema", None)
    for position, item in enumerate(schema.arguments if schema is not None else ()):
        if item.name == name:
            if position < len(node.args):
                return node.args[position]
            return node.kwargs.get(name, item.default_value if item.has_default_value() else default)
    return default


def shape_of(node: Any) -> tuple[int, ...]:
    """Returns the shape of a node at the example size.

    Raises:
        DemandRefused: the node is not one tensor.
    """
    meta = node.meta.get("tensor") if isinstance(node, fx.Node) else None
    if not isinstance(meta, TensorMeta):
        raise DemandRefused(f"{node} is not one tensor")
    return meta.shape


def is_float(node: Any) -> bool:
    """Whether the value of a node is a floating-point tensor, or a tuple with one."""
    meta = node.meta.get("tensor") if isinstance(node, fx.Node) else None
    items = meta if isinstance(meta, tuple) else (meta,)
    return any(isinstance(item, TensorMeta) and item.dtype.is_floating_point for item in items)


def distance(node: fx.Node, limit: int = 12) -> int:
    """Returns the number of operations between a node and the nearest parameter or buffer it is computed from."""
    frontier, seen = [node], {node}
    for steps in range(limit):
        if any(item.op == "get_attr" for item in frontier):
            return steps
        above = [n for item in frontier for n in item.all_input_nodes if is_float(n) and n not in seen]
        seen.update(above)
        frontier = above
    return limit
