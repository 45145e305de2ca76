"""Which units of a tensor stay when it shrinks: a view of the full tensor, or a copy.

Units at even distances along every dim are a view: training the small tensor trains the large one, and nothing else of
it (elastic supernets). Other units have to be copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from progc.lift.index_map import IndexMap

if TYPE_CHECKING:
    from progc.lift.entry import TensorLift


def chosen(source: torch.Tensor, entry: TensorLift) -> torch.Tensor:
    """The values of a tensor that shrinks; no parameter, and no gradient flows through it.

    Args:
        source: the full tensor.
        entry: `storage` is `share` or `copy`; scales are of `copy` alone, values per unit of `source`.

    Returns:
        A view of `source` where the storage is shared and the units allow one, else memory of its own.
    """
    assert entry.storage in ("share", "copy") and not (entry.scales and entry.storage == "share")
    value = source.detach()
    steps = strides(entry.dims)
    if steps is not None and entry.storage == "share":
        for dim, step in enumerate(steps):
            if step is not None:
                value = value[(slice(None),) * dim + (step,)]
        return value
    for dim, index_map in enumerate(entry.dims):
        if index_map is not None:
            value = value.index_select(dim, index_map.index().to(value.device))
    for scale in entry.scales:
        index_map = entry.dims[scale.dim] if entry.dims else None
        factors = torch.tensor(scale.values, dtype=torch.float64)
        factors = factors if index_map is None else factors[index_map.index()]
        shape = [-1 if dim == scale.dim else 1 for dim in range(value.dim())]
        value = value * factors.to(value.device, value.dtype).reshape(shape)
    return value.clone() if value.data_ptr() == source.data_ptr() else value


def strides(dims: tuple[IndexMap | None, ...]) -> tuple[slice | None, ...] | None:
    """One slice per dim (None: all of it) that takes the units which stay; None if they are not evenly spaced."""
    found: list[slice | None] = []
    for index_map in dims:
        index = None if index_map is None or index_map.unchanged else index_map.index()
        if index is None:
            found.append(None)
            continue
        if len(index) == 0:
            found.append(slice(0, 0))
            continue
        step = int(index[1] - index[0]) if len(index) > 1 else 1
        if step < 1 or not torch.equal(index, index[0] + step * torch.arange(len(index))):
            return None
        found.append(slice(int(index[0]), int(index[-1]) + 1, step))
    return tuple(found)
