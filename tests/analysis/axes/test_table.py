"""The table of axes: what an axis is said to mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import progc


class EinsumAttention(nn.Module):
    """Two heads of three units, with four units of values each; every projection has a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = (nn.Parameter(torch.randn(2, 3, 6)) for _ in range(2))
        self.v, self.out = nn.Parameter(torch.randn(2, 4, 6)), nn.Parameter(torch.randn(2, 4, 5))

    def forward(self, x: Tensor) -> Tensor:
        q, k = (torch.einsum("btc,hdc->bthd", x, weight) for weight in (self.q, self.k))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * 3**-0.5
        v = torch.einsum("btc,hec->bthe", x, self.v)
        return torch.einsum("bhqk,bkhe,hec->bqc", scores.softmax(-1), v, self.out)


def test_a_letter_that_an_einsum_of_queries_and_keys_sums_over_is_no_head() -> None:
    table = progc.capture(EinsumAttention(), (torch.randn(2, 7, 6),)).axes
    meanings = {(span.tensor, span.dim): axis.meaning for axis in table.axes for span in axis.spans}
    for name in ("q", "k", "v", "out"):
        assert (meanings[name, 0], meanings[name, 1]) == ("heads", "head dim")
    assert sorted(axis.size for axis in table.growable if axis.meaning == "head dim") == [3, 4]
