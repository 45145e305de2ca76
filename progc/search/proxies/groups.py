"""Parameters by what they do in the graph: contracted with a value, looked up, or added and multiplied by entry.

Where the published formulas say "module", this is the operation that reads the parameter, so that a weight which a
user's class contracts by `einsum` counts like that of a linear layer.
"""

from __future__ import annotations

from progc.ir.operations import op_name
from progc.ir.program import Program
from progc.transforms.freezing.flow import weights_of

_PUBLISHED = {"linear", "conv2d"}
_LOOKUPS = {"embedding", "embedding_bag"}


def contracted(program: Program, *, published: bool = False) -> set[str]:
    """Names of parameters that an operation of the train graph contracts its input with.

    Args:
        published: of linear layers and 2-d convolutions alone.
    """
    found: set[str] = set()
    for node in program.graphs["train"].nodes:
        name = op_name(node) if node.op == "call_function" else ""
        if name and name not in _LOOKUPS and (not published or name in _PUBLISHED):
            found.update(weights_of(node))
    return found & {name for name, _ in program.parameters()}


def measured(program: Program, *, vectors: bool) -> list[str]:
    """Names of trainable parameters with at least two dims, and with `vectors` of all others."""
    return [
        name
        for name, tensor in program.parameters()
        if tensor.requires_grad and tensor.is_floating_point() and (vectors or tensor.dim() > 1)
    ]
