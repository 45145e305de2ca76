"""Records the operations that a run dispatches: their kind, their FLOPs, and the bytes that they read and write."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten

PLAIN = "pointwise"
VIEW = "view"
_KINDS = {
    "matmul": "mm addmm bmm baddbmm _scaled_mm mv addmv dot",
    "convolution": "convolution convolution_backward _convolution cudnn_convolution _slow_conv2d_forward",
    "transcendental": (
        "gelu gelu_backward silu silu_backward sigmoid tanh tanh_backward exp erf log _softmax softplus mish elu sin "
        "cos pow mish_backward elu_backward softplus_backward _log_softmax log_sigmoid_forward bernoulli_ "
        "native_dropout rand rand_like randn randn_like"
    ),
    "norm": (
        "native_layer_norm native_layer_norm_backward native_group_norm native_group_norm_backward native_batch_norm "
        "native_batch_norm_backward cudnn_batch_norm cudnn_batch_norm_backward _native_batch_norm_legit "
        "_batch_norm_with_update batch_norm_backward _softmax_backward_data _log_softmax_backward_data _fused_rms_norm "
        "_fused_rms_norm_backward"
    ),
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names.split()}
_GATHERS = frozenset("embedding index index_select gather".split())
"""Operations that read only as many bytes of a table as they return."""

KINDS = ("matmul", "convolution", "grouped", "attention", "transcendental", "norm", PLAIN, VIEW)
"""Kinds of operations; `grouped` is a convolution with more than one group."""


class Operation(NamedTuple):
    """One operation at given sizes: FLOPs (a multiply-add is 2), and bytes of its tensors, each counted once."""

    kind: str
    flops: int
    bytes: int


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape))


def _convolution_backward(
    grad: Any, image: Any, weight: Any, _bias: Any, _stride: Any, _pad: Any, _dilation: Any, transposed: bool,
    _output_padding: Any, _groups: int, mask: Any, **__: Any,
) -> int:  # fmt: skip
    """Each product of the forward occurs once in the gradient of the input and once in that of the weight."""
    places = (image if transposed else grad).shape
    products = places[0] * math.prod(places[2:]) * weight.numel()
    return int(2 * products * (bool(mask[0]) + bool(mask[1])))


# The counter of torch ignores the fused attention of the CPU, and counts weight gradients of grouped convolutions
# `groups` times.
EXTRA: Mapping[Any, Any] = {
    getattr(aten, name): formula
    for name, formula in (
        ("convolution_backward", _convolution_backward),
        ("_scaled_dot_product_flash_attention_for_cpu", _attention),
        ("_scaled_dot_product_flash_attention_for_cpu_backward", _attention_backward),
        ("_scaled_dot_product_fused_attention_overrideable", _attention),
        ("_scaled_dot_product_fused_attention_overrideable_backward", _attention_backward),
    )
    if hasattr(aten, name)
}
"""FLOP formulas (over tensors) of operations that torch.utils.flop_counter leaves out or gets wrong."""


class Recorder(TorchDispatchMode):
    """A dispatch mode that records operations; composite operations are decomposed as in torch's counter.

    Attributes:
        found: how often each operation ran. Replace it to start a new part.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[Operation] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet not in flop_registry and packet not in EXTRA and func is not torch.ops.prim.device.default:
            with self:
                taken_apart = func.decompose(*args, **kwargs)
                if taken_apart is not NotImplemented:
                    return taken_apart
        out = func(*args, **kwargs)
        self.found[_operation(packet, args, kwargs, out)] += 1
        return out


def _operation(packet: Any, args: Any, kwargs: Any, out: Any) -> Operation:
    inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    outputs = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]
    held = {_storage(tensor) for tensor in inputs}
    name = packet.__name__
    mutates = name.endswith("_") and not name.endswith("__")
    if not outputs or (not mutates and all(_storage(tensor) in held for tensor in outputs)):
        return Operation(VIEW, 0, 0)
    if packet in EXTRA:
        flops = EXTRA[packet](*args, **kwargs)
    elif packet in flop_registry:
        flops = flop_registry[packet](*args, **kwargs, out_val=out)
    else:
        flops = 0
    written = sum(map(_bytes, outputs))
    distinct = {id(tensor): tensor for tensor in inputs}.values()
    read = min(written, sum(map(_bytes, inputs))) if name in _GATHERS else sum(map(_bytes, distinct))
    return Operation(_kind(packet, args), int(flops), read + written)


def _kind(packet: Any, args: Any) -> str:
    name = packet.__name__
    if "attention" in name:
        return "attention"
    kind = _KIND_OF.get(name) or _KIND_OF.get(name.removesuffix("_")) or PLAIN
    if kind == "convolution":
        groups = next((arg for arg in reversed(args) if isinstance(arg, int) and not isinstance(arg, bool)), 1)
        return "grouped" if groups > 1 else kind
    return kind


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: torch.Tensor) -> int:
    """Returns the bytes of memory that a tensor occupies; an expanded dim counts once."""
    distinct = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        distinct *= size if stride else min(size, 1)
    return distinct * tensor.element_size()
