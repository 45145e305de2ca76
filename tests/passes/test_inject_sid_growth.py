"""A network with a stage identifier grows like any other, with rows that are not zero."""

from __future__ import annotations

import pytest
import torch

import progc
from progc.ir.check import compare
from progc.lift.revert import tolerance
from progc.pipeline.manager import run
from tests import zoo
from tests.grown import EXACT
from tests.passes.test_inject_sid import adaptive, with_rows
from tests.sweeps import some
from tests.transforms.sid import nets

NAMES = ("own:flat", "own:einsum", "timm:vit_tiny_patch16_224@64", "diffusers:dit", "transformers:gpt2")


# Growth sees the table and not where the index of its row comes from: a constant one on one network for each commit.
PLACES = [
    pytest.param(name, stage, marks=[pytest.mark.slow] if stage == "1" and name != "own:flat" else [])
    for name in NAMES
    for stage in ("input", "1")
]


@pytest.mark.parametrize(("name", "stage"), PLACES)
def test_the_table_widens_with_the_network(name: str, stage: str) -> None:
    _, program = zoo.captured(name)
    staged = with_rows(progc.apply(program, f"inject-sid{{stages=2 stage={stage}}}"))
    assert staged.sid is not None
    wider, (result,) = run(staged, "grow-width{width=*2}")
    rows = wider.tensors[staged.sid.table]
    assert result.lossless and rows.shape == (3, 2 * staged.tensors[staged.sid.table].shape[1])
    assert compare(staged, wider, seed=0, batch=2).max_rel < EXACT
    assert wider.sid == staged.sid


@pytest.mark.parametrize(("name", "stage"), PLACES)
def test_depth_leaves_it_alone(name: str, stage: str) -> None:
    _, program = zoo.captured(name)
    staged = with_rows(progc.apply(program, f"inject-sid{{stages=2 stage={stage}}}"))
    deeper, (result,) = run(staged, "grow-depth{to=*2}")
    assert result.lossless and staged.sid is not None
    assert deeper.tensors[staged.sid.table] is staged.tensors[staged.sid.table]
    assert compare(staged, deeper, seed=0, batch=2).max_rel < EXACT


def test_new_units_that_are_no_copies() -> None:
    """8 to 12: conditioning gets new units that old layers ignore, a stream is padded behind LayerNorm."""
    _, adapted, _ = adaptive()
    plain = progc.capture(zoo.perturb(nets.PreNorm()), (torch.randn(3, 5, 6),))
    for program, site, axis in ((adapted, "conditioning", "time.2"), (plain, "tokens", "enter")):
        staged = with_rows(progc.apply(program, f"inject-sid{{stages=2 site={site}}}"))
        wider, (result,) = run(staged, f"grow-width{{axes={axis}:12 init=zero}}")
        assert result.lossless and wider.tensors["stage_embedding.weight"].shape == (3, 12)
        assert result.lift is not None  # the factor of a padded norm is rounded
        assert compare(staged, wider, seed=0, batch=3).max_rel < tolerance([result.lift])


def test_axes_keep_their_names() -> None:
    """An axis is named after what makes it first, which must not become the table."""
    _, program, _ = adaptive()
    staged = progc.apply(program, "inject-sid")
    assert [axis.name for axis in staged.axes.axes] == [*(axis.name for axis in program.axes.axes), "stage_embedding"]


@pytest.mark.parametrize("name", some(["own:flat", "timm:vit_tiny_patch16_224@64", "diffusers:dit"], ["own:flat"]))
def test_injected_grown_and_folded(name: str) -> None:
    """The order of a whole schedule; the result has the parameters of a network that was grown without it."""
    _, staged = zoo.captured(f"{name}|inject-sid{{stages=3 stage=1 init=normal}}")
    staged = with_rows(staged, 0.1)
    grown, results = run(staged, "grow-depth{to=*2},grow-width{width=*2},remove-sid")
    assert all(result.lossless for result in results)
    assert compare(staged, grown, seed=0).max_rel < EXACT
    assert not any(name.startswith("stage") for name in grown.tensors)
    _, plain = zoo.captured(f"{name}|inject-sid{{stages=0}}")
    shapes = {
        name: tensor.shape
        for name, tensor in progc.apply(plain, "grow-depth{to=*2},grow-width{width=*2}").tensors.items()
    }
    assert {name: tensor.shape for name, tensor in grown.tensors.items()} == shapes


def test_rows_of_copies_part() -> None:
    """What reads the copies has shares of its own, so that copied columns of the table do not stay equal."""
    _, program = zoo.captured("own:flat")
    staged = with_rows(progc.apply(program, "inject-sid{stages=2 stage=0}"))
    module = progc.apply(staged, "grow-width{width=*2}").module()
    args, kwargs = staged.example
    module(*args, **kwargs).square().mean().backward()
    gradient = module.get_parameter("stage_embedding.weight").grad
    assert gradient is not None
    first, second = gradient[0, :12], gradient[0, 12:]
    assert not torch.allclose(first, second, rtol=1e-3)
