"""What several commands need: from a source to a program, versions, parameter counts as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progc.cli.terminal import Terminal

if TYPE_CHECKING:
    from progc.ir.program import Program
    from progc.runs.sources import Network


def captured(terminal: Terminal, network: Network, weights: Path | None, seed: int) -> Program:
    """Builds, loads and captures a source or the network of a run, with its phases and notes on the terminal."""
    from progc.runs.sources import program_of

    return program_of(network, weights=weights, seed=seed, phase=terminal.phase, note=terminal.note)


def with_args(source: str, texts: Sequence[str] | None) -> str:
    """Returns the text of a source with the arguments of `--model-arg`.

    Raises:
        InputError: a text has no `=`, or an argument is given twice.
    """
    from progc.files.values import key_values, literal
    from progc.models.arguments import joined

    found = key_values(texts or (), example="num_classes=10", option="--model-arg")
    return joined(source, {name: literal(text) for name, text in found.items()})


def versions() -> dict[str, Any]:
    """Returns the versions that a report states."""
    import torch

    from progc.version import __version__

    return {"progc": __version__, "torch": torch.__version__}


def millions(count: int) -> str:
    """Returns a parameter count as text: `85,798,656 (85.8 M)`."""
    return f"{count:,}" + (f" ({count / 1e6:.1f} M)" if count >= 100_000 else "")
