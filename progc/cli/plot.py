"""`progc plot`: draws curves of one or several runs."""

from __future__ import annotations

from pathlib import Path

from progc.cli.terminal import Terminal
from progc.errors import InputError
from progc.files.writing import json_text


def run_plot(runs: list[Path], out: Path | None, *, as_json: bool) -> None:
    """Draws the curves, or prints them as JSON.

    Args:
        runs: folders of runs.
        out: the picture to write. None writes `plot.png` into the folder of a single run.

    Raises:
        InputError: a folder holds no run, `out` is missing for several runs, or the picture cannot be written.
    """
    from progc.runs.plotting import draw, read_curves

    if out is None and len(runs) > 1 and not as_json:
        raise InputError(f"plotting {len(runs)} runs needs a file for the picture; give --out FILE")
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
