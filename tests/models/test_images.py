"""How a model wants its images: as its library, its folder or its file says, and as it is done to samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from progc.errors import InputError
from progc.models.images import ImageConfig
from progc.models.opening import open_source
from progc.models.timm import transforms

HALF = (0.5, 0.5, 0.5)


def picture() -> Any:
    """A photo-like image of 40 x 48 pixels."""
    from PIL import Image

    values = np.random.default_rng(0).integers(0, 255, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((48, 40), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("timm:deit_tiny_patch16_224", ImageConfig(interpolation="bicubic", crop_pct=0.9)),
        ("timm:volo_d1_224", ImageConfig(interpolation="bicubic", crop_pct=0.96)),
        ("timm:vit_base_patch16_224", ImageConfig(HALF, HALF, "bicubic", 0.9)),
        ("torchvision:resnet50", ImageConfig(crop_pct=224 / 232)),
        ("diffusers:dit_s", None),
    ],
)
def test_a_librarys_own_config(text: str, expected: ImageConfig | None) -> None:
    assert open_source(text).images() == expected


def test_validation_is_that_of_the_library() -> None:
    import timm
    from timm.data import create_transform, resolve_data_config

    for name in ("vit_base_patch16_224", "volo_d1_224"):
        config = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        wanted = create_transform(**{**config, "input_size": (3, 16, 16)})(picture())
        sizes: dict[str, Any] = {"rand_augment": None, "random_erasing": None}
        found = transforms((16, 16), **sizes, config=open_source(f"timm:{name}").images())[1](picture())
        assert torch.equal(found, wanted)
        assert not torch.equal(found, transforms((16, 16), **sizes)[1](picture()))


def test_training_is_as_published() -> None:
    """Erased areas hold noise, colours are not changed, and the interpolation is drawn."""
    torch.manual_seed(0)
    erasing = transforms((16, 16), rand_augment=0, random_erasing=1.0)[0]
    kinds = {type(step).__name__: step for step in erasing.transforms}
    assert kinds.keys().isdisjoint({"ColorJitter", "RandAugment"})
    assert kinds["RandomErasing"].rand_color is False and kinds["RandomErasing"].per_pixel is True
    assert len(kinds["RandomResizedCropAndInterpolation"].interpolation) == 2
    plain = {type(step).__name__ for step in transforms((16, 16), rand_augment=None, random_erasing=None)[0].transforms}
    assert plain.isdisjoint({"ColorJitter", "RandomErasing"})


def test_a_folder_of_transformers(tmp_path: Path) -> None:
    config = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = open_source(f"transformers:{tmp_path}")
    assert source.images() is None
    place = tmp_path / "preprocessor_config.json"
    for values, expected in (
        (
            {"image_mean": HALF, "image_std": HALF, "resample": 3, "size": {"height": 32, "width": 32}},
            ImageConfig(HALF, HALF, "bicubic", 1.0, "squash"),
        ),
        (
            {"do_normalize": False, "do_center_crop": True, "crop_size": {"height": 28, "width": 28},
             "size": {"shortest_edge": 32}, "resample": 2},
            ImageConfig((0.0,) * 3, (1.0,) * 3, "bilinear", 0.875),
        ),
        (
            {"resample": 3, "crop_pct": 0.9, "image_mean": HALF, "image_std": HALF},
            ImageConfig(HALF, HALF, "bicubic", 0.9),
        ),
        ({"feature_size": 80}, None),
    ):  # fmt: skip
        place.write_text(json.dumps(values))
        assert source.images() == expected
        assert open_source(f"transformers:{tmp_path}/config.json").images() == expected


def test_a_file_says_it_like_timm(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    for text, message in (
        ("", None),
        ("data_config = {'mean': [0.5] * 3, 'std': [0.5] * 3, 'crop_pct': 1.0, 'input_size': (3, 8, 8)}", None),
        ("data_config = 3", "data_config is an int; expected a dict such as"),
        ("data_config = {'means': 3}", "unknown key `means`; did you mean mean"),
        ("data_config = {'interpolation': 'cubic'}", "interpolation: expected nearest, .* got 'cubic'"),
        ("data_config = {'crop_pct': 1.5}", "crop_pct: expected a number above 0 and at most 1, got 1.5"),
        ("data_config = {'crop_mode': 'left'}", "crop_mode: expected center, squash or border, got 'left'"),
    ):
        path.write_text(text + "\n")
        source = open_source(str(path))
        if message is None:
            assert source.images() == (ImageConfig(HALF, HALF, crop_pct=1.0) if text else None)
        else:
            with pytest.raises(InputError, match=message):
                source.images()
