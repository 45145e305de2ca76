"""Arguments of a model in the text of its source: read, written, given to constructors, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from progc.errors import InputError
from progc.models.arguments import joined, split
from progc.models.opening import open_source, open_target, with_drop_path

TINY = "timm:vit_tiny_patch16_224?img_size=8&patch_size=4&in_chans=1&embed_dim=24&depth=2&num_heads=3&num_classes=5"
NET = """
from torch import nn

class Net(nn.Linear):
    def __init__(self, width=3, bias=True):
        super().__init__(2, width, bias)

class Dropping(nn.Linear):
    def __init__(self, drop_path=0.0):
        super().__init__(2, 3)
        self.rate = drop_path

def anything(**options):
    return Net(**options)

ready = nn.Linear(2, 3)
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


@pytest.mark.parametrize(
    "args",
    [
        {"num_classes": 10, "img_size": (64, 96), "rate": 0.1, "act": "gelu", "head": None, "fast": True},
        {"number_as_text": "1", "word": "none", "odd": "a=b?c=d"},
        {"sizes": [1, 2], "table": {"a": 1}},
    ],
)
def test_what_is_written_is_read_again(args: dict[str, Any]) -> None:
    assert split(joined("timm:name", args)) == ("timm:name", args)
    half = dict(list(args.items())[:1])
    assert split(joined(joined("net.py:Net", half), {k: v for k, v in args.items() if k not in half})) == (
        "net.py:Net",
        args,
    )


def test_a_text_without_arguments_stays() -> None:
    for text in ("timm:name", "./odd?name.py:Net", "what?"):
        assert split(text) == (text, {}) and joined(text, {}) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timm:x?a=1&b", "expected arguments such as ?num_classes=10&img_size=64, got `b`"),
        ("timm:x?a=1&a=2", "gives `a` twice"),
    ],
)
def test_bad_arguments_are_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        open_source(text)
    assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="gives `a` already"):
        joined("timm:x?a=1", {"a": 2})


def test_timm_takes_its_own_arguments() -> None:
    source = open_source(TINY)
    model = source.build_skeleton(allocate=False)
    assert len(model.blocks) == 2 and model.head.out_features == 5
    assert source.example(model)[0][0].shape == (2, 1, 8, 8)
    assert open_target(TINY).text == TINY  # type: ignore[union-attr]
    convolutions = open_source("timm:resnet18?img_size=64&num_classes=7")
    model = convolutions.build_skeleton(allocate=False)
    assert model.fc.out_features == 7 and convolutions.example(model)[0][0].shape == (2, 3, 64, 64)


def test_other_libraries_take_arguments(tmp_path: Path) -> None:
    assert open_source("torchvision:resnet18?num_classes=7").build_skeleton(allocate=False).fc.out_features == 7
    preset = open_source("diffusers:dit_s?num_layers=1&sample_size=8").build_skeleton(allocate=False)
    assert len(preset.transformer_blocks) == 1 and preset.config.sample_size == 8
    config = {"model_type": "bert", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 3,
              "num_attention_heads": 2, "intermediate_size": 16}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = open_source(f"transformers:{tmp_path}?num_hidden_layers=1").build_skeleton(allocate=False)
    assert len(model.encoder.layer) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timm:resnet18?nose=3", "timm cannot build `resnet18` with nose=3: .*unexpected keyword argument 'nose'"),
        ("timm:resnet18?pretrained=true", "progc downloads nothing .* not `pretrained`"),
        ("torchvision:resnet18?weights=DEFAULT", "progc downloads nothing; give --weights FILE, not `weights`"),
        ("torchvision:resnet18?nose=3", "torchvision cannot build `resnet18` with nose=3"),
        ("diffusers:dit_s?num_layer=3", "diffusers:dit_s takes no argument `num_layer`; did you mean num_layers"),
    ],
)
def test_arguments_that_a_library_does_not_take(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        open_source(text).build_skeleton(allocate=False)
    assert "\n" not in str(error.value)


def test_a_users_class_takes_arguments(net: Path) -> None:
    assert open_source(f"{net}:Net?width=5&bias=false").build().weight.shape == (5, 2)
    assert open_source(f"{net}:anything?width=4").build().weight.shape == (4, 2)
    with pytest.raises(InputError, match="`Net` takes no argument `widht`; did you mean width"):
        open_source(f"{net}:Net?widht=5").build()
    with pytest.raises(InputError, match="`ready` is an instance and takes no arguments, got width"):
        open_source(f"{net}:ready?width=5").build()


def test_a_rate_of_drop_path_is_an_argument_where_there_is_one(net: Path) -> None:
    source, reason = with_drop_path(open_source(TINY), 0.1)
    assert source.text == f"{TINY}&drop_path_rate=0.1" and reason is None
    assert isinstance(source.build_skeleton(allocate=False).blocks[1].drop_path1, nn.Module)
    source, reason = with_drop_path(open_source(f"{net}:Dropping"), 0.2)
    assert source.build().rate == 0.2 and reason is None
    given = open_source(f"{TINY}&drop_path_rate=0.0")
    assert with_drop_path(given, 0.1) == (given, None)
    assert with_drop_path(open_source(f"{net}:Net"), None)[1] is None
    plain = open_source(f"{net}:Net")
    source, reason = with_drop_path(plain, 0.1)
    assert source is plain and reason is not None and "`Net` takes no argument `drop_path_rate`" in reason
