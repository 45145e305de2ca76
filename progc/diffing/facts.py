"""Facts of a program as plain data, for reports and comparisons, and the sides of a comparison.

Reports hold the facts next to the weights, so that output folders can be compared without running the user's code.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from progc.analysis.axes import axes_of
from progc.analysis.chains import chains_of
from progc.errors import InputError
from progc.files.reading import read_folder
from progc.ir.notation import dtype_name, target_text
from progc.ir.printer import print_graph
from progc.ir.program import MODES, Program, TensorMeta
from progc.ir.tensor_file import open_tensors

_WEIGHTS = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or output; `dtype` and `shape` are None if it is not a tensor."""

    name: str
    dtype: str | None
    shape: tuple[int, ...] | None

    def __str__(self) -> str:
        return "not a tensor" if self.shape is None else f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts of a program. None means unknown: reports of older versions hold fewer facts.

    Attributes:
        class_name: qualified class of the user's module.
        params: number of scalar parameters; tied ones count once.
        trainable: number of those that train.
        frozen: names of the parameters that do not train.
        inputs, outputs: of the eval graph, at the example's sizes.
        chains: name to depth, as users count blocks.
        axes: name to size.
        tied: alias to canonical name.
        operations: per mode, how often each operation is called.
        graphs: per mode, sha256 of the printed graph.
        history: the passes applied so far that changed something, as pipeline text.
    """

    class_name: str | None = None
    params: int | None = None
    trainable: int | None = None
    frozen: tuple[str, ...] | None = None
    inputs: tuple[Port, ...] | None = None
    outputs: tuple[Port, ...] | None = None
    chains: Mapping[str, int] | None = None
    axes: Mapping[str, int] | None = None
    tied: Mapping[str, str] | None = None
    operations: Mapping[str, Mapping[str, int]] | None = None
    graphs: Mapping[str, str] | None = None
    history: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is the inverse."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Any) -> Facts:
        """Reads what `to_json` wrote.

        Raises:
            InputError: `data` is something else.
        """
        try:
            known = {field.name: data.get(field.name) for field in dataclasses.fields(Facts)}
            for key in ("inputs", "outputs"):
                if known[key] is not None:
                    known[key] = tuple(_port(item) for item in known[key])
            for key in ("frozen", "history"):
                if known[key] is not None:
                    known[key] = tuple(str(item) for item in known[key])
            for key in ("chains", "axes"):
                if known[key] is not None:
                    known[key] = {str(name): int(size) for name, size in known[key].items()}
            for key in ("tied", "graphs"):
                if known[key] is not None:
                    known[key] = {str(name): str(text) for name, text in known[key].items()}
            if known["operations"] is not None:
                known["operations"] = {
                    str(mode): {str(name): int(count) for name, count in counts.items()}
                    for mode, counts in known["operations"].items()
                }
            for key in ("params", "trainable"):
                known[key] = None if known[key] is None else int(known[key])
            return Facts(**known)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"`program` in a report cannot be read ({type(error).__name__}: {error}); write the folder again"
            ) from error


def describe_program(program: Program) -> Facts:
    """The facts of a program. Analysis runs, the network does not; values are not read."""
    graph = program.graphs["eval"]
    returned = graph.output_node().args[0]
    leaves = returned if isinstance(returned, (list, tuple)) else [returned]
    return Facts(
        class_name=program.class_name,
        params=program.num_parameters(),
        trainable=sum(tensor.numel() for _, tensor in program.parameters() if tensor.requires_grad),
        frozen=tuple(name for name, tensor in program.parameters() if not tensor.requires_grad),
        inputs=tuple(_port_of(node.name, node) for node in graph.nodes if node.op == "placeholder"),
        outputs=tuple(_port_of(str(number), leaf) for number, leaf in enumerate(leaves)),
        chains={chain.name: chain.siblings for chain in chains_of(program)},
        axes={axis.name: axis.size for axis in axes_of(program).axes},
        tied=dict(program.tied),
        operations={
            mode: dict(
                collections.Counter(
                    target_text(node.target, full=False)
                    for node in program.graphs[mode].nodes
                    if node.op == "call_function"
                )
            )
            for mode in MODES
        },
        graphs={mode: hashlib.sha256(print_graph(program, mode).encode()).hexdigest() for mode in MODES},
        history=tuple(record.text for record in program.history if record.changed),
    )


def _port_of(name: str, node: Any) -> Port:
    meta = node.meta.get("tensor") if hasattr(node, "meta") else None
    return Port(name, dtype_name(meta.dtype), meta.shape) if isinstance(meta, TensorMeta) else Port(name, None, None)


def _port(data: Mapping[str, Any]) -> Port:
    shape = data["shape"]
    return Port(str(data["name"]), data["dtype"], None if shape is None else tuple(int(size) for size in shape))


@dataclasses.dataclass(frozen=True, eq=False)
class DiffSide:
    """One side of a comparison.

    Attributes:
        name: the name for the output.
        facts: facts of the program.
        tensors: parameters and buffers by name; deferred if they are in a file.
        saved: names in the state dict.
        program: None for a folder, which holds no graph.
    """

    name: str
    facts: Facts
    tensors: Mapping[str, torch.Tensor]
    saved: frozenset[str]
    program: Program | None = None


def side_of(what: Program | Path | str, name: str | None = None) -> DiffSide:
    """Returns the side of a program, or of a folder written by `--out`.

    Raises:
        InputError: the folder was not written by `--out`, or a file in it is damaged.
    """
    if isinstance(what, Program):
        # Lifted constants have numbers, not names: differences appear in the graphs.
        tensors = {key: value for key, value in what.tensors.items() if what.specs[key].kind != "constant"}
        saved = frozenset(what.persistent()) & tensors.keys()
        return DiffSide(name or what.class_name, describe_program(what), tensors, saved, what)
    return _folder(Path(what), name or str(what))


def _folder(path: Path, name: str) -> DiffSide:
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; expected one written by --out, or a program")
    content = read_folder(path)
    if _WEIGHTS not in content["tensors"]:
        raise InputError(f"{path} has no {_WEIGHTS}; expected a folder written by --out")
    tensors = open_tensors(path / _WEIGHTS)
    return DiffSide(name, _facts(content), tensors, frozenset(tensors))


def _facts(content: Mapping[str, Any]) -> Facts:
    report, plan = content["report"], content["plan"] or {}
    if report.get("program") is not None:
        return Facts.from_json(report["program"])
    count, text = report.get("params_after"), report.get("pipeline", plan.get("pipeline"))
    return Facts(
        params=count if isinstance(count, int) else None,
        history=(text,) if isinstance(text, str) and text else (() if text == "" else None),
    )
