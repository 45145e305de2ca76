"""Finds parameters that modulate: they turn a conditioning vector into scales, shifts and gates of a stream of blocks.

A value modulates if it is multiplied with, or added to, a value of the stream that has more positions (the value is the
same at every token or pixel), and if it does not depend on the stream. A gate that is computed from the stream itself
(squeeze-and-excitation) is not modulation.
"""

from __future__ import annotations

from torch import fx

from progc.analysis.chains import chains_of
from progc.ir.operations import MOVEMENT, POINTWISE, ZERO_PRESERVING, is_float, op_name
from progc.ir.program import Program
from progc.transforms.freezing.flow import bias_of, parameter_at, shape, weights_of

_ACTIVATIONS = ZERO_PRESERVING | {"sigmoid", "relu", "softplus", "hardsigmoid", "exp"}


def modulation(program: Program) -> frozenset[str]:
    """Returns the canonical names of the parameters that modulate, found in the train graph."""
    graph = program.graphs["train"]
    given = [node for node in graph.nodes if node.op == "placeholder"]
    inputs = _below(given)
    found: set[str] = set()
    # Layers before the first chain are modulated too; there the stream begins at an input that has positions.
    placed = [node for node in given if len(shape(node)) > (2 if is_float(node) else 1)]
    for entry, stream in [*streams(program), *((node, _below([node]) - {node}) for node in placed)]:
        for node in stream:
            if op_name(node) not in ("mul", "add", "addcmul") or not is_float(node):
                continue
            operands = [source for source in node.all_input_nodes if is_float(source)]
            through = [source for source in operands if source in stream or source is entry]
            for other in operands:
                beside = other in inputs and other not in stream and other is not entry
                if beside and any(_repeats(other, source) for source in through):
                    found |= _makers(other, inputs)
    return frozenset(name for name in found if program.specs[name].kind == "parameter")


def streams(program: Program) -> list[tuple[fx.Node, set[fx.Node]]]:
    """Returns the entries of each chain, with everything that is computed from them."""
    nodes = {node.name: node for node in program.graphs["train"].nodes}
    entries = [nodes[name] for chain in chains_of(program) for name in chain.carried["train"][0] if name in nodes]
    return [(entry, _below([entry]) - {entry}) for entry in dict.fromkeys(entries) if is_float(entry)]


def _below(starts: list[fx.Node]) -> set[fx.Node]:
    """These nodes and all nodes computed from them; sizes do not propagate values."""
    seen, todo = set(starts), list(starts)
    while todo:
        for user in todo.pop().users:
            if user not in seen and not isinstance(user.meta.get("tensor"), int):
                seen.add(user)
                todo.append(user)
    return seen


def _repeats(small: fx.Node, large: fx.Node) -> bool:
    """Whether a value is one vector per sample, used at all positions of another."""
    a, b = shape(small), shape(large)
    a = (1,) * (len(b) - len(a)) + a
    free = [one == 1 and other > 1 for one, other in zip(a, b, strict=True)] if len(a) == len(b) else []
    return any(free[1:]) and not all(size == 1 for size in a)


def _makers(node: fx.Node, inputs: set[fx.Node]) -> set[str]:
    """Parameters between a modulating value and its vector: the nearest contraction, and tables added to it."""
    found: set[str] = set()
    seen, todo = {node}, [node]
    while todo:
        current = todo.pop()
        own = weights_of(current)
        if own:
            found.update((*own, *bias_of(current)))
            continue
        passes = op_name(current) in MOVEMENT | POINTWISE | _ACTIVATIONS | {"add", "mul", "chunk"}
        if current.op != "call_function" or not passes:
            continue
        for source in current.all_input_nodes:
            name = parameter_at(source)
            if name is not None:
                found.add(name)
            elif source in inputs and source not in seen:
                seen.add(source)
                todo.append(source)
    return found
