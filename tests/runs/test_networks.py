"""Model, target and samples by name: opened the same way for planning and for training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from progc.errors import InputError
from progc.ir.deferred import is_deferred
from progc.runs.networks import ModelAndData
from tests.command import NET

DATA = """
def datasets():
    x = torch.zeros(8, 5)
    return x, x[:, 0].long()
"""


class Log:
    """Phases and notes of an opening."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.notes: list[str] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.phases.append(name)
        yield


def test_source_target_and_samples_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET + DATA)
    opened, log = ModelAndData.open(f"{tmp_path / 'net.py'}:Net", to="depth=4", seed=3), Log()
    opened.check_data("training")
    start = opened.captured(real=True, phase=log.phase, note=log.notes.append)
    full = opened.grown(start, real=False, phase=log.phase, note=log.notes.append)
    assert log.phases == ["build", "capture", "target", "grow"]
    assert log.notes == [f"weights of {opened.source.text}: initialised by Net, seed 3 (no weights were given)"]
    assert full.num_parameters() > start.num_parameters()
    assert not any(tensor.is_meta for _, tensor in start.parameters())
    assert all(tensor.is_meta or is_deferred(tensor) for _, tensor in full.parameters())
    assert len(opened.task(full).samples) == 8


def test_without_a_target_the_source_is_the_full_network(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    opened, log = ModelAndData.open(f"{tmp_path / 'net.py'}:Net"), Log()
    start = opened.captured(real=False, phase=log.phase, note=log.notes.append)
    assert opened.grown(start, real=False, phase=log.phase, note=log.notes.append) is start
    assert all(tensor.is_meta for _, tensor in start.parameters()) and log.notes == []


def test_images_are_made_as_the_source_says(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "net.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten())\n"
        "def example_inputs():\n    return (torch.zeros(2, 3, 8, 8),)\n"
        "data_config = {'mean': (1.0, 0.5, 0.0), 'std': (0.5, 1.0, 2.0)}\n"
    )
    (tmp_path / "data" / "train" / "one").mkdir(parents=True)
    (tmp_path / "data" / "val" / "one").mkdir(parents=True)
    for part in ("train", "val"):
        Image.new("RGB", (9, 9), (255, 0, 255)).save(tmp_path / "data" / part / "one" / "0.png")
    opened, log = ModelAndData.open(str(tmp_path / "net.py"), data=f"imagefolder:{tmp_path / 'data'}"), Log()
    task = opened.task(opened.captured(real=False, phase=log.phase, note=log.notes.append))
    for samples in (task.samples, task.validation):
        assert [round(float(channel.mean()), 5) for channel in samples[0][0]] == [0.0, -0.5, 0.5]


def test_samples_are_looked_for_before_anything_is_built(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    for source, own in (
        (f"{tmp_path / 'net.py'}:Net", "write def datasets()"),
        ("torchvision:resnet18", "give --data"),
    ):
        with pytest.raises(InputError, match="training it needs samples and a loss; ") as error:
            ModelAndData.open(source).check_data("training it")
        assert own in str(error.value) and "digits, imagefolder:PATH, hf:PATH or FILE.py" in str(error.value)
        ModelAndData.open(source, data="digits").check_data("training it")
    with pytest.raises(InputError, match="unknown target `enormous`"):
        ModelAndData.open("torchvision:resnet18", to="enormous")
