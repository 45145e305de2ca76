"""Exports the network of a run: weights, checks and the file, which is written completely or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progc.errors import InputError
from progc.files.writing import check_file, output_file, output_folder, temporary_name
from progc.runs.exporting.identifier import Identifier, folded
from progc.runs.exporting.own_class import NOT_TRIED, OwnClass, full_source, in_own_class
from progc.runs.networks import Note, Phase
from progc.runs.trained import TrainedNetwork

if TYPE_CHECKING:
    from progc.ir.program import Program

FOLDER = "folder"
SUFFIXES = {"safetensors": ".safetensors", "pt2": ".pt2", "onnx": ".onnx", FOLDER: ""}
"""The formats, with the suffix of their files."""
_PARTS = (".safetensors", ".safetensors.index.json", "config.json")
"""Ends of the names that a folder of a library may hold if it is to be replaced."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to export, checked as far as possible before anything is built.

    Attributes:
        network: the run, and which of its weights.
        identifier: what becomes of the stage identifier; None if there is none.
        form: a key of `SUFFIXES`.
        path: the file or folder to write.
        force: whether an existing one is replaced.
    """

    network: TrainedNetwork
    identifier: Identifier | None
    form: str
    path: Path
    force: bool = False

    @classmethod
    def make(
        cls,
        network: TrainedNetwork,
        *,
        sid: str | None = None,
        form: str | None = None,
        to: Path | None = None,
        force: bool = False,
    ) -> Request:
        """Reads the options of `progc export`.

        Args:
            network: the run, and which of its weights.
            sid: see `Identifier.choose`.
            form: a key of `SUFFIXES`; None follows from the name of `to`.
            to: the file or folder to write; None: in the folder of the run.
            force: replace an existing one.

        Raises:
            InputError: an option is invalid, cannot be combined with another one, or the target exists.
        """
        identifier = Identifier.choose(sid, network.run.schedule, network.weights.stage)
        form = _form(form, to)
        if form == FOLDER:
            _check_library(network, identifier)
        if form == "onnx":
            from progc.runs.exporting.graph_files import check_onnx

            check_onnx()
        request = cls(network, identifier, form, to if to is not None else _default(network, sid, form), force)
        request.check_target()
        return request

    def check_target(self) -> None:
        """Checks that the file or folder can be written.

        Raises:
            InputError: it exists and is not to be replaced, or its place takes no files.
        """
        path, there = self.path, self.path.exists() or self.path.is_symlink()
        if there and not self.force:
            raise InputError(f"{path} exists; add --force to replace it, or give another --to")
        if self.form != FOLDER:
            check_file(path)
        elif there and not (path.is_dir() and all(_is_part(name) for name in os.listdir(path))):
            raise InputError(f"{path} holds more than an exported network, so it is not replaced; give another --to")


def export(request: Request, *, phase: Phase, note: Note) -> dict[str, Any]:
    """Writes the network and returns a report, JSON data.

    Raises:
        InputError: the network cannot be built again, or cannot be written in this format.
        NotLosslessError: the identifier cannot be folded.
        CheckError: the exported network differs from that of the run; nothing is written.
    """
    network = request.network
    run, weights = network.run, network.weights
    program = network.program(phase=phase, note=note)
    with phase("check"):
        folding = folded(program, request.identifier)
    kept = request.identifier is not None and request.identifier.kept
    if kept:
        own = OwnClass(NOT_TRIED, "the network keeps its identifier, which the class does not have")
    else:
        own = in_own_class(run, weights.stage, folding, phase=phase)
    with phase("write"):
        _write(request, folding.program, own)
    measured = own.difference if own.difference is not None else folding
    return {
        "run": str(run.path),
        "path": str(request.path),
        "format": request.form,
        "weights": network.origin,
        "average": network.average,
        "averages": list(weights.decays),
        "step": weights.step,
        "stage": weights.stage,
        "stages": len(run.schedule.stages),
        "finished": run.finished,
        "sid": "kept" if kept else folding.row,
        "folded_into": list(folding.into),
        "class": own.status,
        "class_reason": own.reason or None,
        "max_abs_diff": measured.max_abs,
        "max_rel_diff": measured.max_rel,
        "params": folding.program.num_parameters(),
        "bytes": _size(request.path),
    }


def _form(form: str | None, to: Path | None) -> str:
    """The format that the options name."""
    if form is not None:
        if form not in SUFFIXES:
            raise InputError(f"--format {form}: expected {', '.join(SUFFIXES)}")
        others = {suffix for name, suffix in SUFFIXES.items() if suffix and name != form}
        if to is not None and to.suffix in others:
            raise InputError(f"--to {to} has the suffix of another format than --format {form}; leave out one of them")
        return form
    if to is None:
        return "safetensors"
    found = next((name for name, suffix in SUFFIXES.items() if suffix and to.suffix == suffix), None)
    if found is None:
        raise InputError(f"--to {to} does not tell the format; add --format {', '.join(SUFFIXES)}")
    return found


def _default(network: TrainedNetwork, sid: str | None, form: str) -> Path:
    """A name that says which network it is; in the folder of the run, also for one of its checkpoints."""
    parts = ["export"]
    if not network.run.finished or network.weights.stage + 1 < len(network.run.schedule.stages):
        parts.append(f"step-{network.weights.step}")
    if network.average is not None:
        parts.append(f"ema-{network.average!r}")
    if sid is not None:
        parts.append(f"sid-{sid}")
    folder = network.run.path if network.weights.path != network.run.path else network.run.path.resolve().parent
    return folder / f"{'-'.join(parts)}{SUFFIXES[form]}"


def _check_library(network: TrainedNetwork, identifier: Identifier | None) -> None:
    from progc.models.saving import check_folder

    run, stage = network.run, network.weights.stage
    if identifier is not None and identifier.kept:
        raise InputError(
            "--format folder cannot keep the identifier, which the class does not have; leave out --sid keep"
        )
    source = full_source(run)
    if source is None:
        raise InputError(f"{run.path} grows to sizes that no config describes; export it with --format safetensors")
    check_folder(source)
    stages = run.schedule.stages
    if stages[stage].point.network != stages[-1].point.network:
        raise InputError(
            f"stage {stage} of {run.path} is smaller than {source.text}, so no config describes it; export it with "
            "--format safetensors"
        )


def _write(request: Request, program: Program, own: OwnClass) -> None:
    if request.form == FOLDER:
        from progc.models.saving import save_folder

        source = full_source(request.network.run)
        if own.model is None or source is None:
            raise InputError(f"no folder was written: {own.reason}; export it with --format safetensors")
        with _replaced(request.path) as fresh, output_folder(fresh) as folder:
            save_folder(own.model, folder, source)
        return
    with output_file(request.path) as path:
        if request.form == "safetensors":
            from progc.ir.tensor_file import write_tensors

            write_tensors(path, program.persistent())
        elif request.form == "pt2":
            from progc.runs.exporting.graph_files import write_pt2

            write_pt2(program, path)
        else:
            from progc.runs.exporting.graph_files import write_onnx

            write_onnx(program, path)


@contextlib.contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Yields the name to write a folder under; an existing folder is replaced when the new one is complete."""
    if not folder.exists():
        yield folder
        return
    fresh, aside = temporary_name(folder.resolve()), temporary_name(folder.resolve())
    yield fresh
    os.replace(folder, aside)
    os.replace(fresh, folder)
    shutil.rmtree(aside)


def _is_part(name: str) -> bool:
    return name.endswith(_PARTS)


def _size(path: Path) -> int:
    return sum(item.stat().st_size for item in path.iterdir()) if path.is_dir() else path.stat().st_size
