"""Averaged weights of a command: reads `--ema FILE`, writes `ema.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from progc.ir.program import Program


def with_average(program: Program, path: Path) -> Program:
    """Attaches the averaged weights of a file to the program. The file may leave out buffers, as many averages do.

    Raises:
        InputError: the file cannot be read, or does not fit the program.
    """
    from progc.files.weights import check_fit, read_weights
    from progc.ir.program import Average
    from progc.lift.averages import attached

    tensors = read_weights(path, ema=True)
    state = program.state_dict()
    optional = {name for name in state if program.specs[name].kind == "buffer"}
    for alias, name in program.tied.items():  # a tied tensor may be saved under either name
        found = tensors.get(name, tensors.get(alias))
        if found is not None:
            tensors[alias] = tensors[name] = found
    check_fit(path, tensors, state, program.class_name.rpartition(".")[2], optional)
    return attached(program, Average({name: tensor.to(state[name].dtype) for name, tensor in tensors.items()}))


def write_average(folder: Path, program: Program) -> None:
    """Writes the program's average as `ema.safetensors`, under the names of its state dict."""
    from progc.ir.tensor_file import write_tensors

    (average,) = program.averages
    write_tensors(folder / "ema.safetensors", {name: average.tensors[name] for name in program.persistent()})
