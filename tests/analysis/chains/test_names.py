"""Numbers in module paths and tensor names."""

from __future__ import annotations

import pytest

from progc.analysis.chains.names import Container, common_stem, numbered_step, split_number


@pytest.mark.parametrize(
    ("path", "parent", "prefix", "index", "name"),
    [
        ("blocks.3", "blocks", "", 3, "blocks"),
        ("encoder.layers.encoder_layer_10", "encoder.layers", "encoder_layer_", 10, "encoder.layers.encoder_layer_#"),
        ("layer2", "", "layer", 2, "layer#"),
        ("5", "", "", 5, "#"),
    ],
)
def test_split_number(path: str, parent: str, prefix: str, index: int, name: str) -> None:
    container, number = split_number(path) or (Container("", ""), -1)
    assert (container, number, container.name) == (Container(parent, prefix), index, name)
    assert container.path(index) == path


@pytest.mark.parametrize("path", ["head", "blocks.3.attn", "layer_01", ""])
def test_paths_without_a_number(path: str) -> None:
    assert split_number(path) is None


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["wq_0", "wq_1", "wq_2"], ("wq_#", 0, 1)),
        (["p.blk0_w1", "p.blk1_w1"], ("p.blk#_w1", 0, 1)),
        (["w1_9", "w1_10"], ("w1_#", 9, 1)),
        (["w.0", "w.2", "w.4"], ("w.#", 0, 2)),
        (["w.2", "w.1"], None),
        (["w.0.1", "w.1.2"], None),
        (["w_0", "w_1", "w_3"], None),
        (["w_a", "w_b"], None),
    ],
)
def test_numbered_step(names: list[str], found: tuple[str, int, int] | None) -> None:
    assert numbered_step(names) == found


def test_common_stem() -> None:
    assert common_stem(["blocks.#.attn.weight", "blocks.#.attn.bias"]) == "blocks.#.attn."
    assert common_stem(["p.blk#_in", "p.blk#_out"]) == "p.blk#_"
    assert common_stem(["wq_#", "wk_#"]) == "wq_#"
