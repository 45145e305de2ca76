"""MoGrow: interpolation whose copies come from an averaged copy of the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import progc
from progc.errors import InputError, PassOptionError
from progc.growth.grow import grow_with_report
from progc.growth.plan import GrowthPlan
from progc.ir.program import Average, Program
from progc.lift.averages import attached
from progc.lift.lift import Lift
from progc.lift.rates import learning_rate_factors
from progc.models.sizes import parse_sizes
from progc.passes.grow_depth import GrowDepth
from progc.pipeline.manager import run
from progc.transforms.depth.naming import interpolated
from tests.command import Command, in_process
from tests.lift.optimizers.running import fresh, parameters, train
from tests.zoo import captured


def averaged(program: Program, *decays: float) -> Program:
    """The program with averages that are other networks than it is, one for each decay."""
    return attached(
        program,
        [
            Average(
                {
                    name: tensor.detach() * decay + 1 if tensor.is_floating_point() else tensor.detach()
                    for name, tensor in program.tensors.items()
                },
                decay,
            )
            for decay in decays
        ],
    )


def sources(program: Program, result: Program, lift: Lift) -> dict[str, set[str]]:
    """Where each tensor's values come from: `weights`, or the decay of an average."""
    names = {entry.name: entry.source for entry in lift.tensors}
    found = {}
    for name, tensor in result.tensors.items():
        origin = names.get(name, name)
        known = {"weights": program.tensors, **{str(a.decay): a.tensors for a in program.averages}}
        found[name] = {kind for kind, tensors in known.items() if torch.equal(tensor, tensors[origin].to(tensor))}
        assert found[name], name
    return found


@pytest.mark.parametrize("name", ["own:flat", "own:einsum", "transformers:gpt2"])
def test_new_blocks_come_from_the_slowest_average(name: str) -> None:
    """In place and value; old blocks keep the weights; the index map is that of interpolation."""
    program = averaged(captured(name)[1], 0.999, 0.9996, 0.998)
    result, (found,) = run(program, "grow-depth{to=*2 init=mogrow}")
    plain, _ = run(program, "grow-depth{to=*2 init=interpolate}")
    assert found.lossless is False and found.lift is not None
    assert "mogrow: new blocks are taken from the average with decay 0.9996" in found.notes
    assert {name: tensor.shape for name, tensor in result.tensors.items()} == {
        n: t.shape for n, t in plain.tensors.items()
    }
    fresh_names = {entry.name for entry in found.lift.tensors if entry.fresh}
    assert fresh_names
    for key, kinds in sources(program, result, found.lift).items():
        if result.tensors[key].is_floating_point():
            assert kinds == ({"0.9996"} if key in fresh_names else {"weights"}), key
    assert interpolated(9, 15) == [0, 1, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8]  # as in the published code


def test_reference_mode_takes_everything_from_the_average() -> None:
    program = averaged(captured("own:flat")[1], 0.998, 0.9996)
    result, (found,) = run(program, "grow-depth{to=6 init=mogrow source=all ema=0.998}")
    assert found.lift is not None
    assert set(map(frozenset, sources(program, result, found.lift).values())) == {frozenset({"0.998"})}
    assert all(isinstance(t, torch.nn.Parameter) for t in result.tensors.values())
    assert "mogrow: all tensors are taken from the average with decay 0.998" in found.notes


def test_averages_themselves_are_interpolated_from_their_own_past() -> None:
    """The published procedure: every copy j grows from its own predecessor j, in either mode."""
    program = averaged(captured("own:flat")[1], 0.998, 0.9996)
    expected = [run(program.replace(tensors=a.tensors, averages=()), "grow-depth{init=interpolate}", verify=False)[0]
                for a in program.averages]  # fmt: skip
    for source in ("new", "all"):
        result, _ = run(program, f"grow-depth{{init=mogrow source={source}}}")
        for average, plain in zip(result.averages, expected, strict=True):
            assert all(torch.equal(tensor, plain.tensors[name]) for name, tensor in average.tensors.items())


def test_ties_stay() -> None:
    program = averaged(captured("transformers:gpt2")[1], 0.9)
    for source in ("new", "all"):
        result, (found,) = run(program, f"grow-depth{{to=5 init=mogrow source={source}}}")
        assert result.tied == program.tied and program.tied and found.lift is not None
        again = found.lift.apply(program.tensors, program.averages[0].tensors)
        assert all(torch.equal(again[name], tensor) for name, tensor in result.tensors.items())
        for alias, name in result.tied.items():
            assert again[alias] is again[name]


def test_without_averages_it_is_interpolation_and_says_so() -> None:
    program = captured("own:flat")[1]
    result, (found,) = run(program, "grow-depth{to=6 init=mogrow}")
    plain, _ = run(program, "grow-depth{to=6 init=interpolate}")
    assert any("the program carries no averaged copy" in note for note in found.notes)
    assert all(torch.equal(result.tensors[name], tensor) for name, tensor in plain.tensors.items())
    assert found.lift is not None and not any(entry.average for entry in found.lift.tensors)


def test_options_are_checked() -> None:
    program = averaged(captured("own:flat")[1], 0.998, 0.9996)
    with pytest.raises(PassOptionError, match="ema=0.5: no averaged copy has this decay; the program carries 0.998"):
        run(program, "grow-depth{init=mogrow ema=0.5}")
    for options in ({"ema": 0.998}, {"source": "all"}):
        with pytest.raises(PassOptionError, match="ema and source need init=mogrow, got init=identity"):
            GrowDepth(**options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown init `width=mogrow`"):
        progc.grow(program, width=2, init="width=mogrow")


def test_plan_json_moments_rates_and_revert_know_the_average() -> None:
    program = averaged(fresh("flat"), 0.9)
    optimizer = torch.optim.AdamW(parameters(program))
    train(program, optimizer, 2)
    average = program.averages[0].tensors
    sizes = parse_sizes("depth*2,width*2")
    growth = grow_with_report(program, sizes, inits={"depth": "mogrow"})
    assert growth.report["lossless"] is False and growth.plan.inits["depth"] == "mogrow"
    plan = GrowthPlan.from_json(growth.plan.to_json())
    assert plan == growth.plan and sum(entry.average for entry in plan.lifts[0].tensors) == 14
    again = plan.apply(program.tensors, average)
    assert all(torch.equal(again[name], tensor) for name, tensor in growth.program.tensors.items())
    without = plan.apply(program.tensors)
    assert any(not torch.equal(without[name], tensor) for name, tensor in again.items())
    state = {name: optimizer.state[tensor] for name, tensor in program.parameters()}
    moments = plan.moments(state)
    assert not moments["w1_1"]["exp_avg"].any() and moments["w1_0"]["exp_avg"].any()
    assert not learning_rate_factors(plan.lifts[0])["w1_1"].exact
    back = plan.revert(again)
    assert all(torch.allclose(back[name], tensor) for name, tensor in program.tensors.items())
    whole = GrowDepth(init="mogrow", source="all").run(program)
    assert whole.lift is not None and Lift.from_json(whole.lift.to_json()) == whole.lift
    with pytest.raises(InputError, match="revert: growth replaced the values of .*, and no tensor holds them now"):
        GrowthPlan("", (), (), {}, False, (), (), (whole.lift,), 0).revert(whole.program.tensors)


def test_through_the_optimizer() -> None:
    """A training run with averages grows by mogrow and continues; two copies of a block differ at once."""
    program = fresh("flat")
    optimizer = torch.optim.AdamW(parameters(program), lr=1e-2)
    ema = progc.EMA(program, [0.5, 0.9])
    train(program, optimizer, 5, after=ema.update)
    slow = {name: tensor.clone() for name, tensor in ema.tensors[0.9].items()}
    grown = progc.grow(program, depth=2, init="mogrow", optimizer=optimizer, ema=ema)
    assert torch.equal(grown.tensors["w1_1"], slow["w1_0"]) and torch.equal(
        grown.tensors["w1_0"], program.tensors["w1_0"]
    )
    assert torch.equal(ema.tensors[0.9]["w1_1"], slow["w1_0"])
    train(grown, optimizer, 2, after=ema.update)


# --- command line ---------------------------------------------------------------------------------------------------

NET = """
import torch
from tests.nets import FlatMixer

def build():
    torch.manual_seed(3)
    return FlatMixer(depth=2)

def example_inputs():
    return (torch.randn(2, 3, 16, 16),)
"""


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str]) -> Command:
    return in_process(capsys)


@pytest.mark.parametrize("command", ["grow", "apply"])
def test_commands_take_an_average_and_write_it(run_command: Command, tmp_path: Path, command: str) -> None:
    from tests.nets import FlatMixer

    (tmp_path / "net.py").write_text(NET)
    torch.manual_seed(8)
    average = FlatMixer(depth=2).state_dict()
    save_file(average, tmp_path / "ema.safetensors")
    how = ["--to", "depth*2", "--init", "mogrow"] if command == "grow" else ["--pipeline", "grow-depth{init=mogrow}"]
    out = tmp_path / "out"
    outcome = run_command(command, tmp_path / "net.py", *how, "--ema", tmp_path / "ema.safetensors", "--out", out)
    assert outcome.code == 0, outcome.err
    assert "mogrow: new blocks are taken from an average" in outcome.out and "lossless" in outcome.out
    weights, grown = load_file(out / "model.safetensors"), load_file(out / "ema.safetensors")
    assert weights.keys() == grown.keys() == FlatMixer(depth=4).state_dict().keys()
    assert torch.equal(weights["w1_1"], average["w1_0"]) and torch.equal(grown["w1_0"], average["w1_0"])
    assert not torch.equal(weights["w1_0"], average["w1_0"])


def test_apply_without_an_average_writes_none(run_command: Command, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    outcome = run_command("apply", tmp_path / "net.py", "--pipeline", "grow-depth", "--out", tmp_path / "out")
    assert outcome.code == 0 and not (tmp_path / "out" / "ema.safetensors").exists()
    save_file({"w": torch.ones(1)}, tmp_path / "wrong.safetensors")
    bad = run_command("apply", tmp_path / "net.py", "--pipeline", "grow-depth", "--ema", tmp_path / "wrong.safetensors")
    assert bad.code == 2 and "wrong.safetensors does not fit" in bad.err.splitlines()[-1]
