"""What several commands need: from a source to a program, versions, parameter counts as text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from progc.cli.terminal import Terminal

if TYPE_CHECKING:
    from progc.ir.program import Program
    from progc.models.source import Source


def captured(terminal: Terminal, source: Source, weights: Path | None, seed: int) -> Program:
    """Builds, loads and captures a source, and reports on stderr where its weights come from.

    Raises:
        InputError: the model cannot be built, the weights do not fit, or example inputs are missing.
        CaptureError: torch.export cannot capture the model.
    """
    with terminal.phase("build"):
        model = source.build(seed)
        example = source.example(model)
        if weights is not None:
            from progc.files.weights import load_weights

            load_weights(model, weights)
    if weights is None:
        origin = source.trained or f"initialised by {type(model).__name__} with seed {seed} (no --weights)"
        terminal.note(f"weights of {source.text}: {origin}")
    with terminal.phase("capture"):
        from progc.capturing.capture import capture

        return capture(model, *example)


def versions() -> dict[str, Any]:
    """Returns the versions that a report states."""
    import torch

    from progc.version import __version__

    return {"progc": __version__, "torch": torch.__version__}


def millions(count: int) -> str:
    """Returns a parameter count as text: `85,798,656 (85.8 M)`."""
    return f"{count:,}" + (f" ({count / 1e6:.1f} M)" if count >= 100_000 else "")
