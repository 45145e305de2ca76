"""`progc doctor`: checks whether this machine can train. Exit code 1 if something is broken."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import typer

from progc.cli.terminal import Terminal
from progc.files.writing import json_text


def run_doctor(folder: Path, *, as_json: bool) -> None:
    """Prints one line per check.

    Args:
        folder: the folder for runs.

    Raises:
        typer.Exit: with code 1 if a check found something broken.
    """
    from progc.runs.doctor import checks

    terminal = Terminal()
    with terminal.running():
        with terminal.phase("checks"):
            found = list(checks(folder))
    broken = [check.name for check in found if check.state == "broken"]
    if as_json:
        terminal.print(json_text({"checks": [dataclasses.asdict(check) for check in found], "broken": broken}))
    else:
        terminal.table([(check.state, check.name, check.text) for check in found])
        terminal.print()
        ending = f"broken: {', '.join(broken)}" if broken else "this machine can train"
        terminal.print(ending)
    if broken:
        raise typer.Exit(1)
