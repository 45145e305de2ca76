"""`progc inspect` of a checkpoint: verifies it and prints its manifest. Imports no torch, runs no user code."""

from __future__ import annotations

from pathlib import Path

from progc.checkpoints.searching import facts
from progc.cli.terminal import Terminal
from progc.files.writing import json_text


def print_checkpoint(path: Path, as_json: bool) -> None:
    """Prints what a checkpoint holds, after reading and verifying every byte.

    Raises:
        InputError: the checkpoint does not verify; the message names the file and the reason.
    """
    terminal = Terminal()
    found = facts(path)
    if as_json:
        terminal.print(json_text(found))
        return
    shown = {**found, "holds": ", ".join(found["holds"]), "run": found["run"] or "none"}
    shown["versions"] = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    terminal.table([(name, str(value)) for name, value in shown.items() if not isinstance(value, dict)])
    terminal.print()
    terminal.table(
        [
            (f"  {name}", f"{entry['size']:,} bytes", f"{entry['tensors']} tensors" if "tensors" in entry else "")
            for name, entry in found["files"].items()
        ]
    )
