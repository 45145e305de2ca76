"""Sub-networks of a supernet: shared storage, gradients at the right places, one definition for all uses."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import progc
from progc.data.task import Task
from progc.errors import InputError
from progc.ir.program import Program
from progc.ir.random_state import seeded
from progc.lift.averages import Averages
from progc.schedule.point import Point
from progc.search.elastic import losses, train_step
from progc.search.one_shot import copied
from progc.search.supernet import SubNetwork, Supernet, kept_blocks, nested
from progc.transforms.shrinking import kept
from tests import nets, zoo


def _net(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    if name == "transformer":
        return nets.ImageTransformer(depth=4), (zoo.image(32),), {}
    if name == "resnet":
        from timm.models.resnet import BasicBlock, ResNet

        return ResNet(BasicBlock, (4, 1, 1, 1), num_classes=5, channels=(4, 4, 4, 4)), (zoo.image(32),), {}
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=4, sample_size=8,
        patch_size=2, num_embeds_ada_norm=5,
    )  # fmt: skip
    inputs = {"timestep": torch.tensor([3, 11]), "class_labels": torch.tensor([1, 4])}
    return model, (zoo.image(8, channels=4),), inputs


@functools.cache
def _captured(name: str) -> Program:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, args, kwargs = _net(name)
    model = zoo.perturb(model).double().train()
    args = tuple(item.double() for item in args)
    return progc.capture(model, args, kwargs)


def program(name: str) -> Program:
    """A float64 program whose tensors are nobody else's."""
    return copied(_captured(name))


def task(name: str) -> Task:
    """Gives the example's inputs; the loss weighs outputs with fixed numbers."""
    args, kwargs = _captured(name).example

    def loss(outputs: Any, batch: Any) -> Tensor:
        out = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
        out = out.sample if hasattr(out, "sample") else out
        weights = torch.randn(out.shape[1:], generator=torch.Generator().manual_seed(3), dtype=out.dtype)
        return (out * weights).square().mean()

    return Task([], loss, inputs=lambda batch: ((batch["image"],), kwargs))


def batch(name: str) -> dict[str, Tensor]:
    return {"image": _captured(name).example[0][0]}


CASES = {
    "depth": ("transformer", Point({"blocks": 2})),
    "depth and smaller images": ("transformer", Point({"blocks": 3}, resolution=(16, 24))),
    "larger images": ("transformer", Point({"blocks": 4}, resolution=(64, 64))),
    "width": ("transformer", Point({"blocks": 3}, {"mlp": 16})),
    "all of them": ("transformer", Point({"blocks": 2}, {"width": 8}, (16, 16))),
    "the supernet itself": ("transformer", Point({"blocks": 4})),
    "batch norm": ("resnet", Point({"layer1": 2}, resolution=(48, 48))),
    "diffusion": ("dit", Point({"transformer_blocks": 2}, resolution=(4, 4))),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_land_where_the_tensors_come_from(case: str) -> None:
    name, point = CASES[case]
    net = Supernet(program(name), [point])
    (member,) = net.members
    member.module.train()
    with seeded(1):  # labels are dropped at random
        member.loss(task(name), batch(name), member.leaves(net.program.tensors)).backward()

    reference = {n: t.clone() for n, t in member.values(net.program.tensors).items() if n not in member.program.tied}
    for n, tensor in reference.items():
        tensor.detach_().requires_grad_(member.program.specs[n].kind == "parameter")
    args, kwargs = task(name).inputs(Task([]).at_size(batch(name), member.size))
    with seeded(1):
        outputs = torch.func.functional_call(member.program.module().train(), reference, args, kwargs)
    task(name).loss(outputs, None).backward()

    expected: dict[str, Tensor] = {}
    for n, tensor in reference.items():
        if tensor.grad is not None:
            source, gradient = _scattered(net.program, member, n, tensor.grad)
            expected[source] = expected.get(source, torch.zeros_like(gradient)) + gradient
    found = {n: t.grad for n, t in net.program.parameters() if t.grad is not None}
    assert found.keys() == expected.keys()
    for n, gradient in found.items():
        torch.testing.assert_close(gradient, expected[n], rtol=1e-9, atol=1e-12)
    assert any(float(gradient.abs().max()) > 0 for gradient in found.values())


def _scattered(full: Program, member: SubNetwork, name: str, gradient: Tensor) -> tuple[str, Tensor]:
    """A sub-network's gradient in the supernet's tensor: at the units that stay, or by the transposed resampling."""
    source, dims = kept(member.lift, name)
    entry = next((entry for entry in member.lift.tensors if entry.name == name), None)
    shape = full.tensors[source].shape
    index = [torch.arange(size) if own is None else own for size, own in zip(
        shape, dims or (None,) * len(shape), strict=True)]  # fmt: skip
    if entry is not None and entry.resample is not None:
        size = [len(own) for own in index]
        basis = torch.eye(int(torch.tensor(size).prod()), dtype=gradient.dtype).reshape(-1, *size)
        gradient = torch.stack([(entry.resample.apply(one) * gradient).sum() for one in basis]).reshape(size)
    whole = torch.zeros(shape, dtype=gradient.dtype)
    whole[torch.meshgrid(*index, indexing="ij") if index else ()] = gradient
    return source, whole


@pytest.mark.parametrize("case", CASES)
def test_tensors_of_a_sub_network_lie_in_the_supernet(case: str) -> None:
    name, point = CASES[case]
    net = Supernet(program(name), [point])
    (member,) = net.members
    leaves = member.leaves(net.program.tensors)
    resampled = {entry.name for entry in member.lift.tensors if entry.resample is not None}
    shared = 0
    for n, held in member.program.parameters():
        tensor, source = leaves.get(n, held), net.program.tensors[kept(member.lift, n)[0]]
        same = tensor.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()
        assert same or n in resampled or not _evenly(member, n), n
        shared += same
    assert shared > len(resampled)


def _evenly(member: SubNetwork, name: str) -> bool:
    from progc.lift.lift import strides

    entry = next((entry for entry in member.lift.tensors if entry.name == name), None)
    return entry is None or strides(entry.dims) is not None


def outputs(module: nn.Module, name: str, member: SubNetwork, tensors: dict[str, Tensor] | None = None) -> Tensor:
    args, kwargs = task(name).inputs(Task([]).at_size(batch(name), member.size))
    with torch.no_grad(), seeded(1):
        out = module(*args, **kwargs) if tensors is None else torch.func.functional_call(module, tensors, args, kwargs)
    out = out[0] if isinstance(out, (tuple, list)) else out
    return out.sample if hasattr(out, "sample") else out


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("case", CASES)
def test_the_recycled_network_is_the_evaluated_one_bit_for_bit(case: str, training: bool) -> None:
    name, point = CASES[case]
    net = Supernet(program(name), [point, Point(dict.fromkeys(point.depths, 4))], own_statistics=True)
    member = net.members[0]
    optimizer = torch.optim.AdamW([t for _, t in net.program.parameters()], lr=0.01)
    ema = Averages(net.program, (0.5, 0.9))
    for step in range(3):
        train_step(net, net.members[step % 2], task(name), batch(name), optimizer, averages=[ema])
    averaged = {decay: {**net.program.tensors, **copy} for decay, copy in ema.tensors.items()}
    sources = {None: net.program.tensors, **averaged}
    evaluated = {
        decay: outputs(member.module.train(training), name, member, _cloned(member.values(source)))
        for decay, source in sources.items()
    }
    recycled = net.recycled(member, ema)
    assert recycled.tensors.keys() == member.program.tensors.keys()
    assert torch.equal(outputs(copied(recycled).module().train(training), name, member), evaluated[None])
    for average in recycled.averages:
        own = {n: t.clone() for n, t in average.tensors.items() if n not in recycled.tied}
        found = outputs(copied(recycled).module().train(training), name, member, own)
        assert torch.equal(found, evaluated[average.decay])
    assert not torch.equal(evaluated[0.9], evaluated[None])


def _cloned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A train graph writes to buffers."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def test_losses_are_of_the_recycled_network_and_write_nothing() -> None:
    net = Supernet(program("resnet"), [Point({"layer1": 2}), Point({"layer1": 4})], own_statistics=False)
    before = {n: t.clone() for n, t in net.program.tensors.items()}
    for member in net.members:
        values = member.values(net.program.tensors)
        for train in (False, True):
            (found,) = losses(member, task("resnet"), [batch("resnet")], values, train=train)
            own = outputs(copied(net.recycled(member)).module().train(train), "resnet", member)
            assert found == float(task("resnet").loss(own, None))
    assert all(torch.equal(before[n], t) for n, t in net.program.tensors.items())


def test_what_a_step_does_not_use_is_left_alone() -> None:
    net = Supernet(program("transformer"), [Point({"blocks": 2}), Point({"blocks": 4})])
    small, large = net.members
    optimizer = torch.optim.AdamW([t for _, t in net.program.parameters()], lr=0.1, weight_decay=0.5)
    train_step(net, large, task("transformer"), batch("transformer"), optimizer)
    before = {n: t.detach().clone() for n, t in net.program.parameters()}
    state = {n: optimizer.state[t]["exp_avg"].clone() for n, t in net.program.parameters()}
    train_step(net, small, task("transformer"), batch("transformer"), optimizer)
    used = {kept(small.lift, n)[0] for n, _ in small.program.parameters()}
    assert 0 < len(used) < len(before)
    for n, tensor in net.program.parameters():
        assert (tensor.grad is None) == (n not in used)
        assert torch.equal(tensor, before[n]) == (n not in used)
        assert torch.equal(optimizer.state[tensor]["exp_avg"], state[n]) == (n not in used)


@pytest.mark.parametrize("own", [True, False], ids=["own", "shared"])
def test_running_statistics(own: bool) -> None:
    net = Supernet(program("resnet"), [Point({"layer1": 2}), Point({"layer1": 4})], own_statistics=own)
    small, large = net.members
    mean = "layer1.0.bn1.running_mean"
    before = net.program.tensors[mean].clone()
    optimizer = torch.optim.SGD([t for _, t in net.program.parameters()], lr=0.1)
    train_step(net, small, task("resnet"), batch("resnet"), optimizer)
    after = small.values(net.program.tensors)[mean]
    assert not torch.equal(after, before)
    assert torch.equal(large.values(net.program.tensors)[mean], before if own else after)
    ema = Averages(net.program, (0.9,))
    recycled = net.recycled(small, ema)
    assert torch.equal(recycled.tensors[mean], after)
    assert torch.equal(recycled.averages[0].tensors[mean], after)


@pytest.mark.parametrize(
    "name, chain", [("transformer", "blocks"), ("resnet", "layer1"), ("dit", "transformer_blocks")]
)
def test_every_candidate_of_an_exactly_grown_supernet_starts_as_the_network_before(name: str, chain: str) -> None:
    full = program(name)
    before = Supernet(full, [Point({chain: 2})]).recycled(Supernet(full, [Point({chain: 2})]).members[0])
    grown = progc.apply(before, Point({chain: 7}).growing(Point({chain: 2})))
    net = Supernet(grown, [Point({chain: depth}) for depth in (3, 4, 5, 7)], base={chain: 2})
    whole = net.sub_network(Point({chain: 2}))
    expected = outputs(before.module().eval(), name, whole)
    for member in (whole, *net.members):
        found = outputs(member.module.eval(), name, member, member.values(grown.tensors))
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_a_frozen_candidate_gives_its_frozen_parameters_no_gradient() -> None:
    from progc.schedule.point import Unfreeze

    point = Point({"blocks": 3}, unfreeze=Unfreeze("suffix", 1, 3))
    net = Supernet(program("transformer"), [point])
    (member,) = net.members
    optimizer = torch.optim.SGD([t for _, t in net.program.parameters()], lr=0.1)
    train_step(net, member, task("transformer"), batch("transformer"), optimizer)
    for n, held in member.program.parameters():
        assert (net.program.tensors[kept(member.lift, n)[0]].grad is not None) == held.requires_grad
    recycled = net.recycled(member)
    assert [t.requires_grad for _, t in recycled.parameters()] == [
        t.requires_grad for _, t in member.program.parameters()
    ]
    assert {t.requires_grad for _, t in recycled.parameters()} == {True, False}


def test_published_nesting_and_its_defect() -> None:
    # 9 -> [12, 15, 18] layers of which 7 -> [8, 11, 14] are of one kind: evaluated and recycled differ.
    assert nested(8, 14, 8, "deepest") == [0, 1, 2, 4, 6, 8, 10, 12]
    assert nested(7, 14, 8, "deepest") == [0, 2, 4, 6, 8, 10, 12, 13]
    assert nested(9, 18, 12, "deepest") == [0, 2, 4, 6, 8, 10, 12, 13, 14, 15, 16, 17]


def test_grown_nesting_is_nested_and_is_what_growth_would_make() -> None:
    from progc.transforms.depth.naming import interpolated

    for base in range(1, 9):
        for full in range(base, 20):
            sources, smaller = interpolated(base, full), set()
            for units in range(base, full + 1):
                found = nested(base, full, units)
                assert smaller <= set(found) and len(found) == units
                assert [sources[place] for place in found] == interpolated(base, units)
                smaller = set(found)


def test_chains_and_depths_that_are_not_there() -> None:
    own = _captured("transformer")
    with pytest.raises(InputError, match="there is no chain layers; chains are blocks"):
        kept_blocks(own, {"layers": 2}, {})
    with pytest.raises(InputError, match="depth blocks:1: expected 1 to 4 blocks in steps of 1, and no fewer than 2"):
        kept_blocks(own, {"blocks": 1}, {"blocks": 2})
