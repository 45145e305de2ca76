"""Sources and targets: what is built, with which inputs, and that nothing leaks out of a user's file."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from progc.errors import InputError
from progc.ir.program import Program
from progc.models.opening import open_source, open_target, resolve_target
from progc.models.sizes import Sizes
from progc.models.skeleton import build_skeleton

Write = Callable[..., Path]

LAYERS = "from torch import nn\nclass Layer(nn.Linear):\n    label = {label!r}\n"
USER = """
    import torch
    from layers import Layer

    def build():
        from layers import Layer as again
        assert again is Layer
        return Layer(3, 4)

    def wide():
        return Layer(3, 8)

    def example_inputs():
        return {"input": torch.randn(2, 3)}
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(text: str, name: str = "net.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return make


def test_build_comes_before_model_before_the_only_class(write: Write) -> None:
    text = "from torch import nn\nclass Net(nn.Linear):\n    def __init__(self):\n        super().__init__(3, 4)\n"
    path = write(text)
    assert type(open_source(str(path)).build()).__name__ == "Net"
    path = write(text + "model = nn.Linear(3, 5)\n", "model.py")
    model = open_source(str(path)).build()
    assert isinstance(model, nn.Linear) and model.out_features == 5
    path = write(text + "model = nn.Linear(3, 5)\ndef build():\n    return nn.Linear(3, 6)\n", "build.py")
    assert open_source(str(path)).build().out_features == 6
    assert type(open_source(f"{path}:Net").build()).__name__ == "Net"
    assert open_source(f"{path}:model").build().out_features == 5


def test_imported_classes_and_those_with_required_arguments_are_no_candidates(write: Write) -> None:
    path = write(
        """
        from torch import nn
        from torch.nn import Identity

        class Block(nn.Module):
            def __init__(self, dim):
                super().__init__()

        class Net(nn.Module):
            pass
        """
    )
    assert type(open_source(str(path)).build()).__name__ == "Net"


def test_neighbours_of_a_file_are_importable_and_nothing_leaks(write: Write, tmp_path: Path) -> None:
    path, modules = list(sys.path), set(sys.modules)
    write(LAYERS.format(label="one"), "one/layers.py")
    write(LAYERS.format(label="two"), "two/layers.py")
    one = open_source(str(write(USER, "one/net.py")))
    two = open_source(str(write(USER, "two/net.py")))
    assert [one.build().label, two.build().label, one.build().label] == ["one", "two", "one"]
    assert one.example(one.build())[1]["input"].shape == (2, 3)
    assert sys.path == path
    assert not [name for name in set(sys.modules) - modules if name in ("net", "__main__")]
    assert not list(tmp_path.rglob("__pycache__"))
    sys.modules.pop("layers", None)


def test_a_file_in_the_current_folder_shadows_nothing(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("raise RuntimeError('imported by accident')\n", "work/layers.py")
    monkeypatch.chdir(tmp_path / "work")
    write(LAYERS.format(label="own"), "own/layers.py")
    assert open_source(str(write(USER, "own/net.py"))).build().label == "own"
    sys.modules.pop("layers", None)


def test_seed_decides_initial_weights_and_leaves_the_random_state_alone(write: Write) -> None:
    source = open_source(str(write("from torch import nn\ndef build():\n    return nn.Linear(3, 4)\n")))
    state = torch.get_rng_state()
    first, again, other = (source.build(seed).weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_example_inputs_as_tuple_and_dict(write: Write) -> None:
    text = "import torch\ndef build():\n    return torch.nn.Linear(3, 4)\ndef example_inputs():\n    return {value}\n"
    for name, value in {"tuple": "(torch.zeros(2, 3),)", "dict": "{'input': torch.zeros(2, 3)}"}.items():
        source = open_source(str(write(text.format(value=value), f"{name}.py")))
        args, kwargs = source.example(source.build())
        assert (len(args), list(kwargs)) == ((1, []) if name == "tuple" else (0, ["input"]))


def test_example_inputs_of_a_library_model_in_a_users_file_are_derived(write: Write) -> None:
    source = open_source(
        str(write("import timm\ndef build():\n    return timm.create_model('vit_tiny_patch16_224', img_size=32)\n"))
    )
    args, kwargs = source.example(source.build())
    assert args[0].shape == (2, 3, 32, 32) and kwargs == {}


def test_targets_are_presets_sizes_or_programs(write: Write) -> None:
    assert isinstance(open_target("vit_b"), Sizes)
    assert isinstance(open_target("depth*2,layer2=4"), Sizes)
    path = write(textwrap.dedent(USER).replace("from layers", "from torch.nn").replace("Layer", "Linear"))
    wide = resolve_target(f"{path}:wide")
    assert isinstance(wide, Program) and wide.tensors["weight"].shape == (8, 3)


def test_a_target_without_example_inputs_is_called_like_the_source(write: Write) -> None:
    source = write(textwrap.dedent(USER).replace("from layers", "from torch.nn").replace("Layer", "Linear"))
    program = resolve_target(f"{source}:build")
    target = write("from torch import nn\ndef build():\n    return nn.Linear(3, 8)\n", "target.py")
    with pytest.raises(InputError, match="example inputs are missing"):
        resolve_target(str(target))
    assert isinstance(program, Program)
    wide = resolve_target(str(target), source=program)
    assert isinstance(wide, Program) and wide.example is not None


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("table", torch.arange(4.0))
        self.scale = nn.Parameter(torch.tensor(float(self.table.sum())), requires_grad=False)


def test_a_skeleton_has_real_buffers_tied_weights_and_no_meta_tensors() -> None:
    drawn: list[torch.Tensor] = []
    model = build_skeleton(Tied)
    drawn.extend([*model.parameters(), *model.buffers()])
    assert not any(tensor.is_meta for tensor in drawn)
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.table, torch.arange(4.0))
    assert not model.scale.requires_grad and model.embed.weight.requires_grad
    assert nn.Linear(2, 2).weight.device.type == "cpu"  # the patch is gone


class NeedsValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.half = float(self.first.weight[0, 0]) / 2


def test_a_constructor_that_reads_its_weights_is_built_as_usual() -> None:
    model = build_skeleton(NeedsValues)
    assert model.half == float(model.first.weight[0, 0]) / 2
