"""Reads functions out of checkouts of the published code (AutoProg, AutoProg-Zero); nothing of it is in this project.

Its files import libraries that are not needed for the functions that are compared (apex, tlt, a VAE), and both
repositories have a package `prog`. So a module is executed under a name of its own with stand-ins for what it cannot
import, a function of a training script is compiled alone, in a namespace that the caller gives, and so are statements
in the middle of one.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

COMMITS = {"AutoProg": "e7ecc98", "AutoProg-Zero": "1519475"}
"""Commits that the results are for, by name of the repository of github.com/changlin31."""


class Code:
    """The published code as far as the user has it.

    Attributes:
        autoprog, zero: folders of the checkouts; None: formulas stand for them.
    """

    def __init__(self, autoprog: Path | None = None, zero: Path | None = None) -> None:
        self.autoprog, self.zero = autoprog, zero
        self._modules: dict[tuple[Path, str], types.ModuleType] = {}

    def module(self, root: Path, name: str) -> types.ModuleType:
        """Imports a module of a checkout, such as `models.volo`; packages of that name elsewhere are not touched."""
        if (root, name) not in self._modules:
            with _alone(root), _stand_ins():
                self._modules[root, name] = importlib.import_module(name)
        return self._modules[root, name]

    def function(self, path: Path, name: str, namespace: Mapping[str, Any] | None = None) -> Any:
        """Compiles one function of a file alone.

        Args:
            path: the file.
            name: name of a function at the top level.
            namespace: what its body refers to.
        """
        (found,) = [node for node in _body(path) if isinstance(node, ast.FunctionDef) and node.name == name]
        return _executed([found], path, namespace or {})[name]

    def statements(self, path: Path, function: str, test: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
        """Executes the beginning of the body of an `if` in a function, up to its first inner `if` with an else.

        Args:
            path: the file.
            function: name of the function.
            test: source of the condition.
            namespace: variables before.

        Returns:
            The variables after.
        """
        (outer,) = [node for node in _body(path) if isinstance(node, ast.FunctionDef) and node.name == function]
        (found,) = [node for node in ast.walk(outer) if isinstance(node, ast.If) and ast.unparse(node.test) == test]
        last = next(k for k, node in enumerate(found.body) if isinstance(node, ast.If) and node.orelse)
        return _executed(found.body[: last + 1], path, namespace)


@functools.cache
def _body(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text(encoding="utf-8")).body


def _executed(nodes: list[ast.stmt], path: Path, namespace: Mapping[str, Any]) -> dict[str, Any]:
    own = dict(namespace)
    exec(compile(ast.Module(nodes, []), str(path), "exec"), own)
    return own


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """The checkout is first on the import path, and what is imported from it is forgotten afterwards."""
    before = set(sys.modules)
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in _own(root)}
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
        own = _own(root)
        for name in set(sys.modules) - before:
            if name.split(".")[0] in own:
                del sys.modules[name]
        sys.modules.update(hidden)


def _own(root: Path) -> set[str]:
    return {path.stem for path in root.iterdir() if path.is_dir() or path.suffix == ".py"}


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Modules that the published files import and the compared functions do not use."""
    import torch

    registry = types.ModuleType("timm.models.registry")
    vars(registry)["register_model"] = lambda function: function  # timm's own entries stay
    made = {"timm.models.registry": registry, "diffusion": types.ModuleType("diffusion")}
    before = {name: sys.modules.get(name) for name in made}
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    sys.modules.update(made)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the old names of timm's modules
            yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


def commit(root: Path) -> str:
    """Returns the commit of a checkout, with a plus if files are changed; `unknown` outside of git."""
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return "unknown"
    changed = subprocess.run(["git", "-C", str(root), "status", "--porcelain", "-uno"], capture_output=True, text=True)
    return done.stdout.strip() + ("+" if changed.stdout.strip() else "")
