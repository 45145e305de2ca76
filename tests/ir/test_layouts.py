"""Shapes from fake tensors: kept results are those that torch computes, and errors are never kept."""

from __future__ import annotations

import operator

import pytest
import torch

from progc.ir.graphs import infer
from progc.ir.layouts import Evaluator, Layout
from progc.ir.program import MODES
from tests import zoo

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Evaluator, "_known", {})


def layout(*shape: int, dtype: torch.dtype = torch.float32) -> Layout:
    return Layout.of(torch.empty(shape, dtype=dtype))


@pytest.mark.parametrize("name", ["timm:swin@56", "timm:resnet18@64", "diffusers:unet", "transformers:llama"])
def test_kept_results_are_those_recorded_at_capture(name: str) -> None:
    """A graph's metadata comes from torch.export itself; the second time everything is known."""
    program = zoo.captured(name)[1]
    for _ in range(2):
        for mode in MODES:
            for node, meta in infer(program, program.graphs[mode], mode).items():
                assert node.meta["tensor"] == meta, node


def test_constants_of_another_type_are_other_arguments() -> None:
    with Evaluator() as evaluator:
        ints, floats, flags = layout(2, dtype=torch.int64), 1.0, True
        assert evaluator.call(aten.add.Scalar, (ints, 1), {}).dtype == torch.int64
        assert evaluator.call(aten.add.Scalar, (ints, floats), {}).dtype == torch.float32
        assert evaluator.call(aten.add.Scalar, (layout(2, dtype=torch.bool), flags), {}).dtype == torch.bool
        assert evaluator.call(aten.sum.default, (ints,), {"dtype": torch.float64}).dtype == torch.float64
        assert evaluator.call(aten.sum.default, (ints,), {}).dtype == torch.int64


def test_the_default_dtype_counts() -> None:
    with Evaluator() as evaluator:
        assert evaluator.call(aten.ones.default, ([2],), {}).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        with Evaluator() as evaluator:
            assert evaluator.call(aten.ones.default, ([2],), {}).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_strides_count() -> None:
    turned = Layout.of(torch.empty(3, 2).T)
    with Evaluator() as evaluator:
        assert evaluator.call(aten.view.default, (layout(2, 3), [6]), {}).shape == (6,)
        with pytest.raises((RuntimeError, ValueError), match="view"):
            evaluator.call(aten.view.default, (turned, [6]), {})


def test_errors_and_changes_in_place_of_a_shape_are_not_kept() -> None:
    with Evaluator() as evaluator:
        for _ in range(2):
            with pytest.raises(RuntimeError):
                evaluator.call(aten.mm.default, (layout(2, 3), layout(2, 3)), {})
        assert not Evaluator._known
        assert evaluator.call(aten.unsqueeze_.default, (layout(2), 0), {}).shape == (1, 2)
        assert not Evaluator._known
        parts = evaluator.call(aten.split.Tensor, (layout(4, 2), 3), {})
        assert len(Evaluator._known) == 1
        assert evaluator.call(operator.getitem, (parts, 1), {}).shape == (1, 2)
        assert evaluator.call(operator.getitem, (layout(4, 2), 1), {}).shape == (2,)
