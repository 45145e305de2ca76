"""Imports Python files of the user under a private name, without a trace in `sys.path` or on disk.

While such a file runs, its own folder comes first in `sys.path`, as when Python runs it as a script, so it
can import its neighbours. Neighbours of one folder are dropped from `sys.modules` before a file of another
folder runs: two projects may both have a `layers.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import sys
import tokenize
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from progc.errors import InputError, ProgcError, one_line

_LARGEST = 16 << 20  # bytes of a Python file
_loaded: dict[tuple[Path, int, int], types.ModuleType] = {}
_neighbours: dict[Path, dict[str, types.ModuleType]] = {}


def load_file(path: Path) -> types.ModuleType:
    """Imports a Python file; returns the same module as long as the file does not change.

    Raises:
        InputError: the file is missing, is not Python, or fails on import (the message gives the line).
    """
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"no such file: {path}; expected a Python file that defines a model") from error
    if not path.is_file():
        raise InputError(f"{path} is not a file; expected a Python file that defines a model")
    resolved = path.resolve()
    key = (resolved, status.st_mtime_ns, status.st_size)
    if key not in _loaded:
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
        module = types.ModuleType(f"_progc_user_{digest}")
        module.__file__ = str(resolved)
        code = _compiled(path)
        # dataclasses and typing look a class's module up in sys.modules
        sys.modules[module.__name__] = module
        try:
            run(path, lambda: exec(code, module.__dict__), "is imported")
        except BaseException:
            del sys.modules[module.__name__]
            raise
        _loaded[key] = module
    return _loaded[key]


def run(path: Path, function: Callable[[], Any], when: str) -> Any:
    """Calls a function of the user's file, with the folder of the file importable; returns its result.

    Args:
        path: the file.
        function: the function.
        when: what the file does at that moment, for the message: "is imported", "builds the model".

    Raises:
        InputError: the file raised an exception; the message gives it on one line, with the line of the file.
    """
    try:
        with _importable(path.resolve().parent):
            return function()
    except ProgcError:
        raise
    except SystemExit as error:
        raise InputError(
            f"{path} exits when it {when}; put its script part below `if __name__ == '__main__':`"
        ) from error
    except Exception as error:
        text = f"{type(error).__name__} when the file {when}: {one_line(error, empty='no message')}"
        raise InputError(f"{_place(path, error)}: {text}") from error


def required_arguments(function: Callable[..., Any]) -> list[str]:
    """Returns the names of the parameters that have no default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C: it has no signature to read
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in optional]


def accepted_arguments(function: Callable[..., Any]) -> list[str] | None:
    """Returns the names of the parameters that may be given by keyword; None if every name may."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _compiled(path: Path) -> types.CodeType:
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        with tokenize.open(path) as file:  # honours the file's own encoding line
            source = file.read()
        return compile(source, str(path.resolve()), "exec", dont_inherit=True)
    except SyntaxError as error:
        line = f":{error.lineno}" if error.lineno else ""
        raise InputError(f"{path}{line}: syntax error: {error.msg}; fix the file and try again") from error
    except (OSError, ValueError, RecursionError, MemoryError) as error:  # unreadable, not text, null bytes, too deep
        raise InputError(f"{path} cannot be read as Python: {error}") from error


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    for other, modules in _neighbours.items():
        if other != folder:
            for name, module in modules.items():
                if sys.modules.get(name) is module:
                    del sys.modules[name]
    sys.modules.update(_neighbours.get(folder, {}))
    before, path, bytecode = set(sys.modules), list(sys.path), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path[:], sys.dont_write_bytecode = path, bytecode
        mine = _neighbours.setdefault(folder, {})
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and folder in Path(file).parents and not _installed(Path(file)):
                mine[name] = sys.modules[name]


def _installed(file: Path) -> bool:
    """Whether a module belongs to an environment (one may live inside the user's folder), not to the project."""
    return any(part in ("site-packages", "dist-packages") for part in file.parts)


def _place(path: Path, error: BaseException) -> str:
    """`path:line` of the innermost frame inside the user's file, else just the path."""
    resolved = str(path.resolve())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == resolved]
    return f"{path}:{lines[-1]}" if lines else str(path)
