"""Generated index maps and tensors for property tests."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from progc.lift.index_map import IndexMap


@st.composite
def leaves(draw: st.DrawFn, how: str | None = None) -> IndexMap:
    """One axis of up to 4 units that grows to up to 9."""
    old = draw(st.integers(1, 4))
    return IndexMap.leaf(old, draw(st.integers(old, 9)), how or draw(st.sampled_from(["copy", "free"])))  # type: ignore[arg-type]


def _small(index_map: IndexMap) -> bool:
    return index_map.new <= 200


def index_maps(how: str | None = None) -> st.SearchStrategy[IndexMap]:
    """Nested products and concatenations."""

    def parts(inner: st.SearchStrategy[IndexMap]) -> st.SearchStrategy[IndexMap]:
        several = st.lists(inner, min_size=1, max_size=3).map(tuple)
        return st.one_of(several.map(IndexMap.product), several.map(IndexMap.concat)).filter(_small)

    return st.recursive(leaves(how), parts, max_leaves=5).filter(_small)


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Any finite bit patterns of a dtype: zeros of both signs, subnormal and huge values, besides ordinary ones."""
    size = int(torch.Size(shape).numel())
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    info = torch.iinfo(bits)
    pattern = st.one_of(st.integers(info.min, info.max), st.sampled_from([0, 1, 2, 3, info.min, info.min + 1]))
    drawn = torch.tensor(draw(st.lists(pattern, min_size=size, max_size=size)), dtype=bits).view(dtype)
    ordinary = torch.randn(size, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))).to(dtype)
    mixed = torch.where(torch.rand(size, generator=torch.Generator().manual_seed(size)) < 0.5, drawn, ordinary)
    return torch.where(mixed.isfinite(), mixed, ordinary).reshape(shape)
