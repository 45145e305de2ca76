"""Averaged copies: they are timm's, growth moves them as it moves the weights, and files give them back."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.utils.model_ema import ModelEmaV2, ModelEmaV3
from torch import nn

import progc
from progc.errors import InputError, VerifyError
from progc.growth.grow import grow_with_report
from progc.ir.check import compare
from progc.ir.program import Average, Program
from progc.lift.averages import DECAYS, attached
from progc.pipeline.manager import run
from tests import nets
from tests.fake_cuda import CUDA, all_on_cuda, fake_cuda, refused
from tests.growth.target import test_outputs, test_untie
from tests.lift.optimizers.running import fresh, parameters, train
from tests.toy_passes import AddBias


def moved(model: nn.Module, steps: int, *, ema: list[object], seed: int = 0) -> None:
    """Changes parameters and statistics of a network at random, and tells the averages."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            model(torch.randn(4, 3, 8, 8, generator=generator))
        for item in ema:
            item.update(model)  # type: ignore[attr-defined]


def test_the_average_is_timms() -> None:
    """Parameters, floating and integer buffers, all four decays."""
    model = nets.ConvNet().train()
    ema = progc.EMA(model)
    theirs = {decay: ModelEmaV2(model, decay) for decay in DECAYS}
    moved(model, 5, ema=[ema, *theirs.values()])
    assert tuple(ema.tensors) == DECAYS and ema.num_updates == 5
    for decay, one in theirs.items():
        state = one.module.state_dict()
        assert state.keys() == ema.tensors[decay].keys()
        for name, tensor in ema.tensors[decay].items():
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor, state[name], rtol=1e-6, atol=1e-7)
        assert ema.tensors[decay]["stem_norm.num_batches_tracked"] == 5  # theirs truncates its average of counts


def test_warm_up_is_timms() -> None:
    model = nets.ConvNet().train()
    ema = progc.EMA(model, [0.9], warmup=True, warmup_gamma=2.0, warmup_power=0.75)
    theirs = ModelEmaV3(model, 0.9, use_warmup=True, warmup_gamma=2.0, warmup_power=0.75)
    for step in range(1, 60):
        assert ema.decay_at(0.9, step) == theirs.get_decay(step)
    assert ema.decay_at(0.9, 1) == 0.0 < ema.decay_at(0.9, 2) < 0.9 == ema.decay_at(0.9, 59)
    for step in range(1, 7):
        moved(model, 1, ema=[ema], seed=step)
        theirs.update(model, step=step)
    for name, tensor in theirs.module.state_dict().items():
        torch.testing.assert_close(ema.tensors[0.9][name], tensor, rtol=1e-5, atol=1e-6)


def test_sources_of_every_kind() -> None:
    """A program and its module, compiled and wrapped modules; 16 bits are averaged in float32."""
    program = fresh("lm")
    ema = progc.EMA(program, [0.5])
    with torch.no_grad():
        program.tensors["embed.weight"].add_(1.0)
    ema.update(torch.compile(program.module()))
    copies = ema.tensors[0.5]
    torch.testing.assert_close(copies["embed.weight"], program.tensors["embed.weight"] - 0.5)
    assert copies["head.weight"] is copies["embed.weight"]  # tied, and updated once
    wrapped = nn.ModuleDict({"module": nn.Linear(3, 2).half()})
    half = progc.EMA(wrapped, [0.9])
    assert half.tensors[0.9].keys() == {"weight", "bias"} and half.tensors[0.9]["weight"].dtype == torch.float32
    half.update(wrapped)
    assert not any(tensor.requires_grad for tensor in half.tensors[0.9].values())


def test_misuse() -> None:
    model = nn.Linear(3, 2)
    for decays in ([], [1.0], [-0.1], [0.9, 0.9]):
        with pytest.raises(InputError, match="expected distinct numbers, at least 0 and below 1"):
            progc.EMA(model, decays)
    ema = progc.EMA(model, [0.9])
    before = ema.state_dict()["0.9/weight"].clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    for other in (nn.Linear(3, 4), nn.Linear(3, 2, bias=False), nn.Sequential(nn.Linear(3, 2))):
        with pytest.raises(InputError, match="was added, removed or reshaped since tracking began"):
            ema.update(other)
    assert torch.equal(ema.tensors[0.9]["weight"], before) and ema.num_updates == 0


def test_state_goes_through_safetensors(tmp_path: Path) -> None:
    program = fresh("lm")
    ema = progc.EMA(program, [0.9, 0.99])
    ema.update({name: tensor + 1 for name, tensor in program.persistent().items()})
    save_file(ema.state_dict(), tmp_path / "ema.safetensors")
    again = progc.EMA(program, [0.9, 0.99])
    state = load_file(tmp_path / "ema.safetensors")
    again.load_state_dict(state)
    assert again.num_updates == 1 and "0.9/head.weight" not in state
    for decay, tensors in ema.tensors.items():
        assert all(torch.equal(again.tensors[decay][name], tensor) for name, tensor in tensors.items())
    for bad, message in (
        ({**state, "0.5/q.bias": torch.ones(8)}, "0.5/q.bias is unknown"),
        ({name: tensor for name, tensor in state.items() if name != "0.9/q.bias"}, "0.9/q.bias is missing"),
        ({**state, "0.9/q.bias": torch.ones(9)}, "0.9/q.bias has another shape"),
    ):
        with pytest.raises(InputError, match=f"averages: {message}; expected decays"):
            again.load_state_dict(bad)


def normed() -> nn.Module:
    """Floating-point and integer buffers beside parameters, and two names of one of them."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    net[2].weight = net[0].weight
    return net


def test_an_update_may_be_left_out_where_the_device_says_so() -> None:
    """Then nothing changes, whatever the step has left in running statistics; otherwise it is the update itself."""
    ours, theirs = (progc.EMA(normed(), [0.9, 0.5]) for _ in range(2))
    net = normed()
    for step, skipped in enumerate([0.0, 1.0, 0.0, 0.0, 1.0]):
        net(torch.randn(8, 4) + step)
        with torch.no_grad():
            kept = {name: tensor.clone() for name, tensor in net.state_dict().items()}
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            if skipped:
                net[1].running_var.fill_(math.nan)
                net[3].running_mean.fill_(math.inf)
        before = {decay: {n: t.clone() for n, t in own.items()} for decay, own in ours.tensors.items()}
        ours.update(net, unless=torch.tensor(skipped))
        if skipped:
            assert all(torch.equal(t, before[d][n]) for d, own in ours.tensors.items() for n, t in own.items())
            net.load_state_dict(kept)
        else:
            theirs.update(net)
            assert not torch.equal(ours.tensors[0.9]["0.weight"], before[0.9]["0.weight"])
        for decay, own in theirs.tensors.items():
            for name, tensor in own.items():
                assert torch.allclose(ours.tensors[decay][name], tensor, rtol=1e-5, atol=1e-6), name
    assert ours.num_updates == theirs.num_updates == 3
    assert int(ours.state_dict()["num_updates"]) == 3
    ours.num_updates = 7
    assert ours.num_updates == 7


def test_a_left_out_update_does_not_count_for_the_warm_up() -> None:
    ours, theirs = (progc.EMA(normed(), [0.9], warmup=True) for _ in range(2))
    net = normed()
    for skipped in (1.0, 0.0, 1.0, 0.0):
        ours.update(net, unless=torch.tensor(skipped))
        if not skipped:
            theirs.update(net)
        with torch.no_grad():
            net[0].weight.mul_(1.1)
    assert torch.allclose(ours.tensors[0.9]["0.weight"], theirs.tensors[0.9]["0.weight"])


def test_the_host_does_not_wait_for_an_update() -> None:
    with fake_cuda():
        tensors = all_on_cuda(normed().state_dict(keep_vars=True))
        ema = progc.EMA(tensors, [0.9])
        ema.update(tensors, unless=torch.zeros((), device=CUDA))
        ema.update(tensors)
        assert refused(lambda: ema.num_updates)


# --- growth carries them --------------------------------------------------------------------------------------------


def trained(name: str) -> tuple[Program, torch.optim.Optimizer, progc.EMA]:
    program = fresh(name)
    optimizer = torch.optim.AdamW(parameters(program), lr=1e-2)
    ema = progc.EMA(program, [0.5, 0.9])
    train(program, optimizer, 4, after=ema.update)
    return program, optimizer, ema


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [
        ("flat", "grow-depth{to=*2},grow-width{width=*2}"),
        ("lm", "grow-width{width=*2}"),
        ("conv", "grow-width{width=*2}"),
    ],
)
def test_an_average_grows_as_the_weights_do(name: str, pipeline: str) -> None:
    """Statistics of BatchNorm too: the averaged network computes after growth what it computed before."""
    program, optimizer, ema = trained(name)
    old = ema.values()
    result, results = run(attached(program, ema), pipeline)
    grown = progc.apply(program, pipeline, optimizer=optimizer, ema=ema)
    assert [average.decay for average in grown.averages] == [0.5, 0.9]
    for before, after, same in zip(old, grown.averages, result.averages, strict=True):
        expected = dict(before.tensors)
        for item in results:
            assert item.lift is not None
            expected = item.lift.apply(expected)
        assert after.tensors.keys() == grown.tensors.keys()
        assert all(torch.equal(after.tensors[key], expected[key]) for key in grown.tensors)
        assert all(torch.equal(after.tensors[key], same.tensors[key]) for key in grown.tensors)
        assert not any(isinstance(tensor, nn.Parameter) for tensor in after.tensors.values())
        small, large = program.replace(tensors=before.tensors), grown.replace(tensors=after.tensors)
        assert compare(small, large, seed=0).max_rel < 1e-9
        assert compare(small, program, seed=0).max_rel > 1e-3  # it is another network than the trained one
    train(grown, optimizer, 2, after=ema.update)
    assert ema.num_updates == 6 and ema.tensors[0.5].keys() == grown.persistent().keys()
    weights = {tensor.data_ptr() for tensor in grown.tensors.values()}
    assert not weights & {tensor.data_ptr() for copies in ema.tensors.values() for tensor in copies.values()}


def test_steps_outside_the_passes_carry_averages_too() -> None:
    """A tie undone, factors of the class taken over, classes appended: what only a target model asks for."""
    cases = [
        (test_untie.captured(6, tied=True)[1], test_untie.captured(12, tied=False)[1]),
        (test_outputs.captured(6, 5)[1], test_outputs.captured(12, 12)[1]),
    ]
    for program, target in cases:
        average = Average({name: tensor.detach().clone() for name, tensor in program.tensors.items()}, 0.9)
        growth = grow_with_report(attached(program, average), target)
        (found,) = growth.program.averages
        assert len(growth.plan.lifts) > 1 and found.tensors.keys() == growth.program.tensors.keys()
        for name, tensor in growth.plan.apply(average.tensors).items():
            assert torch.equal(found.tensors[name], tensor)
        grown = progc.grow(program, target, ema=[average])
        assert all(torch.equal(grown.averages[0].tensors[name], found.tensors[name]) for name in found.tensors)


def test_what_ema_takes() -> None:
    """Averages, values, modules (timm's among them), tensors by name; the program holds them in this order."""
    program, _, ema = trained("mlp")
    module = program.module()
    theirs = ModelEmaV2(module, 0.99)
    named = {name: tensor.detach() for name, tensor in program.tensors.items()}
    grown = progc.grow(program, width=2, ema=[theirs, ema, named, ema.values()[0]])
    assert [average.decay for average in grown.averages] == [None, 0.5, 0.9, None, 0.5]
    again = progc.apply(grown, "grow-width{axes=0:32}")
    assert [average.tensors["0.weight"].shape for average in again.averages] == [(32, 6)] * 5
    for bad, message in (
        ([3], "ema: expected progc.EMA, a module or tensors by name, found int"),
        (nn.Linear(3, 2), r"the average lacks 0.weight \(6 tensors\)"),
        ({**named, "other": torch.ones(1)}, "has the unknown tensor other"),
        ({**named, "0.bias": torch.ones(1)}, "has another shape for 0.bias"),
    ):
        with pytest.raises(InputError, match=message):
            progc.grow(program, width=2, ema=bad)


def test_deferred_programs_defer_their_averages() -> None:
    program, _, ema = trained("flat")
    carrying = attached(program, ema)
    twin = carrying.deferred
    assert all(tensor.is_meta for average in twin.averages for tensor in average.tensors.values())
    back = twin.complete()
    for one, two in zip(back.averages, carrying.averages, strict=True):
        assert all(one.tensors[name] is two.tensors[name] for name in one.tensors)
    assert program.complete() is program and carrying.complete() is carrying


def test_a_pass_without_a_lift_cannot_leave_averages_behind() -> None:
    program = progc.capture(nets.ConvNet(), (torch.randn(2, 3, 8, 8),))
    average = Average({name: tensor.detach() for name, tensor in program.tensors.items()})
    with pytest.raises(
        VerifyError, match="after add-bias: the averaged copies cannot follow, because no lift produces `bias`"
    ):
        run(attached(program, average), [AddBias()])


def test_training_never_touches_an_average() -> None:
    program, optimizer, ema = trained("mlp")
    grown = progc.apply(program, "grow-width{axes=0:16}", optimizer=optimizer, ema=ema)
    before = copy.deepcopy(ema.state_dict())
    train(grown, optimizer, 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ema.state_dict().items())


def test_buffers_that_an_average_lacks_are_copies_of_the_programs() -> None:
    """As for a file that holds parameters alone: training the network must not write to the average."""
    program = progc.capture(nets.ConvNet(), (torch.randn(4, 3, 8, 8),))
    carrying = attached(program, {name: tensor.detach() for name, tensor in program.parameters()})
    (average,) = carrying.averages
    before = {name: tensor.clone() for name, tensor in average.tensors.items()}
    carrying.module().train()(torch.randn(4, 3, 8, 8))
    assert not torch.equal(carrying.tensors["stem_norm.running_mean"], before["stem_norm.running_mean"])
    for name in ("stem_norm.running_mean", "stem_norm.num_batches_tracked"):
        assert torch.equal(average.tensors[name], before[name])
