"""Numbers in names: numbered modules, and tensor names that differ in one number.

`numbered_cut` uses them to cut a repeated region of a graph into blocks.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import fx

from progc.analysis.chains.repeats import RepeatedRegion
from progc.ir.program import Program

_NUMBERED = re.compile(r"^(.*?)(\d+)$")
_TOKEN = re.compile(r"\d+")
_REPEAT = re.compile(r"@\d+")


@dataclasses.dataclass(frozen=True, order=True)
class Container:
    """Numbered modules with a common parent: `parent.prefixN`. The prefix is empty for ModuleList and Sequential."""

    parent: str
    prefix: str

    @property
    def stem(self) -> str:
        """The part before the number: `"blocks."`, `"encoder.layers.encoder_layer_"`."""
        return f"{self.parent}.{self.prefix}" if self.parent else self.prefix

    @property
    def name(self) -> str:
        """The name for users: the module list itself, or the path with `#` for the number."""
        return self.parent if self.parent and not self.prefix else self.stem + "#"

    def path(self, index: int) -> str:
        """Returns the module path of the child with this number."""
        return f"{self.stem}{index}"


def split_number(path: str) -> tuple[Container, int] | None:
    """Returns container and number of a module path; None if its last component does not end in a number."""
    parent, _, last = path.rpartition(".")
    match = _NUMBERED.match(last)
    if match is None or str(int(match[2])) != match[2]:
        return None
    return Container(parent, match[1]), int(match[2])


def plain_path(path: str) -> str:
    """Returns a module path of `nn_module_stack` without the mark of a repeated call."""
    return _REPEAT.sub("", path)


def block_tensors(program: Program, path: str, index: int, stem: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of all tensors below a module path, and their patterns with `#` for the block number."""
    names = tuple(
        name for name in program.tensors if name.startswith(path + ".") and program.specs[name].kind != "constant"
    )
    return names, tuple(f"{stem}#{name[len(path) :]}" for name in names)


def numbered_step(names: Sequence[str]) -> tuple[str, int, int] | None:
    """Returns pattern, first number and step of two or more `names`; None if they do not differ in one number only.

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
    """Returns the longest common prefix of patterns that has a `#`, else the first pattern up to its `#`."""
    given = list(patterns)
    low, high = min(given), max(given)
    length = next((k for k, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    prefix = low[:length]
    if "#" not in prefix:
        return given[0][: given[0].index("#") + 1]
    cut = max(prefix.rfind("."), prefix.rfind("_"), prefix.rfind("#"))
    return prefix[: cut + 1]


@dataclasses.dataclass(frozen=True)
class Cut:
    """A sequence of operations cut into blocks.

    Attributes:
        spans: first index and last index + 1 of each block.
        names: tensor name to pattern, for each block.
        numbers: the number of each block.
    """

    spans: tuple[tuple[int, int], ...]
    names: tuple[Mapping[str, str], ...]
    numbers: tuple[int, ...]


def own_names(node: fx.Node | None) -> list[str]:
    """Returns the names of the parameters and buffers that a node reads."""
    if node is None:
        return []
    names = [str(arg.target) for arg in node.all_input_nodes if arg.op == "get_attr"]
    return [name for name in names if not name.startswith("_constants.")]


def numbered_cut(
    nodes: Sequence[fx.Node | None], labels: Sequence[Any], live: Sequence[int], region: RepeatedRegion
) -> Cut | str:
    """Cuts a region into blocks by the numbers in its parameter names, or returns the reason why it cannot."""
    numbers: dict[int, dict[str, tuple[int, str]]] = {}
    repeats = region.length // region.period
    for column in range(region.period):
        rows = [region.start + column + i * region.period for i in range(repeats + 1)]
        rows = [k for k in rows if k < region.stop]
        per_row = [own_names(nodes[k]) for k in rows]
        for names in zip(*per_row, strict=False):
            if len(set(names)) == 1:
                continue
            found = numbered_step(names)
            if found is None:
                one, two = next((a, b) for a, b in itertools.pairwise(names) if a != b)
                return f"the corresponding names `{one}` and `{two}` do not differ in exactly one increasing number"
            pattern, start, step = found
            for i, k in enumerate(rows):
                numbers.setdefault(k, {})[names[i]] = (start + i * step, pattern)
    if not numbers:
        return "the repeats do not have separate parameters"
    firsts: dict[int, int] = {}
    lasts: dict[int, int] = {}
    previous: int | None = None
    for k in sorted(numbers):
        values = {number for number, _ in numbers[k].values()}
        if len(values) > 1 or (previous is not None and min(values) not in (previous, previous + 1)):
            return "the numbers in the parameter names do not increase by one from block to block"
        previous = values.pop()
        firsts.setdefault(previous, k)
        lasts[previous] = k
    order = sorted(firsts)
    if len(order) < 2:
        return "the repeats do not have separate parameters"
    spans = _spans(labels, live, [(firsts[n], lasts[n]) for n in order], region)
    for one, two in itertools.pairwise(span for span in spans if span is not None):
        if min(live[one[0] + 1 : two[0] + 1]) < live[two[0]]:
            return "the numbers in the parameter names disagree about where a block begins"
    keep = [b for b, span in enumerate(spans) if span is not None]
    return Cut(
        tuple(span for span in spans if span is not None),
        tuple(
            {name: pattern for k in numbers for name, (n, pattern) in numbers[k].items() if n == order[b]} for b in keep
        ),
        tuple(order[b] for b in keep),
    )


def _spans(
    labels: Sequence[Any], live: Sequence[int], anchors: Sequence[tuple[int, int]], region: RepeatedRegion
) -> list[tuple[int, int] | None]:
    """Returns blocks, given the first and last operation with parameters of each; None for an incomplete block."""
    cuts = [
        min(range(last + 1, first + 1), key=lambda c: (live[c], -c))
        for (_, last), (first, _) in itertools.pairwise(anchors)
    ]
    phase = max(1, round(region.period * len(anchors) / region.length))
    turn = min(phase, len(anchors) - 1)
    lead = anchors[turn][0] - cuts[turn - 1]
    begin = anchors[0][0] - lead
    back = len(anchors) - 1 - turn
    tail = cuts[back] - anchors[back][1]
    end = anchors[-1][1] + tail
    spans: list[tuple[int, int] | None] = list(itertools.pairwise([begin, *cuts, end]))
    if begin < 0 or labels[begin : anchors[0][0]] != labels[anchors[turn][0] - lead : anchors[turn][0]]:
        spans[0] = None
    if end > len(labels) or labels[anchors[-1][1] : end] != labels[anchors[back][1] : anchors[back][1] + tail]:
        spans[-1] = None
    return spans
