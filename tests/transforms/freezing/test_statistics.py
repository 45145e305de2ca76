"""Normalisations that stand still: what they compute, what they write, and that letting go leaves no trace."""

from __future__ import annotations

import torch

import progc
from progc.ir import norms as norm_statistics
from progc.ir.check import example_inputs, run_float64
from progc.ir.printer import print_graph
from progc.ir.program import Program
from tests.transforms.freezing.networks import normalised
from tests.zoo import captured


def still(program: Program) -> list[str]:
    return [node.name for node, _ in norm_statistics.norms(program.graphs["train"]) if norm_statistics.is_still(node)]


def buffers(program: Program, steps: int = 2) -> dict[str, torch.Tensor]:
    """The program's buffers after some steps in train mode, and the program's own left as they were."""
    saved = {name: t.detach().clone() for name, t in program.tensors.items() if program.specs[name].kind == "buffer"}
    module = program.module().train()
    args, kwargs = program.example
    for _ in range(steps):
        module(*args, **kwargs)
    after = {name: tensor.clone() for name, tensor in module.named_buffers()}
    with torch.no_grad():
        for name, value in saved.items():
            program.tensors[name].copy_(value)
    return {name: after[name] for name in saved}


def moved(program: Program) -> set[str]:
    before = {name: t.clone() for name, t in program.tensors.items() if program.specs[name].kind == "buffer"}
    return {name.partition(".")[0] for name, value in buffers(program).items() if not torch.equal(value, before[name])}


def test_statistics_move_until_they_are_frozen() -> None:
    program = normalised()
    assert moved(program) == {"first", "bare", "instance"}  # `settled` was in eval mode when it was captured
    assert moved(progc.apply(program, "freeze{freeze=first}")) == {"bare", "instance"}
    assert moved(progc.apply(program, "freeze{freeze=instance}")) == {"first", "bare"}
    assert moved(progc.apply(program, "freeze{train=head}")) == set()


def test_a_shift_that_trains_keeps_statistics_moving() -> None:
    assert moved(progc.apply(normalised(), "freeze{freeze=first.weight}")) == {"first", "bare", "instance"}


def test_counters_stand_still_too() -> None:
    program = normalised()
    before = program.tensors["first.num_batches_tracked"].clone()
    assert buffers(program)["first.num_batches_tracked"] == before + 2
    assert buffers(progc.apply(program, "freeze{freeze=first}"))["first.num_batches_tracked"] == before


def test_a_frozen_network_trains_as_it_evaluates() -> None:
    frozen = progc.apply(normalised(), "freeze{train=head}")
    inputs = example_inputs(frozen, seed=1)
    (train,), _ = run_float64(frozen, "train", inputs)
    (evaluated,), _ = run_float64(frozen, "eval", inputs)
    assert torch.equal(train, evaluated)
    (moving,), _ = run_float64(normalised(), "train", inputs)
    assert not torch.allclose(moving, evaluated, rtol=1e-3)


def test_norms_without_parameters_follow_what_they_normalise() -> None:
    assert moved(progc.apply(normalised(), "freeze{freeze=middle}")) == {"first", "instance"}
    assert moved(progc.apply(normalised(), "freeze{freeze=middle.weight}")) == {"first", "instance"}
    assert moved(progc.apply(normalised(), "freeze{freeze=middle.bias}")) == {"first", "bare", "instance"}


def test_norms_of_frozen_blocks_stand_still() -> None:
    program = captured("timm:resnet18@64")[1]
    frozen = progc.apply(program, "freeze{prefix=3 measure=false}")
    assert len(still(frozen)) == 7 and len(still(progc.apply(program, "freeze{train=fc measure=false}"))) == 20
    assert not still(program), "the input stays as it was"


def test_unfreezing_gives_the_graphs_that_were() -> None:
    for program in (normalised(), captured("timm:resnet18@64")[1]):
        texts = [print_graph(program, mode, full=True) for mode in ("train", "eval")]
        frozen = progc.apply(program, "freeze{only=head measure=false}")
        assert print_graph(frozen, "train", full=True) != texts[0]
        again = progc.apply(frozen.replace(history=()), "freeze{measure=false}").replace(history=())
        assert [print_graph(again, mode, full=True) for mode in ("train", "eval")] == texts
        assert not any(norm_statistics.MOVING in node.meta for node in again.graphs["train"].nodes)


def test_a_norm_that_was_in_eval_mode_stays_there() -> None:
    thawed = progc.apply(normalised(), "freeze{train=head},freeze")
    assert moved(thawed) == {"first", "bare", "instance"}


def test_chains_do_not_depend_on_what_is_frozen() -> None:
    program = captured("timm:resnet50@64")[1]
    frozen = progc.apply(program, "freeze{level=2 measure=false}")
    assert still(frozen) and str(frozen.chains) == str(program.chains)
