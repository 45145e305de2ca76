"""`progc passes`: lists the passes. The list is read from source files, so torch is not imported."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from progc.cli.terminal import Terminal


def run_passes(name: str | None) -> None:
    """Prints one line per pass, or one pass in full.

    Raises:
        InputError: there is no such pass.
    """
    from progc.pipeline.registry import PASSES, load_pass, names

    terminal = Terminal()
    if name is not None:
        terminal.print(load_pass(name).doc().rstrip("\n"))
        return
    terminal.table([(label, _summary(PASSES[label]) if label in PASSES else "") for label in names()])


def _summary(place: str) -> str:
    """First line of the docstring of `module:Class`, read from its source file."""
    module, _, attribute = place.partition(":")
    try:
        spec = importlib.util.find_spec(module)
        tree = ast.parse(Path(str(spec.origin if spec else None)).read_text(encoding="utf-8"))
    except (ImportError, OSError, ValueError, SyntaxError):
        return ""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == attribute:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""
