"""Prints a program as text in SSA form, the same in every process.

    %x: f32[2, 197, 192] = linear(%a, blocks.0.attn.qkv.weight, blocks.0.attn.qkv.bias)  # blocks.0.attn

The text has no address, time or version, so it can be a golden file and be compared with `diff`. The short form names
operations without namespace and overload and does not list parameters; the full form adds overloads, a line for every
tensor of the program, and the passes applied so far.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from progc.ir.graphs import used_names
from progc.ir.notation import argument_text, call_text, meta_text, module_path, tensor_text
from progc.ir.program import Mode, Program


def print_graph(program: Program, mode: Mode = "eval", full: bool = False) -> str:
    """Returns the text of one graph of `program`, with a final newline.

    Args:
        program: the program.
        mode: "train" or "eval".
        full: whether to list the tensors and the history too, and to write operations with their overloads.
    """
    return "\n".join(_lines(program, mode, full)) + "\n"


def _lines(program: Program, mode: Mode, full: bool) -> Iterator[str]:
    yield f"{mode} graph of {program.class_name}"
    if full:
        for record in program.history:
            yield f"pass {record.text}" + ("" if record.changed else "  # unchanged")
        yield from _tensor_lines(program, mode)
    for node in program.graphs[mode].nodes:
        if node.op != "get_attr":
            line, frozen = _node_line(node, full), _frozen(program, node)
            yield line + (" " if "  # " in line else "  # ") + frozen if frozen else line


def _tensor_lines(program: Program, mode: Mode) -> Iterator[str]:
    read = used_names(program.graphs[mode])
    for name, tensor in program.tensors.items():
        spec = program.specs[name]
        remarks: list[str] = [spec.kind]
        if spec.kind == "parameter" and not tensor.requires_grad:
            remarks.append("frozen")
        if spec.kind == "buffer" and not spec.persistent:
            remarks.append("not saved")
        if name in program.tied:
            remarks.append(f"tied to {program.tied[name]}")
        elif name not in read:
            remarks.append("not read")
        yield f"{name}: {tensor_text(tensor)}  # {', '.join(remarks)}"


def _frozen(program: Program, node: fx.Node) -> str:
    """`(frozen)` if no parameter of an operation trains, `(frozen: fc.bias)` if some do."""
    names = [str(source.target) for source in node.all_input_nodes if source.op == "get_attr"]
    own = [name for name in names if name in program.specs and program.specs[name].kind == "parameter"]
    still = [name for name in own if not program.tensors[name].requires_grad]
    if not still:
        return ""
    return "(frozen)" if len(still) == len(own) else f"(frozen: {', '.join(still)})"


def _node_line(node: fx.Node, full: bool) -> str:
    if node.op == "output":
        return f"return {', '.join(argument_text(leaf) for leaf in _flat(node.args[0]))}"
    value = f"%{node.name}: {meta_text(node.meta.get('tensor'))}"
    if node.op == "placeholder":
        return f"{value} = input"
    path = module_path(node)
    return f"{value} = {call_text(node, full)}" + (f"  # {path}" if path else "")


def _flat(outputs: object) -> list[object]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
