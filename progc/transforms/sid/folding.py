"""Finds parameters that can absorb a constant row, so that a value becomes larger by the row and nothing else changes.

The search goes backwards from the value through operations that preserve a constant (sums, reshapes and permutations, a
concatenation if all its parts take the row) to a parameter that is added: a bias of a linear layer or norm, a position
table, the rows of an embedding. A parameter is accepted only if every reader of it is on the way to such a value, in
both graphs; values on the way have a single reader.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import fx

from progc.ir.check import stochastic
from progc.ir.operations import NORMS, argument, describe, is_float, op_name, shape_of
from progc.ir.program import MODES, Mode, Program
from progc.transforms.sid.places import SitePlace

_AS_IT_IS = {"dropout", "feature_dropout", "clone", "contiguous", "alias", "detach", "to", "_to_copy", "positive"}
_RESHAPE = {
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as", "reshape_as",
}  # fmt: skip
_BROADCAST = {"expand", "expand_as", "broadcast_to"}
_LINEAR = {"linear", "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d"}
_CHOICES = 16
"""Combinations of parameters tried at one concatenation."""

Key = frozenset[tuple[str, int]]
"""Parameters that absorb the row together, each with the dim that the row is added along."""


@dataclasses.dataclass(frozen=True)
class Fold:
    """Where a row is folded.

    Attributes:
        targets: parameter names with the dim that the row is added along, each once.
        reason: why no parameter can absorb the row.
    """

    targets: tuple[tuple[str, int], ...] = ()
    reason: str = ""


def find_fold(program: Program, places: Sequence[SitePlace]) -> Fold:
    """Finds the parameters that absorb one row for all `places`, each of which gets the row.

    The graphs must be those of the network without the sum that adds the row.
    """
    ways: dict[Mode, list[_Ways]] = {}
    for mode in MODES:
        nodes = {node.name: node for node in program.graphs[mode].nodes}
        random = frozenset(stochastic(program.graphs[mode]))
        ways[mode] = [_Ways(program, random, nodes[place.nodes[mode]], place.channel) for place in places]
    reasons = [own.reasons for mode in MODES for own in ways[mode] if not own.found]
    if reasons:
        return Fold(reason=reasons[0][0])
    shared = [
        [key for key in ways["eval"][i].found if all(key in ways[mode][i].found for mode in MODES)]
        for i in range(len(places))
    ]
    readers = {mode: _num_readers(program.graphs[mode]) for mode in MODES}
    chosen: dict[int, Key] = {}
    for i, keys in enumerate(shared):
        for key in sorted(keys, key=lambda own: (len(own), sum(program.tensors[name].numel() for name, _ in own))):
            group = [j for j, others in enumerate(shared) if key in others]
            if i in chosen or any(j in chosen for j in group):
                continue
            if all(
                readers[mode][name] == sum(ways[mode][j].found[key][name] for j in group)
                for mode in MODES
                for name, _ in key
            ):
                chosen.update(dict.fromkeys(group, key))
        if i not in chosen:
            names = ", ".join(sorted({name for key in keys for name, _ in key})) or "a parameter of only one graph"
            return Fold(reason=f"{names} would take the row, and is also read elsewhere")
    return Fold(tuple(sorted({target for key in chosen.values() for target in key})))


def _num_readers(graph: fx.Graph) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            name = str(node.target)
            found[name] = found.get(name, 0) + sum(_times(user, node) for user in node.users)
    return found


def _times(user: fx.Node, node: fx.Node) -> int:
    """How often `node` is an argument of `user`."""
    found: list[fx.Node] = []
    fx.node.map_arg((user.args, user.kwargs), lambda item: found.append(item) if item is node else None)
    return len(found)


class _Ways:
    """All sets of parameters that absorb the row for one value, each with how often its parameters are read."""

    def __init__(self, program: Program, random: frozenset[fx.Node], value: fx.Node, channel: int) -> None:
        self.program, self.random = program, random
        self.width = shape_of(value)[channel]
        self.reasons: list[str] = []
        self.found: dict[Key, dict[str, int]] = {}
        for uses in itertools.islice(self._through(value, channel), _CHOICES):
            counts: dict[str, int] = {}
            for name, _ in uses:
                counts[name] = counts.get(name, 0) + 1
            self.found.setdefault(frozenset(uses), counts)
        self.reasons.append(f"nothing adds a parameter to {describe(value)}")

    def _from(self, user: fx.Node, node: Any, channel: int) -> Iterator[list[tuple[str, int]]]:
        """Ways for an operand of `user`; other readers of the operand would also get the row."""
        if not isinstance(node, fx.Node):
            return
        shape = shape_of(node)
        if not 0 <= channel < len(shape) or shape[channel] != self.width:
            self.reasons.append(f"{node} has no dim of {self.width} units")
        elif node.op == "get_attr":
            name = str(node.target)
            if self.program.specs[name].kind == "parameter":
                yield [(name, channel)]
            else:
                self.reasons.append(f"{name} is not a parameter")
        elif _times(user, node) != 1 or len(node.users) > 1:
            self.reasons.append(f"the value of {describe(node)} is also read elsewhere")
        else:
            yield from self._through(node, channel)

    def _through(self, node: fx.Node, channel: int) -> Iterator[list[tuple[str, int]]]:
        name = op_name(node) if node.op == "call_function" else node.op
        if name == "placeholder":
            self.reasons.append(f"{node} is an input of the network")
        elif name in ("add", "sub") and argument(node, "alpha", 1) == 1:
            for operand in node.args[: 2 if name == "add" else 1]:
                if is_float(operand):
                    yield from self._from(node, operand, channel - len(shape_of(node)) + len(shape_of(operand)))
        elif name in _LINEAR | NORMS:
            bias = argument(node, "bias")
            rank = len(shape_of(node))
            batched = not name[-2:-1].isdigit() or rank == int(name[-2]) + 2  # convolutions also take single images
            if bias is None:
                self.reasons.append(f"{describe(node)} has no bias")
            elif channel == rank - 1 if name in ("linear", "layer_norm") else channel == 1 and batched:
                yield from self._from(node, bias, len(shape_of(bias)) - 1)
        elif name == "addmm" and argument(node, "beta", 1) == 1:
            yield from self._from(node, node.args[0], channel - 2 + len(shape_of(node.args[0])))
        elif name == "embedding" and channel == len(shape_of(node)) - 1:
            yield from self._from(node, node.args[0], 1)
        elif name == "cat":
            yield from self._through_all(node, channel)
        else:
            moved = None if node in self.random else _moved(node, name, channel)
            if moved is None:
                self.reasons.append(f"{describe(node)} does not preserve a constant")
            else:
                yield from self._from(node, node.args[0], moved)

    def _through_all(self, node: fx.Node, channel: int) -> Iterator[list[tuple[str, int]]]:
        """Ways for a concatenation, all parts of which must take the row."""
        parts = node.args[0]
        assert isinstance(parts, (list, tuple))
        dim = argument(node, "dim", 0) % len(shape_of(node))
        if dim == channel:
            self.reasons.append(f"{describe(node)} concatenates channels")
            return
        ways = [list(itertools.islice(self._from(node, part, channel), _CHOICES)) for part in parts]
        for choice in itertools.product(*ways):
            yield [use for uses in choice for use in uses]


def _moved(node: fx.Node, name: str, channel: int) -> int | None:
    """The dim of the first operand that becomes `channel`, if the operation only moves whole channels."""
    source, shape = node.args[0], shape_of(node)
    if not isinstance(source, fx.Node) or not is_float(source):
        return None
    before = shape_of(source)
    if name in _AS_IT_IS or (name in ("slice", "narrow") and before == shape):
        return channel
    if name in _BROADCAST:
        return channel - len(shape) + len(before)
    if name in ("permute", "movedim", "transpose", "swapaxes", "swapdims", "t"):
        return _permuted(node, name, channel, len(shape))
    if name in _RESHAPE:
        outer = math.prod(shape[:channel])
        same = (d for d, size in enumerate(before) if size == shape[channel] and math.prod(before[:d]) == outer)
        return next(same, None)
    return None


def _permuted(node: fx.Node, name: str, channel: int, rank: int) -> int | None:
    if name == "permute":
        dims: Any = node.args[1]
        return int(dims[channel]) % rank
    if name == "t":
        return 1 - channel if rank == 2 else None
    if name == "movedim" or not all(isinstance(item, int) for item in node.args[1:3]):
        return None
    a, b = (int(item) % rank for item in node.args[1:3])  # type: ignore[arg-type]
    return {a: b, b: a}.get(channel, channel)


def targets_of(fold: Fold, tied: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    """Returns the targets under all their names: aliases are lifted like the tensor they are tied to."""
    dims = dict(fold.targets)
    return (*fold.targets, *((alias, dims[name]) for alias, name in tied.items() if name in dims))
