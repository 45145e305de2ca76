"""freeze: which parameters train, levels as published, selectors, refusals, and what training leaves alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import progc
from progc.errors import InputError, PassOptionError
from progc.ir.check import compare
from progc.ir.program import Program
from progc.passes.freeze import Freeze, freeze
from progc.pipeline.base import to_text
from progc.pipeline.manager import describe, run
from progc.pipeline.text import parse
from progc.transforms.freezing import trainable
from tests import nets
from tests.command import in_process
from tests.transforms.freezing.networks import diffuser
from tests.zoo import captured


def frozen(program: Program, text: str) -> Program:
    """`progc.apply` with the options of one freeze, without counting."""
    return progc.apply(program, f"freeze{{{text} measure=false}}")


def training_blocks(program: Program) -> list[int]:
    """Numbers of blocks of which something trains."""
    return sorted({int(m[1]) for name in trainable(program) if (m := re.match(r"blocks\.([0-9]+)\.", name))})


# --- levels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "share"), [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)])
def test_levels_of_28_blocks_are_those_that_were_meant(level: int, share: float) -> None:
    program = diffuser(28)
    result = frozen(program, f"level={level}")
    assert training_blocks(result) == [b for b in range(28) if b % 4 < level]
    sizes = {name: tensor.numel() for name, tensor in program.parameters() if name.startswith("blocks.")}
    assert sum(sizes[name] for name in trainable(result) if name in sizes) == share * sum(sizes.values())
    others = {name for name, _ in program.parameters() if name not in sizes}
    assert others - {"positions"} <= trainable(result).keys(), "outside of blocks everything trains, unless it is fixed"
    assert "positions" not in trainable(result)


def test_levels_of_a_library_model() -> None:
    program = captured("timm:deit_tiny_patch16_224@64")[1]
    assert training_blocks(frozen(program, "level=1")) == [0, 4, 8]
    assert training_blocks(frozen(program, "level=2")) == [0, 1, 4, 5, 8, 9]  # not 10 and 11
    assert training_blocks(frozen(program, "level=1 of=6")) == [0, 6]
    assert training_blocks(frozen(program, "prefix=9")) == [9, 10, 11]
    assert training_blocks(frozen(program, "suffix=9 rest=frozen")) == [0, 1, 2]
    assert training_blocks(frozen(program, "level=3 prefix=4 suffix=4")) == [4, 5, 6]


def test_a_second_pass_replaces_the_first() -> None:
    program = diffuser()
    assert training_blocks(progc.apply(program, "freeze{level=1},freeze{level=2}")) == [0, 1]
    thawed = progc.apply(program, "freeze{only=head},freeze{level=4}")
    assert trainable(thawed).keys() == trainable(program).keys()
    assert [record.changed for record in thawed.history] == [True, True]
    assert not progc.apply(program, "freeze{level=4}").history[0].changed


# --- selectors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train=head.*", {"head.weight", "head.bias"}),
        ("train=head", {"head.weight", "head.bias"}),
        ("train=layers[1]", {f"layers.1.{name}" for name in ("before_attention.gain", "before_mlp.gain",
                             "attention.qkv", "attention.out", "up.weight", "down.weight")}),
        ("only=head train=layers[2:]", {"final.gain", "head.weight", "head.bias", *(f"layers.2.{name}" for name in
                             ("before_attention.gain", "before_mlp.gain", "attention.qkv", "attention.out", "up.weight",
                             "down.weight"))}),
        ("only=norms", {"final.gain", *(f"layers.{i}.before_{what}.gain" for i in range(3)
                             for what in ("attention", "mlp"))}),
        ("prefix=2 stem=true freeze=layers.2.up,final,head", {f"layers.2.{name}" for name in ("before_attention.gain",
                             "before_mlp.gain", "attention.qkv", "attention.out", "down.weight")}),
        ("freeze=layers,embed,positions train=positions", {"positions", "final.gain", "head.weight", "head.bias"}),
        ("only=attention rest=trainable freeze=layers[:2]", {"layers.2.attention.qkv", "layers.2.attention.out",
                             "embed.weight", "embed.bias", "positions", "final.gain", "head.weight", "head.bias"}),
    ],
)  # fmt: skip
def test_selectors(text: str, expected: set[str]) -> None:
    program = captured("own:einsum")[1]
    result = trainable(frozen(program, text))
    assert result.keys() == expected


def test_a_function() -> None:
    program = captured("own:einsum")[1]
    result = freeze(program, lambda name, tensor: tensor.dim() == 2 and "attention" not in name)
    expected = {n for n, t in program.parameters() if t.dim() == 2 and "attention" not in n}
    assert trainable(result).keys() == expected
    (record,) = result.history
    assert parse(record.text) == [Freeze(train=tuple(sorted(expected, key=list(program.tensors).index)), measure=False)]
    with pytest.raises(PassOptionError, match="selects no parameter"):
        freeze(program, lambda name, tensor: False)


def test_what_the_class_does_not_train_has_to_be_named() -> None:
    program = diffuser()
    assert not program.tensors["positions"].requires_grad and program.specs["positions"].fixed
    _, (result,) = run(program, "freeze{level=1 measure=false}")
    assert any("positions" in note and "train=" in note for note in result.notes)
    assert trainable(frozen(program, "level=4 train=positions")).keys() == {name for name, _ in program.parameters()}
    both = progc.apply(program, "freeze{train=positions,patches},freeze")
    assert trainable(both).keys() == trainable(program).keys()


def test_a_model_that_was_loaded_frozen_trains() -> None:
    model = nets.EinsumTransformer(depth=2).requires_grad_(False)
    program = progc.capture(model, (torch.randn(2, 6, 10),))
    assert not trainable(program) and not model.head.weight.requires_grad
    assert trainable(frozen(program, "level=4")).keys() == {name for name, _ in program.parameters()}
    assert trainable(frozen(program, "train=head")).keys() == {"head.weight", "head.bias"}
    assert not model.head.weight.requires_grad, "the user's own parameters keep their flags"


class Averaging(nn.Module):
    """Keeps statistics by operations of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return (x - self.mean) * self.gain


def test_statistics_that_cannot_be_held_still_are_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Averaging(), nn.Linear(3, 2))
    program = progc.capture(model, (torch.randn(2, 3),))
    _, (said,) = run(program, "freeze{freeze=1}")
    assert "frozen modules still update their buffers in train mode: 1.mean" in said.notes
    assert not any("buffers" in note for note in run(program, "freeze{freeze=0}")[1][0].notes)


def test_tied_names_are_one_parameter() -> None:
    program = captured("own:tied")[1]
    result = frozen(program, "freeze=head")
    assert trainable(result).keys() == {"mix.weight", "mix.bias"}
    assert result.tensors["head.weight"] is result.tensors["embed.weight"]
    stem, (said,) = run(captured("transformers:gpt2")[1], "freeze{prefix=1 stem=true measure=false}")
    assert "lm_head.weight" in stem.tied and not stem.tensors["lm_head.weight"].requires_grad
    assert any("lm_head.weight, which is tied to it" in note for note in said.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("level=0", "level=0: expected 1 to 4"),
        ("level=5", "level=5: expected 1 to 4"),
        ("level=1 of=0", "of=0: expected the number of levels"),
        ("prefix=-1", "prefix=-1: expected a number of blocks"),
        ("only=atention", "unknown kind `atention`; did you mean attention?"),
        ("rest=half", "option rest: expected one of trainable, frozen"),
    ],
)
def test_options_that_no_program_could_meet(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        frozen(captured("own:einsum")[1], text)
    assert refused.value.exit_code == 2 and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prefix=4", "prefix=4, but the program has 3 blocks; expected 0 to 3"),
        ("suffix=9", "suffix=9, but the program has 3 blocks; expected 0 to 3"),
        ("freeze=layer.0", "`layer.0` matches no parameter, block or chain; did you mean layers.0"),
        ("train=nothing_like_it", "expected a name or glob of parameters, or chain[a:b]"),
        ("freeze=layers[3:5]", "`layers[3:5]` matches nothing; chain layers has 3 blocks"),
        ("freeze=layers[7]", "`layers[7]` matches nothing; chain layers has 3 blocks"),
        ("only=modulation", "only=modulation matches no parameter; this program has attention, mlp, norms"),
        ("prefix=3 stem=true rest=frozen", "nothing is left to train"),
        ("freeze=*", "nothing is left to train"),
    ],
)
def test_selectors_that_match_nothing(text: str, message: str) -> None:
    with pytest.raises(PassOptionError, match=re.escape(message)) as refused:
        frozen(captured("own:einsum")[1], text)
    assert refused.value.exit_code == 2 and "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["level=1", "prefix=0", "suffix=1", "stem=true"])
def test_blocks_need_chains(text: str) -> None:
    with pytest.raises(PassOptionError, match="counts blocks, and the program has no chain; use only="):
        frozen(captured("own:conv")[1], text)


# --- what freezing is -----------------------------------------------------------------------------------------------


def test_frozen_and_unfrozen_programs_share_their_memory() -> None:
    program = captured("own:einsum")[1]
    result = frozen(program, "prefix=2 stem=true")
    for name, tensor in program.tensors.items():
        new = result.tensors[name]
        assert new.data_ptr() == tensor.data_ptr() and tensor.requires_grad == isinstance(tensor, nn.Parameter)
        assert (new is tensor) == (new.requires_grad == tensor.requires_grad)
    again = frozen(result, "level=4")
    assert all(again.tensors[name].data_ptr() == tensor.data_ptr() for name, tensor in program.tensors.items())
    assert compare(program, result, seed=1).max_abs == 0.0


class Counted(nn.Module):
    """A parameter and a buffer of integers beside what trains."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 3)
        self.order = nn.Parameter(torch.tensor([2, 0, 1]), requires_grad=False)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.body(x) * self.scale)[:, self.order]


def test_integers_and_buffers_are_left_alone() -> None:
    program = progc.capture(Counted(), (torch.randn(2, 3),))
    result = frozen(program, "train=body.bias,order")
    assert trainable(result).keys() == {"body.bias"}
    assert all(result.tensors[name] is program.tensors[name] for name in ("order", "scale", "body.bias"))


def own_copy(program: Program) -> Program:
    """Over tensors of its own: training it changes nobody else's."""
    copies = {name: nn.Parameter(t.detach().clone()) for name, t in program.parameters()}
    return program.replace(tensors={name: copies[program.tied.get(name, name)] for name in program.tensors})


@pytest.mark.parametrize("text", ["prefix=2 stem=true", "level=1", "only=attention", "train=final,layers[1]"])
def test_training_leaves_frozen_bits_alone(text: str) -> None:
    program = frozen(own_copy(captured("own:einsum")[1]), text)
    before = {name: tensor.detach().clone() for name, tensor in program.parameters()}
    module = program.module().train()
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=0.1, weight_decay=0.5
    )  # of everything, as a careless user may
    for _ in range(2):
        module(*program.example[0]).square().mean().backward()
        optimizer.step()
    named: Mapping[str, nn.Parameter] = dict(module.named_parameters())
    for name, value in before.items():
        trains = name in trainable(program)
        assert (named[name].grad is not None) == trains, name
        assert torch.equal(named[name], value) != trains, name
        assert (named[name] in optimizer.state) == trains, name
    assert {n for n, p in named.items() if p.requires_grad} == trainable(program).keys()


def test_the_history_says_what_trains() -> None:
    program = captured("own:flat")[1]
    result, (said,) = run(program, "freeze{prefix=2 stem=true}")
    line = describe(result.history[0])
    tensors, numbers = len(trainable(result)), sum(tensor.numel() for tensor in trainable(result).values())
    assert f"trainable tensors {tensors}, trainable parameters {numbers:,}, frozen tensors {32 - tensors}" in line
    assert said.counts["frozen parameters"] == program.num_parameters() - numbers
    assert (
        "backward FLOPs" in said.counts
        and "backward FLOPs" not in run(program, "freeze{prefix=2 measure=false}")[1][0].counts
    )


def test_state_dicts_and_text() -> None:
    program = captured("own:flat")[1]
    result = frozen(program, "level=1 of=2")
    assert result.state_dict().keys() == program.state_dict().keys()
    module = progc.apply(program, "freeze{level=1 of=2}").module()
    module.load_state_dict(program.state_dict())
    other = progc.capture(nets.FlatMixer(), program.example[0])
    assert trainable(progc.apply(other, result.history[0].text)).keys() == trainable(result).keys()
    options = Freeze(level=2, only="norms", freeze=["a.*", "b[0:3]"], rest="frozen")  # type: ignore[arg-type]
    assert parse(to_text([options])) == [options]


def test_the_command_reports_and_writes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "frozen"
    source = str(Path(__file__).resolve().parents[2] / "examples" / "digits_vit.py")
    command = in_process(capsys)
    outcome = command("apply", source, "--pipeline", "freeze{prefix=2}", "--out", str(out), "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    (step,) = report["passes"]
    assert step["counts"]["Adam bytes"] == 8 * step["counts"]["trainable parameters"]
    assert step["counts"]["backward FLOPs"] < step["counts"]["backward FLOPs with all trainable"]
    assert report["lossless"] and report["max_abs_diff"] == 0.0
    assert any(note.startswith("warning: the stem trains") for note in step["notes"])
    written = safetensors.torch.load_file(out / "model.safetensors")
    assert sum(tensor.numel() for tensor in written.values()) == report["params_after"], "frozen tensors are saved too"
    refused = command("apply", source, "--pipeline", "freeze{level=5}")
    assert refused.code == 2
    assert refused.err.splitlines()[-1] == "progc: error: freeze: level=5: expected 1 to 4 (of=4)"
