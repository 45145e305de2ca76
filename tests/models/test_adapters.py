"""Adapters of model libraries: what is built from a name or a config, with which example inputs, without a hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from progc.errors import InputError
from progc.models.opening import open_source


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:resnet18.a1_in1k", "torchvision:resnet18"])
def test_library_models_come_with_images(name: str) -> None:
    source = open_source(name)
    (image,), kwargs = source.example(source.build_skeleton())
    assert image.shape == (2, 3, 224, 224) and image.dtype == torch.float32 and kwargs == {}


def _folder(tmp_path: Path, **config: object) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_transformers_from_a_config(tmp_path: Path) -> None:
    folder = _folder(
        tmp_path, model_type="gpt2", architectures=["GPT2LMHeadModel"], vocab_size=50, n_embd=32, n_layer=2, n_head=4,
        n_positions=12, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    for text in (f"transformers:{folder}", f"transformers:{folder}/config.json"):
        source = open_source(text)
        model = source.build()
        assert type(model).__name__ == "GPT2LMHeadModel" and model.config.use_cache is False
        args, kwargs = source.example(model)
        assert args == () and kwargs["input_ids"].shape == (2, 12) and int(kwargs["input_ids"].max()) < 50
        assert source.trained is None


def test_a_checkpoint_folder_brings_its_weights(tmp_path: Path) -> None:
    folder = _folder(
        tmp_path, model_type="bert", architectures=["BertModel"], vocab_size=20, hidden_size=8, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    model = open_source(f"transformers:{folder}").build(seed=5)
    model.save_pretrained(folder)
    source = open_source(f"transformers:{folder}")
    assert source.trained == str(folder)
    loaded = source.build(seed=6).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_diffusers_from_a_config_and_a_preset(tmp_path: Path) -> None:
    folder = _folder(
        tmp_path, _class_name="DiTTransformer2DModel", num_attention_heads=2, attention_head_dim=8, out_channels=8,
        num_layers=1, sample_size=8, num_embeds_ada_norm=9,
    )  # fmt: skip
    source = open_source(f"diffusers:{folder}")
    args, kwargs = source.example(source.build())
    assert args == () and list(kwargs) == ["hidden_states", "timestep", "class_labels"]
    assert kwargs["hidden_states"].shape == (2, 4, 8, 8) and int(kwargs["class_labels"].max()) < 9
    assert type(open_source(f"diffusers:{folder}/config.json").build()) is type(source.build())
    assert sum(value.numel() for value in open_source("diffusers:dit_s").build_skeleton().parameters()) > 30_000_000


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "brt"}, "model_type `brt` is unknown"),
        ({"model_type": "bert", "hidden_size": "wide"}, "is not valid"),
        ([], "expected a JSON object"),
    ],
)
def test_bad_transformers_configs_are_one_line(tmp_path: Path, config: object, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message) as caught:
        open_source(f"transformers:{tmp_path}").build()
    assert "\n" not in str(caught.value)


def test_bad_diffusers_configs_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a model of diffusers"):
        open_source(f"diffusers:{_folder(tmp_path, _class_name='os')}")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        open_source(f"diffusers:{tmp_path}")


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (
            {
                "_class_name": "UNet2DConditionModel", "sample_size": 8, "block_out_channels": [8, 16],
                "layers_per_block": 1, "cross_attention_dim": 12, "norm_num_groups": 4, "attention_head_dim": 4,
                "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
                "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            },
            ["sample", "timestep", "encoder_hidden_states"],
        ),
        (
            {
                "_class_name": "UNet2DModel", "sample_size": 8, "block_out_channels": [8], "norm_num_groups": 4,
                "layers_per_block": 1, "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"],
            },
            ["sample", "timestep"],
        ),
        (
            {
                "_class_name": "PixArtTransformer2DModel", "sample_size": 8, "num_layers": 1, "attention_head_dim": 4,
                "num_attention_heads": 2, "cross_attention_dim": 8, "caption_channels": 6,
            },
            ["hidden_states", "timestep", "encoder_hidden_states", "added_cond_kwargs"],
        ),
        ({"_class_name": "AutoencoderKL", "block_out_channels": [32], "sample_size": 8}, ["sample"]),
    ],
)  # fmt: skip
def test_derived_inputs_run_the_model(tmp_path: Path, config: dict[str, Any], names: list[str]) -> None:
    source = open_source(f"diffusers:{_folder(tmp_path, **config)}")
    model = source.build().eval()
    args, kwargs = source.example(model)
    assert args == () and list(kwargs) == names
    with torch.no_grad():
        assert torch.isfinite(model(**kwargs)[0]).all()


def test_a_checkpoint_folder_of_a_pipeline_leads_to_its_denoiser(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    _folder(
        tmp_path / "transformer", _class_name="DiTTransformer2DModel", num_attention_heads=1, attention_head_dim=8,
        num_layers=1, sample_size=8, num_embeds_ada_norm=9,
    )  # fmt: skip
    assert type(open_source(f"diffusers:{tmp_path}").build()).__name__ == "DiTTransformer2DModel"


def test_inputs_that_cannot_be_known_are_asked_for(tmp_path: Path) -> None:
    source = open_source(
        f"transformers:{_folder(tmp_path, model_type='wav2vec2', hidden_size=16, num_hidden_layers=1)}"
    )
    with pytest.raises(InputError, match="write a file with build\\(\\) and example_inputs\\(\\)"):
        source.example(torch.nn.Identity())


def test_vision_models_of_transformers_take_images(tmp_path: Path) -> None:
    folder = _folder(
        tmp_path, model_type="vit", hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=32,
    )  # fmt: skip
    source = open_source(f"transformers:{folder}")
    assert source.example(source.build_skeleton())[1]["pixel_values"].shape == (2, 3, 32, 32)


def test_the_latent_diffusion_preset_has_the_published_size() -> None:
    source = open_source("diffusers:sd_unet")
    model = source.build_skeleton(allocate=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == 859_520_964
    args, inputs = source.example(model)
    assert args == () and inputs["sample"].shape == (2, 4, 64, 64) and inputs["encoder_hidden_states"].shape[2] == 768
