"""`progc diff`: shows what changed between two programs, each a model, a run or a folder written by --out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from progc.cli.common import captured
from progc.cli.terminal import Terminal
from progc.errors import InputError
from progc.files.writing import json_text
from progc.runs.folder import is_run
from progc.runs.sources import Network, open_network

if TYPE_CHECKING:
    from progc.ir.program import Program


def run_diff(
    a: str, b: str | None, *, pipeline: str | None, weights: Path | None, graph: bool, seed: int, as_json: bool
) -> None:
    """Compares two programs and prints the result. A difference is not an error.

    Raises:
        ProgcError: see the exit codes of `progc.cli`. Wrong use is refused before any work.
    """
    from progc.pipeline.base import to_text
    from progc.pipeline.text import parse

    if b is None and pipeline is None:
        raise InputError("expected two models or folders to compare, got one; give a second, or --pipeline to run on A")
    passes = parse(pipeline) if pipeline is not None else []
    second = a if b is None else b
    for text, wanted in ((second, "--pipeline" * bool(passes)), (a, "--weights" * (weights is not None))):
        if wanted and _is_output(text):
            raise InputError(f"{wanted} needs a model, but {text} is a folder; give the model itself")
    for text in (a, second):
        if graph and _is_output(text):
            raise InputError(
                f"--graph needs a model, but {text} is an output folder without a graph; give the model itself"
            )
    terminal = Terminal()
    sides = {
        text: Path(text) if _is_output(text) else open_network(text, weights=given, note=terminal.note)
        for text, given in ((second, None), (a, weights))
    }
    with terminal.running():
        before = _side(terminal, sides[a], weights, seed)
        after = before if b is None else _side(terminal, sides[second], None, seed)
        if passes and not isinstance(after, Path):
            from progc.pipeline.manager import apply

            with terminal.phase("passes"):
                after = apply(after, passes)
        with terminal.phase("compare"):
            from progc.diffing import diff

            label = f"{second} after {to_text(passes)}" if passes else second
            found = diff(before, after, graph=graph, names=(a, label))
    terminal.print(json_text(found.to_json()) if as_json else str(found))


def _is_output(text: str) -> bool:
    """Whether a text names a folder that has no graph: any but that of a run."""
    return Path(text).is_dir() and not is_run(text)


def _side(terminal: Terminal, side: Network | Path, weights: Path | None, seed: int) -> Program | Path:
    return side if isinstance(side, Path) else captured(terminal, side, weights, seed)
