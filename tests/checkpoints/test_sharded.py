"""Pieces of tensors in the files of ranks, put together again; what says something else is refused."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from progc.checkpoints.sharded import ShardIndex, Spread, cut, key_of, shard_file
from progc.errors import InputError

PATH = Path("shards.json")


@given(st.lists(st.integers(0, 7), max_size=3), st.integers(1, 5))
def test_rows_of_any_number_of_ranks_make_the_whole(shape: list[int], ranks: int) -> None:
    whole = torch.randn(shape)
    rows = shape[0] if shape else 1
    size = -(-rows // ranks)
    ends = [min(number * size, rows) for number in range(ranks + 1)]
    if not shape or rows == 0:
        spread = Spread(tuple(shape), ((0, 0, rows),))
    else:
        pairs = zip(ends, ends[1:], strict=False)
        spread = Spread(tuple(shape), tuple((n, a, b) for n, (a, b) in enumerate(pairs) if a < b))
    index = ShardIndex({"ranks": ranks, "files": {"optimizer.safetensors": {"x": as_json(spread)}}}, PATH)
    key = key_of("optimizer.safetensors", "x")
    files = {shard_file(n, ranks): {key: whole[a:b] if shape else whole} for n, a, b in spread.rows}
    assert torch.equal(index.whole("optimizer.safetensors", files.__getitem__)["x"], whole)


def as_json(spread: Spread) -> dict[str, Any]:
    return {"shape": list(spread.shape), "rows": [list(row) for row in spread.rows]}


def test_what_is_not_spread_is_written_by_rank_0_alone() -> None:
    weight = torch.randn(3, 2)
    files = {"model.safetensors": {"a": weight, "tied": weight}, "ema-0.9.safetensors": {"a": weight + 1}}
    pieces, header, text = cut(files, 0, 2)
    assert pieces.keys() == {"a", "tied", "ema-0.9/a"} and pieces["a"] is pieces["tied"]
    assert '"saved_offsets": [0, 0]' in header["DCP_SHARDING_INFO"]
    assert cut(files, 1, 2)[0] == {} and cut(files, 1, 2)[2] == text


GOOD = {"ranks": 2, "files": {"model.safetensors": {"x": {"shape": [3, 2], "rows": [[0, 0, 2], [1, 2, 3]]}}}}


@pytest.mark.parametrize(
    "place",
    [
        ("rows", [[0, 0, 2], [1, 1, 3]]),
        ("rows", [[0, 0, 2]]),
        ("rows", []),
        ("rows", [[0, 0, "2"], [1, 2, 3]]),
        ("rows", [[0, 0, 5], [1, 5, 3]]),
        ("rows", None),
        ("shape", [4, 2]),
        ("shape", [-3, 2]),
        ("shape", {"a": 1}),
    ],
)
def test_an_index_that_says_something_else_is_refused(place: tuple[str, Any]) -> None:
    data: Any = copy.deepcopy(GOOD)
    ShardIndex(data, PATH)
    data["files"]["model.safetensors"]["x"][place[0]] = place[1]
    with pytest.raises(InputError, match=r"shards.json does not say"):
        ShardIndex(data, PATH)


@pytest.mark.parametrize(
    "data", [{}, {"ranks": "2", "files": {}}, {"ranks": 2, "files": []}, {"ranks": 2, "files": {"a": 1}}]
)
def test_no_index(data: Any) -> None:
    with pytest.raises(InputError, match=r"shards.json does not say"):
        ShardIndex(data, PATH)


@pytest.mark.parametrize("piece", [None, torch.zeros(2, 2), torch.zeros(1)])
def test_a_piece_that_is_not_there_or_has_another_shape(piece: torch.Tensor | None) -> None:
    files = {shard_file(0, 2): {"x": torch.zeros(2, 2)}, shard_file(1, 2): {} if piece is None else {"x": piece}}
    with pytest.raises(InputError, match="rows 2 to 3 of 'x'"):
        ShardIndex(GOOD, PATH).whole("model.safetensors", files.__getitem__)


def test_spread_reads_what_it_is() -> None:
    spread = Spread((3, 2), ((0, 0, 2), (1, 2, 3)))
    assert Spread.from_json(as_json(spread)) == spread
    assert dataclasses.asdict(spread)["shape"] == (3, 2)
