"""What the commands share: from a source to a program, with its phases on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from progc.cli.terminal import Terminal

if TYPE_CHECKING:
    from progc.ir.program import Program
    from progc.models.source import Source


def captured(terminal: Terminal, source: Source, weights: Path | None, seed: int) -> Program:
    """Builds, loads and captures a source; says on stderr where its weights come from.

    Raises:
        InputError: it cannot be built, the weights do not fit, or example inputs are missing.
        CaptureError: it cannot be captured.
    """
    with terminal.phase("build"):
        model = source.build(seed)
        example = source.example(model)
        if weights is not None:
            from progc.files.weights import load_weights

            load_weights(model, weights)
    if weights is None:
        origin = source.trained or f"none given (--weights): as {type(model).__name__} initialises them, seed {seed}"
        terminal.note(f"weights of {source.text}: {origin}")
    with terminal.phase("capture"):
        from progc.capturing.capture import capture

        return capture(model, *example)


def versions() -> dict[str, Any]:
    """What a report states about the software that made it."""
    import torch

    from progc.version import __version__

    return {"progc": __version__, "torch": torch.__version__}


def millions(count: int) -> str:
    """A parameter count for people: `85,798,656 (85.8 M)`."""
    return f"{count:,}" + (f" ({count / 1e6:.1f} M)" if count >= 100_000 else "")
