"""Imports Python files of the user under a private name, without a trace in `sys.path` or on disk.

While such a file runs, its own folder comes first in `sys.path`, as when Python runs it as a script, so it
can import its neighbours. Neighbours of one folder are dropped from `sys.modules` before a file of another
folder runs: two projects may both have a `layers.py`.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import sysconfig
import tokenize
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from progc.errors import InputError, ProgcError, one_line

_LARGEST = 16 << 20  # bytes of a Python file
_loaded: dict[tuple[Path, int, int], types.ModuleType] = {}
_neighbours: dict[Path, dict[str, types.ModuleType]] = {}
_present: Path | None = None  # the folder whose neighbours are in `sys.modules`
_LIBRARIES = [Path(__file__).parents[1], *{Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}]


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
    return UserFunction(path, function, when)()


class UserFunction:
    """A function of the user's file, called once per call whatever it raises.

    A second call would hide an error, and would draw other random numbers.
    """

    def __init__(self, path: Path, function: Callable[..., Any], when: str) -> None:
        """
        Args:
            path: the file; its folder is importable during a call.
            function: the function.
            when: what the file does at that moment, for messages; `{1}` stands for the second argument of a call.
        """
        self._path, self._function, self._when = path, function, when
        self._importable = _Importable(path.resolve().parent)

    def __call__(self, *args: Any) -> Any:
        """Returns the result of the function.

        Raises:
            InputError: the file raised an exception; the message gives it on one line, with the line of the file.
        """
        try:
            with self._importable:
                return self._function(*args)
        except ProgcError:
            raise
        except SystemExit as error:
            raise InputError(
                f"{self._path} exits when it {self._when.format(*args)}; put its script part below "
                "`if __name__ == '__main__':`"
            ) from error
        except Exception as error:
            text = one_line(error, empty="no message")
            raise InputError(
                f"{_place(self._path, error)}: {type(error).__name__} when the file {self._when.format(*args)}: {text}"
            ) from error


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


class _Importable:
    """Makes a folder importable inside the context; cheap, since it surrounds every sample and every loss."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._text = folder, str(folder)
        self._before: list[tuple[list[str], bool, int]] = []

    def __enter__(self) -> None:
        global _present
        if _present != self._folder:
            for other, modules in _neighbours.items():
                if other != self._folder:
                    for name, module in modules.items():
                        if sys.modules.get(name) is module:
                            del sys.modules[name]
            sys.modules.update(_neighbours.get(self._folder, {}))
            _present = self._folder
        self._before.append((list(sys.path), sys.dont_write_bytecode, len(sys.modules)))
        sys.path.insert(0, self._text)
        sys.dont_write_bytecode = True

    def __exit__(self, *_: object) -> None:
        sys.path[:], sys.dont_write_bytecode, count = self._before.pop()
        if len(sys.modules) > count:  # new modules stand at the end
            mine = _neighbours.setdefault(self._folder, {})
            for name, module in list(sys.modules.items())[count:]:
                file = getattr(module, "__file__", None)
                if file and self._folder in Path(file).parents and not _installed(Path(file)):
                    mine[name] = module


def _installed(file: Path) -> bool:
    """Whether a module belongs to an environment (one may live inside the user's folder), not to the project."""
    return any(part in ("site-packages", "dist-packages") for part in file.parts)


def _place(path: Path, error: BaseException) -> str:
    """`path:line` of the innermost frame in the folder of the user's file, else just the path."""
    resolved = path.resolve()
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == str(resolved):
            return f"{path}:{frame.lineno}"
        if resolved.parent in Path(frame.filename).parents and _is_users(Path(frame.filename)):
            return f"{path.parent / Path(frame.filename).relative_to(resolved.parent)}:{frame.lineno}"
    return str(path)


def user_place(error: BaseException) -> str | None:
    """Returns `path:line` of the innermost frame that belongs to no library; None if there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_absolute() and _is_users(file):
            here = Path.cwd()
            return f"{file.relative_to(here) if here in file.parents else file}:{frame.lineno}"
    return None


def _is_users(file: Path) -> bool:
    """Whether a source file is neither installed nor part of Python or progc."""
    return not _installed(file) and not any(folder in file.parents for folder in _LIBRARIES)
