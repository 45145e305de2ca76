"""A row that is folded back: the user's own class computes what the network at that stage did."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import progc
from progc.errors import InputError, NotLosslessError, TargetError
from progc.ir.check import compare, compare_train
from progc.ir.graphs import fingerprint
from progc.lift.lift import Lift
from progc.lift.revert import revert
from progc.pipeline.manager import run
from tests import zoo
from tests.grown import gap, outputs
from tests.passes.test_inject_sid import adaptive, with_rows
from tests.sweeps import some

EXACT = 1e-12
FOLDED = {
    "own:flat": {"stem_b"},
    "own:conv": {"stem_norm.bias"},
    "own:einsum": {"embed.bias"},
    "timm:vit_tiny_patch16_224@64": {"pos_embed"},
    "torchvision:vit": {"encoder.pos_embedding"},
    "timm:resnet18@64": {"bn1.bias"},
    "timm:convnext_atto@64": {"stem.1.bias"},
    "diffusers:dit": {
        f"transformer_blocks.{i}.norm1.emb.timestep_embedder.linear_2.bias" for i in range(2)
    },
    "diffusers:unet": {"time_embedding.linear_2.bias"},
    "transformers:gpt2": {"transformer.wpe.weight"},
}  # fmt: skip


@pytest.mark.parametrize("name", some(FOLDED, zoo.CORE))
def test_the_users_own_class_loads_the_weights(name: str) -> None:
    _, staged = zoo.captured(f"{name}|inject-sid{{stages=3 init=normal stage=2}}")
    staged = with_rows(staged, 0.1)
    folded, (result,) = run(staged, "remove-sid")
    assert result.lossless and result.lift is not None
    assert {entry.name for entry in result.lift.tensors} == FOLDED[name]
    assert compare(staged, folded, seed=1).max_rel < EXACT
    own, args, kwargs = zoo.construct(name)
    assert set(folded.state_dict()) == set(own.state_dict())
    own = own.double()
    own.load_state_dict(folded.state_dict(), strict=True)
    assert gap(outputs(staged.module(), args, kwargs), outputs(own, args, kwargs)) < EXACT
    plain = zoo.captured(f"{name}|inject-sid{{stages=0}}")[1]
    assert compare(plain, folded, seed=1).max_rel > 1e-6  # the row was worth something
    assert fingerprint(folded) == fingerprint(plain)


def test_any_stage_of_an_input() -> None:
    _, program, args = adaptive()
    staged = with_rows(progc.apply(program, "inject-sid{stages=3}"))
    for stage in (None, 0, 3):
        folded, (result,) = run(staged, "remove-sid" + ("" if stage is None else f"{{stage={stage}}}"))
        assert result.lossless is None and "the input `stage` was removed" in result.notes[1]
        stages = torch.full((3,), 2 if stage is None else stage)  # by default the last stage
        expected = staged.module().eval()(*args, stage=stages)
        assert torch.allclose(folded.module().eval()(*args), expected, atol=1e-5)
        assert folded.sid is None and folded.signature == program.signature
        assert fingerprint(folded) == fingerprint(program)


def test_another_stage_than_the_fixed_one_is_not_lossless() -> None:
    _, program, _ = adaptive()
    staged = with_rows(progc.apply(program, "inject-sid{stages=3 stage=1}"))
    assert run(staged, "remove-sid")[1][0].lossless is True
    folded, (result,) = run(staged, "remove-sid{stage=0}")
    assert result.lossless is False and compare(staged, folded, seed=0).max_rel > 1e-3
    with pytest.raises(TargetError, match="stage=4: expected 0 to 2, or 3 for the null row"):
        progc.apply(staged, "remove-sid{stage=4}")


def test_statistics_of_a_norm_do_not_see_the_row() -> None:
    """In train mode too, where no dropout of stages is left: outputs and running statistics agree."""
    _, staged = zoo.captured("own:conv|inject-sid{stages=2 stage=1 init=normal dropout=0.0}")
    folded, (result,) = run(with_rows(staged), "remove-sid")
    assert not result.eval_only
    assert compare_train(with_rows(staged), folded, seed=0).max_rel < EXACT
    dropping = progc.apply(staged, "inject-sid{dropout=0.5}")
    assert run(dropping, "remove-sid")[1][0].eval_only == ("samples no longer get the null row with probability 0.5",)


def test_averaged_copies_fold_their_own_row_and_moments_stay() -> None:
    _, staged = zoo.captured("own:flat|inject-sid{stages=2 stage=1 init=normal}")
    folded, (result,) = run(staged, "remove-sid")
    assert staged.sid is not None and result.lift is not None
    table = staged.sid.table
    lift = Lift.from_json(result.lift.to_json())
    assert lift == result.lift
    noise = torch.Generator().manual_seed(7)
    average = {
        name: tensor.detach() + torch.randn(tensor.shape, generator=noise, dtype=tensor.dtype)
        for name, tensor in staged.tensors.items()
    }
    mapped = lift.apply(average)
    assert table not in mapped and torch.equal(mapped["stem_b"], average["stem_b"] + average[table][1])
    assert all(mapped[name] is average[name] for name in average if name not in ("stem_b", table))
    moments = lift.moments({name: {"step": torch.tensor(3.0), "exp_avg": average[name]} for name in ("stem_b", table)})
    assert list(moments) == ["stem_b"] and torch.equal(moments["stem_b"]["exp_avg"], average["stem_b"])
    deferred = lift.apply(staged.deferred.tensors)["stem_b"]
    assert deferred.is_meta and torch.equal(progc.ir.deferred.values(deferred), folded.tensors["stem_b"])
    with pytest.raises(InputError, match=r"stem_b was grown with adds, which cannot be undone"):
        revert(lift, mapped)


def test_the_trainable_set_stays() -> None:
    _, staged = zoo.captured("own:flat|inject-sid{stages=2 stage=1 init=normal}")
    frozen = nn.Parameter(staged.tensors["stem_b"].detach().clone(), requires_grad=False)
    staged = staged.replace(tensors={**staged.tensors, "stem_b": frozen})
    folded = progc.apply(staged, "remove-sid")
    assert not folded.tensors["stem_b"].requires_grad
    assert compare(staged, folded, seed=0).max_rel < EXACT


def test_tied_tensors_stay_tied() -> None:
    """The rows of a table that is the head's weight too would move the head: the bias of the layer takes the row."""
    _, staged = zoo.captured("own:tied|inject-sid{stages=2 stage=0 init=normal site=mix}")
    folded, (result,) = run(staged, "remove-sid")
    assert result.notes[0] == "stage 0 folded into mix.bias"
    assert folded.tensors["head.weight"] is folded.tensors["embed.weight"]
    _, staged = zoo.captured("own:tied|inject-sid{stages=2 stage=0 init=normal site=embed}")
    with pytest.raises(NotLosslessError, match="embed.weight would take the row, and is also read elsewhere"):
        progc.apply(staged, "remove-sid")


def test_training_goes_on_after_it() -> None:
    _, staged = zoo.captured("own:flat|inject-sid{stages=2 stage=1 init=normal}")
    module = progc.apply(staged, "remove-sid").module()
    args, kwargs = copy.deepcopy(staged.example)
    module(*args, **kwargs).square().mean().backward()
    assert module.get_parameter("stem_b").grad is not None
