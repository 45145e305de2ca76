"""The growth plan: plain JSON that alone turns any copy of the small weights into the large ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import progc
from progc.growth.grow import Growth, grow_with_report
from progc.growth.plan import GrowthPlan
from progc.models.sizes import parse_sizes
from tests import nets, zoo
from tests.grown import assert_loads

GROWTHS: dict[str, tuple[str, str, dict[str, str]]] = {
    "both": ("own:flat", "depth*2,width*2", {}),
    "new units are zero": ("own:einsum", "depth*2,width*2", {"width": "zero"}),
    "random": ("own:flat", "depth*2,width*1.5", {"width": "random", "depth": "random"}),
    "batch norm and groups": ("own:conv", "width*3", {}),
    "tied": ("transformers:gpt2", "depth*2,width*2", {}),
    "post-norm and tied": ("transformers:bert_mlm", "depth*2,width*2", {"depth": "identity"}),
    "stacked": ("own:flat", "depth=6", {"depth": "stack"}),
}


def _grown(name: str, sizes: str, inits: dict[str, str], seed: int = 2) -> Growth:
    return grow_with_report(zoo.captured(name)[1], parse_sizes(sizes), inits=inits, seed=seed)


def _through_text(plan: GrowthPlan) -> GrowthPlan:
    return GrowthPlan.from_json(json.loads(json.dumps(plan.to_json(), allow_nan=False)))


@pytest.mark.parametrize("case", GROWTHS)
def test_a_plan_read_back_makes_the_same_tensors_to_the_bit(case: str) -> None:
    name, sizes, inits = GROWTHS[case]
    _, program = zoo.captured(name)
    growth = _grown(name, sizes, inits)
    again = _through_text(growth.plan)
    assert again == growth.plan and again.to_json() == growth.plan.to_json()
    assert str(again) == str(growth.plan)
    tensors = again.apply(program.tensors)
    assert tensors.keys() == growth.program.tensors.keys()
    for key, tensor in growth.program.tensors.items():
        assert torch.equal(tensors[key], tensor) and tensors[key].dtype == tensor.dtype, key
    for alias, canonical in growth.program.tied.items():
        assert tensors[alias] is tensors[canonical]


def test_an_averaged_copy_grows_into_what_its_own_network_would_be() -> None:
    """The copy takes the same units and shares as the weights, so it is as exact as they are."""
    _, program = zoo.captured("own:flat")
    growth = _grown("own:flat", "depth*2,width*2", {})
    average = zoo.perturb(nets.FlatMixer(), seed=8)
    grown = growth.plan.apply(average.state_dict())
    assert_loads(nets.FlatMixer(channels=24, hidden=40, depth=8), grown, average, *program.example)
    with torch.no_grad():
        halves = {name: 0.5 * tensor for name, tensor in average.state_dict().items()}
    silenced = {entry.name for lift in growth.plan.lifts for entry in lift.tensors if entry.fresh}
    for name, tensor in growth.plan.apply(halves).items():  # a linear map, but for noise in place of silenced weights
        assert name in silenced or torch.allclose(tensor, 0.5 * grown[name], rtol=1e-5, atol=1e-6), name


def test_the_weights_that_a_plan_grows_are_left_alone() -> None:
    _, program = zoo.captured("own:flat")
    growth = _grown("own:flat", "depth*2,width*2", {})
    tensors = {name: tensor.detach().clone() for name, tensor in program.tensors.items()}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    grown = growth.plan.apply(tensors)
    assert tensors.keys() == before.keys() and all(torch.equal(tensors[name], before[name]) for name in before)
    assert len({tensor.untyped_storage().data_ptr() for tensor in grown.values()}) == len(grown)  # none shares memory


def test_a_plan_needs_neither_graph_nor_the_code_of_the_model(tmp_path: Path) -> None:
    """Another process with nothing but two files, and no axes, chains or capture loaded."""
    _, program = zoo.captured("own:flat")
    growth = _grown("own:flat", "depth*2,width*2", {})
    (tmp_path / "plan.json").write_text(json.dumps(growth.plan.to_json()))
    save_file(program.state_dict(), tmp_path / "small.safetensors")
    code = (
        "import json, sys, torch\nfrom safetensors.torch import load_file, save_file\n"
        "from progc.growth.plan import GrowthPlan\n"
        "plan = GrowthPlan.from_json(json.load(open('plan.json')))\n"
        "save_file(plan.apply(load_file('small.safetensors')), 'large.safetensors')\n"
        "assert not {'progc.capturing.capture', 'torch.export'} & {name for name in sys.modules if 'progc' in name}\n"
    )
    root = str(Path(progc.__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "PYTHONHASHSEED": "5"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    large = load_file(tmp_path / "large.safetensors")
    expected = growth.program.state_dict()
    assert large.keys() == expected.keys() and all(torch.equal(large[name], expected[name]) for name in expected)


def test_a_plan_says_everything_that_was_decided() -> None:
    growth = _grown("own:flat", "depth*2,width*2", {"width": "zero"}, seed=11)
    data = growth.plan.to_json()
    assert data["format_version"] == 1 and data["seed"] == 11
    assert data["inits"] == {"width": "zero", "depth": "identity"}
    assert data["lossless"] is True and data["reasons"] == []
    assert [(chain["old"], chain["new"]) for chain in data["chains"]] == [(4, 8)]
    sizes = {(axis["old"], axis["new"]) for axis in data["axes"]}
    assert sizes == {(12, 24), (20, 40)}
    kept = next(axis for axis in data["axes"] if axis["old"] == 12)
    assert kept["kind"] == "copy" and "layer_norm" in kept["why"]  # zero rows would change the statistics
    assert "growth plan\n" in str(growth.plan)
    assert all(part in str(growth.plan) for part in ("4 -> 8 blocks (identity)", "12 -> 24 (copy)", "20 -> 40 (free)"))
    _, program = zoo.captured("own:flat")
    again = progc.apply(program, growth.plan.pipeline)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in growth.program.tensors.items())


def test_a_lossy_plan_has_its_reasons() -> None:
    _, program = zoo.captured("own:flat")
    growth = grow_with_report(program, parse_sizes("width*1.5"), lossy=True)
    again = _through_text(growth.plan)
    assert again.lossless is False and again.reasons == growth.plan.reasons != ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_copies_in_other_dtypes_grow_too(dtype: torch.dtype) -> None:
    """Shares add up to the weight in the copy's own dtype: growing in half precision loses nothing."""
    _, program = zoo.captured("own:flat")
    plan = _grown("own:flat", "width*2", {}).plan
    small = {name: tensor.detach().to(dtype) for name, tensor in program.tensors.items()}
    large = plan.apply(small)
    assert {tensor.dtype for tensor in large.values()} == {dtype}
    shares = large["head_w"].double().view(7, 12, 2)  # copies stand beside their source
    assert torch.equal(shares.sum(-1), small["head_w"].double())
    assert not torch.equal(shares[..., 0], shares[..., 1])
