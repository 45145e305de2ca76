"""freeze and growth in both orders: copies of what is frozen are frozen, and growth stays exact."""

from __future__ import annotations

import pytest
import torch

import progc
from progc.growth.grow import grow_with_report
from progc.ir import norms as norm_statistics
from progc.ir.check import compare, compare_train
from progc.ir.deferred import is_deferred, values
from progc.ir.program import Program
from progc.pipeline.manager import run
from progc.transforms.freezing import set_trainable, trainable
from tests.transforms.freezing.networks import diffuser
from tests.zoo import captured

EXACT = 1e-9


def exact(before: Program, after: Program) -> bool:
    return compare(before, after, seed=1).max_rel < EXACT


def test_inserted_blocks_are_as_frozen_as_their_source() -> None:
    program = captured("own:einsum")[1]
    frozen = progc.apply(program, "freeze{prefix=2 stem=true measure=false}")
    deeper = progc.apply(frozen, "grow-depth{to=6}")
    assert exact(program, deeper)
    # Blocks 0 1 2 became 0 0' 1 1' 2 2'.
    blocks = {name.split(".")[1] for name in trainable(deeper) if name.startswith("layers.")}
    assert blocks == {"4", "5"} and "embed.weight" not in trainable(deeper) and "head.weight" in trainable(deeper)
    assert trainable(progc.apply(deeper, "freeze{measure=false}")).keys() == {name for name, _ in deeper.parameters()}


@pytest.mark.parametrize(
    "growth", ["grow-width{width=*2}", "grow-width{width=*2 heads=6 mlp=*3}", "grow-depth{init=random}"]
)
def test_growth_keeps_the_trainable_set(growth: str) -> None:
    program = captured("own:einsum")[1]
    frozen = progc.apply(program, "freeze{only=attention,head measure=false}")
    grown = progc.apply(frozen, growth)
    for name in trainable(grown):
        assert ".attention." in name or name.startswith(("head.", "final."))
    assert len(trainable(grown)) == (3 + 6 if "width" in growth else 3 + 12)
    if "random" not in growth:
        assert exact(program, grown)


@pytest.mark.parametrize("growth", ["grow-depth{to=5}", "grow-width{width=*2}"])
@pytest.mark.parametrize("choice", ["prefix=1 stem=true", "level=1 of=2", "only=modulation", "only=norms,head"])
def test_both_orders_give_one_function(growth: str, choice: str) -> None:
    program = captured("own:flat")[1] if "norms" in choice else diffuser()
    choice = f"freeze{{{choice} measure=false}}"
    first, last = progc.apply(program, f"{choice},{growth}"), progc.apply(program, f"{growth},{choice}")
    assert exact(program, first) and exact(program, last)
    assert first.tensors.keys() == last.tensors.keys()
    if "level" not in choice and "prefix" not in choice:
        assert trainable(first).keys() == trainable(last).keys()


def test_a_frozen_convolutional_network_grows_and_its_statistics_stay_still() -> None:
    program = captured("timm:resnet18@64")[1]
    frozen = progc.apply(program, "freeze{prefix=2 stem=true measure=false}")
    deeper = progc.apply(frozen, "grow-depth{to=layer1:4}")
    assert exact(program, deeper)
    still = [node for node, _ in norm_statistics.norms(deeper.graphs["train"]) if norm_statistics.is_still(node)]
    assert len(still) == 1 + 2 * 4
    assert not any(name.startswith(("layer1.", "bn1.", "conv1.")) for name in trainable(deeper))
    module, before = deeper.module().train(), {n: t.clone() for n, t in deeper.tensors.items()}
    module(*deeper.example[0])
    changed = {n for n, t in module.named_buffers() if not torch.equal(t, before[n])}
    with torch.no_grad():
        for name in changed:  # the network is shared
            deeper.tensors[name].copy_(before[name])
    assert changed and not any(name.startswith(("layer1.", "bn1.")) for name in changed)


def test_frozen_width_growth_is_exact_in_train_mode_too() -> None:
    program = captured("own:conv")[1]
    frozen = progc.apply(program, "freeze{train=head}")
    assert compare_train(frozen, progc.apply(frozen, "grow-width{width=*2}"), seed=1).max_rel < EXACT


def test_deferred_parameters_freeze() -> None:
    program = captured("transformers:gpt2")[1]
    (tied, table), chosen = next(iter(program.tied.items())), {"transformer.h.1.attn.c_proj.weight"}
    frozen = set_trainable(program.deferred, chosen)
    assert all(is_deferred(tensor) for _, tensor in frozen.parameters())
    assert trainable(frozen).keys() == chosen and frozen.tensors[tied] is frozen.tensors[table]
    made = values(frozen.tensors[table])
    assert not made.requires_grad and made.data_ptr() == program.tensors[table].data_ptr()
    grown = progc.apply(frozen, "grow-width{width=*2}").complete()
    assert trainable(grown).keys() == chosen and exact(program, grown)
    thawed = set_trainable(frozen, {name for name, _ in program.parameters()}).complete()
    assert all(tensor.requires_grad for _, tensor in thawed.parameters())


def test_growth_to_a_target_keeps_the_set() -> None:
    program = progc.apply(captured("own:einsum")[1], "freeze{prefix=2 stem=true measure=false}")
    from progc.models.sizes import parse_sizes

    grown = grow_with_report(program, parse_sizes("depth*2,width*2")).program
    assert exact(program, grown)
    assert "embed.weight" not in trainable(grown) and {n.split(".")[1] for n in trainable(grown) if "layers" in n} == {
        "4",
        "5",
    }


def test_a_frozen_program_grows_without_a_lift_of_its_own() -> None:
    _, (first, second) = run(captured("own:flat")[1], "freeze{level=1},grow-depth{to=6}")
    assert first.lift is None and first.lossless and second.lift is not None
