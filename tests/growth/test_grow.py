"""Growth from end to end on the zoo: exact by analysis and by measurement, under the names of the larger class."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import progc
from progc.errors import CheckError, NotLosslessError, ProgcError, TargetError
from progc.growth.grow import Growth, grow_with_report
from progc.ir.deferred import defer, values
from progc.lift.lift import Lift
from progc.lift.revert import ROUNDED
from progc.models.sizes import parse_sizes
from tests import nets, zoo
from tests.command import Command, in_subprocess
from tests.grown import EXACT, assert_loads, train_gap

SIZES = ("width*2", "depth*2", "depth*2,width*2")

# Networks with another number of blocks per chain than one, so that `depth*2` means something.
GROWN = [name for name in zoo.NAMES if name not in ("own:conv", "own:tied")]


@functools.cache
def grown(name: str, sizes: str) -> Growth:
    return grow_with_report(zoo.captured(name)[1], parse_sizes(sizes))


# Both at once runs what depth and width run alone.
SWEEP = [
    pytest.param(name, sizes, marks=[pytest.mark.slow] if sizes != SIZES[-1] or name in zoo.ALIKE else [])
    for name in GROWN
    for sizes in SIZES
]


@pytest.mark.parametrize(("name", "sizes"), SWEEP)
def test_zoo_grows_exactly(name: str, sizes: str) -> None:
    _, program = zoo.captured(name)
    growth = grown(name, sizes)
    assert growth.report["lossless"] is True and growth.report["reasons"] == []
    assert growth.report["max_rel_diff"] < EXACT
    assert growth.report["params_after"] == growth.program.num_parameters() > program.num_parameters()
    assert bool(growth.plan.axes) == ("width" in sizes) and bool(growth.plan.chains) == ("depth" in sizes)
    assert growth.program.history[-1].changed
    trained = train_gap(program, growth)
    assert trained is None or trained < EXACT


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: _class("timm.create_model")(name, **options)


def _transformers(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: _class(f"transformers.{model}")(_class(f"transformers.{config}")(use_cache=False, **options))


def _scaled_efficientnet(family: str, name: str) -> Callable[[], nn.Module]:
    return lambda: _class(f"timm.models.{family}._gen_{family}")(name, channel_multiplier=2.0)


BERT = {**zoo._BERT, "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 96}
GPT2 = {**zoo._GPT2, "n_embd": 64, "n_layer": 6, "n_head": 8}
LLAMA = {
    **zoo._LLAMA, "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 96,
}  # fmt: skip

# The classes themselves, built at the larger size. Where only the depth is doubled, the class of the doubled width is
# another function: DiT and UNet compute sinusoids from the width, and BertModel returns its residual stream.
LARGER: dict[tuple[str, str], Callable[[], nn.Module]] = {
    ("timm:vit_tiny_patch16_224@64", "depth*2,width*2"): _timm(
        "vit_tiny_patch16_224", **{**zoo.VIT, "embed_dim": 96, "num_heads": 6, "depth": 8}
    ),
    ("timm:convnext_atto@64", "depth*2,width*2"): _timm(
        "convnext_atto", depths=(4, 4, 12, 4), dims=tuple(2 * width for width in zoo.CONVNEXT)
    ),
    ("timm:densenet121@64", "width*2"): lambda: _class("timm.models.densenet.DenseNet")(
        growth_rate=64, block_config=(2, 3, 4, 3)
    ),
    ("timm:efficientnet_b0@64", "width*2"): lambda: _class("timm.models.efficientnet._gen_efficientnet")(
        "efficientnet_b0", channel_multiplier=2.0
    ),
    ("timm:mixer_s32_224", "depth*2,width*2"): lambda: _class("timm.models.mlp_mixer.MlpMixer")(
        **{**zoo.MIXER, "num_blocks": 8, "embed_dim": 64}
    ),
    ("timm:swin@56", "depth*2,width*2"): lambda: _class("timm.models.swin_transformer.SwinTransformer")(
        img_size=56, patch_size=2, window_size=7, embed_dim=32, depths=(4, 8, 4), num_heads=(4, 8, 16), num_classes=10
    ),
    ("torchvision:vit", "depth*2,width*2"): lambda: _class("torchvision.models.vision_transformer.VisionTransformer")(
        image_size=32, patch_size=8, num_layers=6, num_heads=8, hidden_dim=128, mlp_dim=256, num_classes=10
    ),
    ("diffusers:dit", "depth*2"): lambda: _class("diffusers.DiTTransformer2DModel")(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=4, sample_size=8,
        patch_size=2, num_embeds_ada_norm=20,
    ),
    ("diffusers:unet", "depth*2"): lambda: _class("diffusers.UNet2DConditionModel")(
        sample_size=16, block_out_channels=(32, 64), layers_per_block=2, cross_attention_dim=32, norm_num_groups=8,
        attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), transformer_layers_per_block=2,
    ),
    ("transformers:bert", "depth*2"): _transformers(
        "BertModel", "BertConfig", **{**zoo._BERT, "num_hidden_layers": 6}
    ),
    ("transformers:bert_mlm", "depth*2,width*2"): _transformers("BertForMaskedLM", "BertConfig", **BERT),
    ("transformers:gpt2", "depth*2,width*2"): _transformers("GPT2LMHeadModel", "GPT2Config", **GPT2),
    ("transformers:llama", "depth*2,width*2"): _transformers("LlamaForCausalLM", "LlamaConfig", **LLAMA),
    ("own:einsum", "depth*2,width*2"): lambda: nets.EinsumTransformer(dim=48, heads=6, hidden=80, depth=6),
    ("own:flat", "depth*2,width*2"): lambda: nets.FlatMixer(channels=24, hidden=40, depth=8),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sizes"),
    [  # what the sweep above has grown already, and the network whose class of twice the width is another function
        pytest.param(*key, marks=[] if key[1] == SIZES[-1] or key[0] == "diffusers:dit" else [pytest.mark.slow])
        for key in LARGER
    ],
)
def test_the_class_of_that_size_loads_it_and_answers_the_same(name: str, sizes: str) -> None:
    module, program = zoo.captured(name)
    assert_loads(LARGER[name, sizes](), grown(name, sizes).program.state_dict(), module, *program.example)


def _report(out: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(out)
    return report


# A source file per network: what a user of the command line writes.
FILE = """
import inspect
from tests import zoo

def build():
    return zoo.build({name!r})[0]

def example_inputs():
    model, args, kwargs = zoo.build({name!r})
    return dict(zip(inspect.signature(model.forward).parameters, args), **kwargs)
"""


def _file(folder: Path, name: str) -> Path:
    path = folder / "network.py"
    path.write_text(FILE.format(name=name))
    return path


# One network for each commit: the command line captures it again.
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("own:flat", "transformers:gpt2", "diffusers:dit")]


@pytest.mark.parametrize("name", ["own:einsum", *OTHERS])
def test_the_command_line_gives_what_python_gives(name: str, tmp_path: Path, run: Command) -> None:
    out = tmp_path / "grown"
    outcome = run("grow", _file(tmp_path, name), "--to", "depth*2,width*2", "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    report = _report(outcome.out)
    assert report["lossless"] is True and report["max_rel_diff"] < EXACT
    expected = grown(name, "depth*2,width*2").program.state_dict()
    written = load_file(out / "model.safetensors")
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], expected[key]) for key in expected)


def test_every_field_of_the_report(tmp_path: Path) -> None:
    """In a real process: exactly one JSON object on stdout, progress on stderr, the same report in the folder."""
    source, weights, out = _file(tmp_path, "own:flat"), tmp_path / "w.safetensors", tmp_path / "grown"
    module, program = zoo.captured("own:flat")
    other = zoo.perturb(nets.FlatMixer(), seed=5)
    save_file(other.state_dict(), weights)
    arguments: list[Any] = ["grow", source, "--to", "depth*2,width*2", "--weights", weights, "--ema", weights]
    arguments += ["--init", "width=zero", "--seed", "7", "--out", out, "--json"]
    outcome = in_subprocess(arguments, cwd=tmp_path, environment={"PYTHONPATH": str(Path(__file__).parents[2])})
    report = _report(outcome.out)
    seconds, versions, axes, told = (report.pop(key) for key in ("seconds", "versions", "axes", "program"))
    assert {entry["new"] > entry["old"] for entry in axes if entry["kind"] != "pinned"} == {True}
    grown_params = sum(tensor.numel() for tensor in load_file(out / "model.safetensors").values())
    assert report.pop("max_abs_diff") >= 0 and 0 <= report.pop("max_rel_diff") < EXACT
    assert report == {
        "source": str(source),
        "target": "depth*2,width*2",
        "weights": str(weights),
        "ema": str(weights),
        "init": {"width": "zero", "depth": "identity"},
        "lossy": False,
        "seed": 7,
        "params_before": program.num_parameters(),
        "params_after": grown_params,
        "lossless": True,
        "compared": "all outputs",
        "reasons": [],
        "eval_only": [],
    }
    assert " ".join(seconds) == "build capture analyse deepen align widen write check describe"
    assert versions["torch"] == torch.__version__ and versions["progc"] == progc.__version__
    saved = json.loads((out / "report.json").read_text())
    assert told["params"] == grown_params
    assert " ".join(sorted(saved.keys() - report)) == "axes max_abs_diff max_rel_diff program seconds versions"
    assert outcome.err.splitlines()[-1].startswith("progc: describe: ")
    assert_loads(
        nets.FlatMixer(channels=24, hidden=40, depth=8), load_file(out / "ema.safetensors"), other, *program.example
    )


def test_growth_that_cannot_be_exact_is_refused_with_axis_operation_and_reason(tmp_path: Path, run: Command) -> None:
    source = _file(tmp_path, "own:flat")
    refused = run("grow", source, "--to", "width*1.5", "--out", tmp_path / "grown")
    assert (refused.code, refused.out) == (1, "")
    message = refused.err.splitlines()[-1]
    assert re.search(r"^progc: .*stem_w: 12 to 18 is not an integer factor", message), message
    assert re.search(r"aten\.layer_norm at \S+ takes statistics over it", message), message
    assert "padding is not exact, because aten.conv2d.default" in message
    assert "the nearest exact sizes are 12 and 24" in message and "progc grow: --lossy" in message
    assert not (tmp_path / "grown").exists()

    accepted = run("grow", source, "--to", "width*1.5", "--lossy", "--out", tmp_path / "grown", "--json")
    assert accepted.code == 0, accepted.err
    report = _report(accepted.out)
    assert report["lossless"] is False and report["lossy"] is True
    assert "is not an integer factor" in report["reasons"][0]
    assert 0 < report["max_rel_diff"] < 10 and report["max_abs_diff"] > 0
    with pytest.raises(NotLosslessError, match="is not an integer factor"):
        progc.grow(zoo.captured("own:flat")[1], width=1.5)


REFUSED: dict[tuple[str, str], tuple[type[ProgcError], str]] = {
    ("own:conv", "depth*2"): (TargetError, "has no chain of blocks; progc inspect --chains says why"),
    ("own:tied", "depth*2"): (TargetError, "has no chain of blocks; progc inspect --chains says why"),
    ("own:tied", "width*2"): (
        NotLosslessError,
        r"embed: copies add up at linear_1, and no parameter can absorb the factor: .*aten\.tanh\.default .*not linear",
    ),
    ("own:flat", "width*1.5"): (NotLosslessError, r"12 to 18 is not an integer factor, and aten\.layer_norm"),
    ("timm:swin@56", "layers.1.blocks=5"): (TargetError, "period 2; the nearest are 4 and 6"),
}


@pytest.mark.parametrize(("name", "sizes"), REFUSED)
def test_what_is_impossible_is_refused_with_the_reason(name: str, sizes: str) -> None:
    kind, reason = REFUSED[name, sizes]
    with pytest.raises(kind, match=reason) as caught:
        progc.grow(zoo.captured(name)[1], sizes)
    assert "\n" not in str(caught.value)


def test_a_network_with_batch_norm_and_a_grouped_convolution_widens_exactly() -> None:
    _, program = zoo.captured("own:conv")
    growth = grown("own:conv", "width*2")
    assert growth.report["lossless"] is True and growth.report["max_rel_diff"] < EXACT
    trained = train_gap(program, growth)
    assert trained is not None and trained < EXACT


def test_a_tied_table_that_cannot_be_exact_grows_with_lossy() -> None:
    _, program = zoo.captured("own:tied")
    growth = grow_with_report(program, parse_sizes("width*2"), lossy=True)
    assert growth.report["lossless"] is False and growth.report["max_rel_diff"] > 1e-3
    tensors = growth.program.tensors
    assert tensors["head.weight"] is tensors["embed.weight"]


@pytest.mark.parametrize(
    "inits",
    [
        {"width": "random"},
        {"depth": "random"},
        {"depth": "interpolate"},
        {"depth": "stack"},
        {"width": "random", "depth": "stack"},
    ],
    ids=lambda inits: "+".join(f"{kind}={word}" for kind, word in inits.items()),
)
def test_inits_that_change_the_function_say_so_and_never_refuse(inits: dict[str, str]) -> None:
    """Even to a width that no exact growth reaches."""
    sizes = "depth*2,width*1.5" if "width" in inits else "depth*2,width*2"
    _, program = zoo.captured("own:flat")
    growth = grow_with_report(program, parse_sizes(sizes), inits=inits)
    assert growth.report["lossless"] is False and growth.report["reasons"]
    assert growth.report["max_rel_diff"] > 1e-3
    channels, hidden = (18, 30) if "width" in inits else (24, 40)
    nets.FlatMixer(channels=channels, hidden=hidden, depth=8).load_state_dict(growth.program.state_dict(), strict=True)


@pytest.mark.parametrize("width", ["copy", "zero"])
def test_the_exact_inits_of_width(width: str) -> None:
    _, program = zoo.captured("own:flat")
    growth = grow_with_report(program, parse_sizes("depth*2,width*2"), inits={"width": width})
    assert growth.report["lossless"] is True and growth.report["max_rel_diff"] < EXACT
    kinds = {growth.kind for growth in growth.plan.axes}
    assert kinds == ({"copy"} if width == "copy" else {"copy", "free"})


def test_the_seed_decides_the_new_weights_and_nothing_else_does() -> None:
    _, program = zoo.captured("own:flat")

    def weights(seed: int) -> dict[str, Tensor]:
        return progc.grow(program, "depth*2,width*2", seed=seed).state_dict()

    torch.manual_seed(1)
    first = weights(3)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    again, other = weights(3), weights(4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    digest = _digest(first)
    code = (
        "import torch, progc\nfrom tests import zoo\nfrom tests.growth.test_grow import _digest\n"
        "torch.set_num_threads(1)\ntorch.manual_seed(9)\n"
        "print(_digest(progc.grow(zoo.captured('own:flat')[1], 'depth*2,width*2', seed=3).state_dict()))\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == digest


def _digest(tensors: dict[str, Tensor]) -> str:
    data = b"".join(name.encode() + tensor.contiguous().numpy().tobytes() for name, tensor in sorted(tensors.items()))
    return hashlib.sha256(data).hexdigest()


def test_the_ways_to_say_how_large() -> None:
    _, program = zoo.captured("own:flat")
    texts = {
        "text": progc.grow(program, "depth=8,width=24"),
        "factors": progc.grow(program, width=2, depth=2),
        "sizes": progc.grow(program, parse_sizes("depth*2,width=24")),
        "init": progc.grow(program, "depth=8,width=24", init="width=copy,depth=identity"),
    }
    digests = {key: _digest(larger.state_dict()) for key, larger in texts.items()}
    assert len(set(digests.values())) == 1, digests
    assert program.history == () and len(texts["text"].history) == 2
    same = progc.grow(program, "depth=4,width=12")
    assert not any(record.changed for record in same.history) and same.num_parameters() == program.num_parameters()


@pytest.mark.parametrize("heads", [4, 8])
def test_heads_become_more_or_wider(heads: int) -> None:
    """With 4 heads the head dim doubles, and 1/sqrt(head dim) is made up for in a parameter."""
    module, program = zoo.captured("torchvision:vit")
    growth = grow_with_report(program, parse_sizes(f"width*2,heads={heads}"))
    assert growth.report["lossless"] is True and growth.report["max_rel_diff"] < ROUNDED
    reference = _class("torchvision.models.vision_transformer.VisionTransformer")(
        image_size=32, patch_size=8, num_layers=3, num_heads=heads, hidden_dim=128, mlp_dim=256, num_classes=10
    )
    assert_loads(reference, growth.program.state_dict(), module, *program.example, tolerance=ROUNDED)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("diffusers:dit", "pos_embed.pos_embed, which no checkpoint holds, grew from [1, 16, 32] to [1, 16, 64]"),
        pytest.param(
            "transformers:bert", "(residual width 32) stays: it is an output", marks=pytest.mark.slow
        ),  # in zoo.ALIKE
    ],
)
def test_notes_tell_what_stays_and_what_no_checkpoint_holds(name: str, note: str) -> None:
    assert any(note in found for found in grown(name, SIZES[-1]).plan.notes)


def test_a_claim_that_measurement_contradicts_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted wrong rule: weights change, and analysis still says lossless."""
    program, right = zoo.captured("own:flat")[1], Lift.apply

    def wrong(self: Lift, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        head = (made := right(self, tensors))["head_b"]
        return {**made, "head_b": defer(lambda: values(head) + 1e-4, head)}

    monkeypatch.setattr(Lift, "apply", wrong)
    with pytest.raises(CheckError, match="analysis calls this growth lossless, but the output changes by"):
        progc.grow(program, "width*2")


def test_not_a_number_is_an_error() -> None:
    module = nets.FlatMixer()
    with torch.no_grad():
        module.head_b[2] = torch.nan
    program = progc.capture(module, (zoo.image(16),))
    with pytest.raises(CheckError, match="NaN or infinite"):
        progc.grow(program, "width*2")
