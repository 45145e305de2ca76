"""Numbers in names: numbered modules, and tensor names that differ by one numeric token."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from progc.ir.program import Program

_NUMBERED = re.compile(r"^(.*?)(\d+)$")
_TOKEN = re.compile(r"\d+")
_REPEAT = re.compile(r"@\d+")


@dataclasses.dataclass(frozen=True, order=True)
class Container:
    """Numbered modules side by side: `parent.prefixN`. The prefix is empty for ModuleList and Sequential."""

    parent: str
    prefix: str

    @property
    def stem(self) -> str:
        """Everything before the number: `"blocks."`, `"encoder.layers.encoder_layer_"`."""
        return f"{self.parent}.{self.prefix}" if self.parent else self.prefix

    @property
    def name(self) -> str:
        """Name for users: the module list itself, or the path with `#` for the number."""
        return self.parent if self.parent and not self.prefix else self.stem + "#"

    def path(self, index: int) -> str:
        """Module path of the child with that number."""
        return f"{self.stem}{index}"


def split_number(path: str) -> tuple[Container, int] | None:
    """Container and number of a module path, None if its last component does not end in a number."""
    parent, _, last = path.rpartition(".")
    match = _NUMBERED.match(last)
    if match is None or str(int(match[2])) != match[2]:
        return None
    return Container(parent, match[1]), int(match[2])


def plain_path(path: str) -> str:
    """A module path of `nn_module_stack` without the mark of a repeated call."""
    return _REPEAT.sub("", path)


def block_tensors(program: Program, path: str, index: int, stem: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of all tensors below a module path, and their patterns with `#` for the block's number."""
    names = tuple(
        name for name in program.tensors if name.startswith(path + ".") and program.specs[name].kind != "constant"
    )
    return names, tuple(f"{stem}#{name[len(path) :]}" for name in names)


def numbered_step(names: Sequence[str]) -> tuple[str, int, int] | None:
    """Pattern, first number and step that give `names` (two or more), None when they do not differ in one number.

    `["blk0_wq", "blk1_wq"]` gives `("blk#_wq", 0, 1)`.
    """
    first, second = names[0], names[1]
    tokens, others = list(_TOKEN.finditer(first)), list(_TOKEN.finditer(second))
    if len(tokens) != len(others):
        return None
    for token, other in zip(tokens, others, strict=True):
        start, step = int(token[0]), int(other[0]) - int(token[0])
        if step < 1:
            continue
        pattern = f"{first[: token.start()]}#{first[token.end() :]}"
        if all(pattern.replace("#", str(start + k * step)) == name for k, name in enumerate(names)):
            return pattern, start, step
    return None


def common_stem(patterns: Iterable[str]) -> str:
    """The longest common prefix of patterns that still has its `#`, else the first pattern up to its `#`."""
    given = list(patterns)
    low, high = min(given), max(given)
    length = next((k for k, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    prefix = low[:length]
    if "#" not in prefix:
        return given[0][: given[0].index("#") + 1]
    cut = max(prefix.rfind("."), prefix.rfind("_"), prefix.rfind("#"))
    return prefix[: cut + 1]
