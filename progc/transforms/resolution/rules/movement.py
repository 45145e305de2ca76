"""Operations that order dims anew, and reductions."""

from __future__ import annotations

from typing import Any

from torch import fx

from progc.lift.extents import Dim, old_size
from progc.transforms.resolution.values import Args
from progc.transforms.resolution.walk import Walk, rule


@rule("permute")
def permute(walk: Walk, node: fx.Node, args: Args) -> Any:
    """Dims in another order."""
    dims = args.first().dims
    return [dims[index] for index in args["dims"]]


@rule("transpose", "swapaxes", "swapdims")
def transpose(walk: Walk, node: fx.Node, args: Args) -> Any:
    """Two dims swapped."""
    dims = list(args.first().dims)
    a, b = (args[name] for name in [name for name in args.values if name != "self"][:2])
    dims[a], dims[b] = dims[b], dims[a]
    return dims


@rule("t", "mT", "numpy_T", "matrix_H", "adjoint")
def transposed(walk: Walk, node: fx.Node, args: Args) -> Any:
    """The last two dims swapped."""
    dims = args.first().dims
    return dims if len(dims) < 2 else [*dims[:-2], dims[-1], dims[-2]]


@rule("movedim", "moveaxis")
def movedim(walk: Walk, node: fx.Node, args: Args) -> Any:
    """Dims moved to other places."""
    dims, rank = args.first().dims, len(args.first().dims)
    source, target = ([item] if isinstance(item, int) else item for item in (args["source"], args["destination"]))
    places = {t % rank: dims[s % rank] for s, t in zip(source, target, strict=True)}
    rest = iter(dim for index, dim in enumerate(dims) if index not in {s % rank for s in source})
    return [places[index] if index in places else next(rest) for index in range(rank)]


@rule("unsqueeze")
def unsqueeze(walk: Walk, node: fx.Node, args: Args) -> Any:
    """A dim of one unit."""
    dims: list[Dim] = list(args.first().dims)
    dims.insert(args["dim"] % (len(dims) + 1), ())
    return dims


@rule("squeeze")
def squeeze(walk: Walk, node: fx.Node, args: Args) -> Any:
    """Dims of one unit left out; those that would have several then are left to the operation to refuse."""
    dims = args.first().dims
    chosen = args.get("dim", range(len(dims)))
    places = {index % len(dims) for index in ([chosen] if isinstance(chosen, int) else chosen)}
    return [dim for index, dim in enumerate(dims) if index not in places or old_size(dim) != 1]


@rule("mean", "sum", "amax", "amin", "var", "std", "logsumexp", "argmax", "argmin", "prod", "any", "all", "norm",
      "linalg_vector_norm", "count_nonzero")  # fmt: skip
def reduce(walk: Walk, node: fx.Node, args: Args) -> Any:
    """Dims summed over go; the others stay in order."""
    dims = args.first().dims
    chosen = args.get("dim")
    if chosen is None or chosen == []:
        return None if args.get("keepdim") else []
    places = {index % len(dims) for index in ([chosen] if isinstance(chosen, int) else chosen)} if dims else set()
    kept = [() if index in places else dim for index, dim in enumerate(dims)]
    return kept if args.get("keepdim") else [dim for index, dim in enumerate(kept) if index not in places]
