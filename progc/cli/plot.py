"""`progc plot`: curves of one or several runs as a picture."""

from __future__ import annotations

from pathlib import Path

from progc.cli.terminal import Terminal
from progc.errors import InputError
from progc.files.writing import json_text


def run_plot(runs: list[Path], out: Path | None, *, as_json: bool) -> None:
    """Draws, or prints the curves as JSON.

    Args:
        runs: their folders.
        out: the picture; None: `plot.png` in the folder of the only run.

    Raises:
        InputError: a folder is none of a run, several runs and no `out`, or the picture cannot be written.
    """
    from progc.runs.plotting import draw, read_curves

    if out is None and len(runs) > 1 and not as_json:
        raise InputError(f"{len(runs)} runs and no place for their picture; give --out FILE")
    terminal = Terminal()
    with terminal.running():
        curves = [read_curves(run) for run in runs]
        path = None if as_json and out is None else out or runs[0] / "plot.png"
        if path is not None:
            draw(curves, path)
    if as_json:
        written = None if path is None else str(path)
        terminal.print(json_text({"runs": [run.to_json() for run in curves], "out": written}))
    else:
        terminal.print(f"written: {path}")
