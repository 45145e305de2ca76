"""Writes a program as a graph with its weights: a `.pt2` file of torch.export, or an ONNX file.

Inputs have the names of the user's `forward`, the batch size is free where the program leaves it free, and outputs that
are dataclasses become dicts, so that the file loads where the model's code is not installed. What was exported is run
once on the example inputs, and compared with the program.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from progc.errors import CheckError, InputError, one_line
from progc.ir.module import ProgramModule

if TYPE_CHECKING:
    from progc.ir.program import Program

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_ONNX_LIMIT = 2**31 - 2**20
"""Bytes of weights in one ONNX file; its format ends at 2 GiB."""


def check_onnx(program: Program | None = None) -> None:
    """Checks that an ONNX file can be written.

    Args:
        program: the program to write; None: checks only that the packages are installed.

    Raises:
        InputError: a package is not installed, or the network is too large.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"an ONNX file needs {', '.join(missing)}; pip install 'progc[onnx]', or use --format pt2")
    size = 0 if program is None else sum(t.numel() * t.element_size() for t in dict(program.parameters()).values())
    if size > _ONNX_LIMIT:
        raise InputError(f"the weights take {size / 2**30:.1f} GiB, and an ONNX file holds 2 GiB; use --format pt2")


def write_pt2(program: Program, path: Path) -> None:
    """Writes the eval graph for `torch.export.load`. Not atomic: `path` is a temporary name.

    Raises:
        InputError: torch.export cannot trace the program, or the disk refuses.
        CheckError: the exported graph computes something else.
    """
    exported = _exported(program)
    _compare(program, exported.module()(*program.example[0], **program.example[1]), "the exported graph")
    with path.open("wb") as file:
        torch.export.save(exported, file)


def write_onnx(program: Program, path: Path) -> None:
    """Writes the eval graph as an ONNX file. Not atomic: `path` is a temporary name.

    Raises:
        InputError: an operation cannot be translated, or the disk refuses.
        CheckError: onnxruntime computes something else from the file.
    """
    check_onnx(program)
    exported = _exported(program)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            translated = torch.onnx.export(exported, (), dynamo=True, verbose=False)
        except Exception as error:  # the exporter raises errors of many types
            raise InputError(
                f"{program.class_name} cannot be written as ONNX: {one_line(error, 300)}; use --format pt2"
            ) from error
        assert translated is not None
        translated.save(str(path), external_data=False)
    names = exported.graph_signature.user_inputs
    _compare(program, _run_onnx(path, dict(zip(names, program.flat_example(), strict=True))), "the ONNX file")


def _exported(program: Program) -> Any:
    """The eval graph as an exported program, traced from the example inputs."""
    module = _Exportable(program).eval()
    shapes = torch.export.ShapesCollection()
    for leaf, dynamic in zip(program.flat_example(), program.signature.batch_dims, strict=True):
        if dynamic:
            shapes[leaf] = {0: torch.export.Dim.AUTO}
    args, kwargs = program.example
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(module, args, dict(kwargs), dynamic_shapes=shapes, strict=False)
        except Exception as error:  # torch.export raises errors of many types
            raise InputError(
                f"{program.class_name} cannot be exported as a graph: {one_line(error, 300)}; use --format safetensors"
            ) from error


class _Exportable(ProgramModule):
    """A program whose `forward` has the parameters of the user's, which torch.export names inputs after."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        compute = super().forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return plain(compute(*args, **kwargs))

        forward.__signature__ = signature_of(program)  # type: ignore[attr-defined]
        self.forward = forward  # type: ignore[method-assign]


def signature_of(program: Program) -> inspect.Signature:
    """Returns the signature of a call with the program's example inputs: positional ones by name, others by keyword."""
    nodes = [node for node in program.graphs["eval"].nodes if node.op == "placeholder"]
    args, kwargs = program.example
    names, first = [], 0
    for index, value in enumerate(args):
        name, _ = nodes[first].meta.get("argument", ("", index)) if first < len(nodes) else ("", index)
        taken = not name or name in names or name in kwargs
        names.append(f"input_{index}" if taken else name)
        first += len(pytree.tree_leaves(value))
    kind = inspect.Parameter
    return inspect.Signature(
        [kind(name, kind.POSITIONAL_OR_KEYWORD) for name in names] + [kind(name, kind.KEYWORD_ONLY) for name in kwargs]
    )


def plain(value: Any) -> Any:
    """Returns nested outputs with dicts in place of dataclasses and other mappings, and tuples for named tuples."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return tuple(plain(item) for item in value) if isinstance(value, tuple) else value


def _run_onnx(path: Path, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    import onnxruntime

    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feed = {item.name: inputs[item.name].detach().cpu().numpy() for item in session.get_inputs()}
        return [torch.from_numpy(value) for value in session.run(None, feed)]
    except Exception as error:  # onnxruntime raises errors of its own types
        raise InputError(f"onnxruntime cannot run the ONNX file: {one_line(error, 300)}; use --format pt2") from error


def _compare(program: Program, found: Any, what: str) -> None:
    """Compares outputs with those of the program, in the network's own dtypes."""
    with torch.no_grad():
        expected = ProgramModule(program).eval()(*program.example[0], **program.example[1])
    pairs = _tensors(plain(expected)), _tensors(found)
    if [tuple(a.shape) for a in pairs[0]] != [tuple(b.shape) for b in pairs[1]]:
        raise CheckError(
            f"{what} has outputs of other shapes than the network; nothing was written; please report this"
        )
    for a, b in zip(*pairs, strict=True):
        if not a.numel():
            continue
        inexact = a.is_floating_point() or a.is_complex()
        limit = math.sqrt(torch.finfo(a.dtype).eps) if inexact else 0.0
        a, b = (side.to(torch.complex128 if side.is_complex() else torch.float64) for side in (a, b))
        gap = (a - b).abs().max().item() / (a.abs().max().item() or 1.0)
        if not gap <= limit:
            raise CheckError(
                f"{what} differs from the network by {gap:.1e} (relative, limit {limit:.1e}); nothing was written; "
                "please report this"
            )


def _tensors(value: Any) -> Sequence[torch.Tensor]:
    return [leaf.detach().cpu() for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
