"""Parts of a batch at another image size: images, maps, indices and noise, named by the task or found by looking."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import progc
from progc.data.loading import steps, validate
from progc.data.parts import resized
from progc.data.staged import check_sizes, for_stage
from progc.data.task import Task
from progc.errors import InputError
from progc.schedule import Regularisation

SIZES = [(4, 4), (8, 8), (12, 12), (16, 16)]


def made(seed: int = 0, count: int = 64, side: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth images, standard normal noise, and class indices, on one grid."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, size=(side, side), mode="bicubic")
    noise = torch.randn(count, 1, side, side, generator=generator)
    return smooth, noise, torch.randint(5, (count, side, side), generator=generator)


def words(*items: Tensor, **more: Any) -> tuple[str, ...]:
    """What the parts of samples are."""
    return Task(TensorDataset(*items), **more).kinds


# --- resizing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES[:3])
def test_noise_keeps_its_distribution_and_other_resizing_does_not(size: tuple[int, int]) -> None:
    smooth, noise, _ = made()
    image, left = resized([smooth, noise], ["image", "noise"], size)
    assert image.shape == left.shape == (64, 1, *size)
    places = resized([smooth, torch.arange(smooth.numel()).reshape(smooth.shape)], ["image", "noise"], size)[1]
    assert places.unique().numel() == left.numel() and torch.equal(noise.flatten()[places], left)
    assert abs(float(left.std()) - 1) < 5 / math.sqrt(2 * left.numel())
    for word in ("image", "area"):
        assert float(resized([smooth, noise], ["image", word], size)[1].std()) < 0.8


def test_an_image_with_noise_in_it_stays_the_image_and_the_noise() -> None:
    smooth, noise, _ = made()
    step = torch.rand(64, 1, 1, 1)
    mixed, apart, own = resized([step * smooth + (1 - step) * noise, noise, smooth], ["nearest"] * 3, (12, 12))
    assert torch.equal(mixed, step * own + (1 - step) * apart)


def test_indices_stay_indices_and_maps_are_averaged() -> None:
    smooth, _, labels = made()
    image, classes, depth, coarse, flag = resized(
        (smooth, labels, smooth[:, 0], smooth[..., ::4, ::4], labels > 2),
        ["image", "nearest", "area", "area", "nearest"], (8, 8),
    )  # fmt: skip
    assert torch.equal(image, F.interpolate(smooth, (8, 8), mode="bilinear", align_corners=False, antialias=True))
    nearest = F.interpolate(labels[:, None].double(), (8, 8), mode="nearest-exact")[:, 0]
    assert classes.dtype == torch.int64 and torch.equal(classes, nearest.long())
    assert flag.dtype == torch.bool and torch.equal(flag, classes > 2)
    torch.testing.assert_close(depth, smooth[:, 0].reshape(64, 8, 2, 8, 2).mean((2, 4)))
    assert coarse.shape == (64, 1, 2, 2)  # a quarter of the image, as before


def test_what_cannot_follow_is_told() -> None:
    smooth, noise, _ = made()
    with pytest.raises(
        InputError, match=r"item 1 of a batch, \[64, 1, 4, 4\], cannot follow an image from 16x16 to 6x6"
    ):
        resized([smooth, smooth[..., ::4, ::4]], ["image", "area"], (6, 6))
    with pytest.raises(InputError, match="item 1 of a batch is noise of 16x16, and 24x24 are needed; make samples at"):
        resized([smooth, noise], ["image", "noise"], (24, 24))


# --- looking ----------------------------------------------------------------------------------------------------------


def test_parts_are_found_by_types_shapes_and_values() -> None:
    smooth, noise, labels = made()
    other = made(1)[0]
    assert words(smooth, labels[:, 0, 0]) == ("image", "fixed")
    assert words(smooth, labels) == words(smooth, labels[:, None]) == words(smooth, labels > 2) == ("image", "nearest")
    assert words(smooth, other) == words(smooth, other[:, 0]) == ("image", "area")
    assert words(smooth, other[..., ::2, ::2].repeat(1, 3, 1, 1)) == ("image", "area")
    assert words(smooth, torch.randn(64, 7, 12)) == ("image", "fixed")
    assert words(smooth, noise) == ("image", "noise")
    assert words(smooth, torch.zeros(64, 1, 16, 16)) == ("image", "area")


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_an_image_that_noise_is_part_of_is_found(scale: float) -> None:
    smooth, noise, _ = made()
    assert words(smooth + scale * noise, noise) == ("nearest", "noise")
    assert words(smooth + scale * noise, smooth) == ("nearest", "nearest")  # the target is the clean image
    assert words(torch.rand(64, 1, 16, 16) + noise, noise) == ("nearest", "noise")


def test_what_lies_between_a_map_and_noise_is_asked_for_when_it_is_resized() -> None:
    smooth, noise, _ = made()
    task = Task(TensorDataset(smooth, noise - 0.8 * smooth))
    batch = [smooth[:2], noise[:2]]
    assert task.at_size(batch, (16, 16)) is batch
    message = (
        r"^item 1 of a batch, \[N, 1, 16, 16\] of float32, may be a map or noise .* parts = \(\"image\", \"noise\"\)"
    )
    with pytest.raises(InputError, match=message) as error:
        task.at_size(batch, (8, 8))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=message):
        check_sizes(task, [(8, 8), None])
    named = Task(task.samples, parts=("image", "nearest"))
    check_sizes(named, [(8, 8), None])
    assert torch.equal(named.at_size(batch, (8, 8))[1], resized(batch, ["image", "noise"], (8, 8))[1])
    with pytest.raises(InputError, match="has neither the size of the image, 16x16, nor a part of it"):
        Task(TensorDataset(smooth, smooth[..., :5])).at_size([smooth, smooth[..., :5]], (8, 8))


def test_what_was_found_is_told() -> None:
    smooth, noise, labels = made()
    told = check_sizes(Task(TensorDataset(smooth + noise, noise)), [(8, 8)])
    assert told == (
        "at other image sizes a batch has item 0 as nearest, item 1 as noise (found from the samples; `parts` in the "
        "file says it otherwise)",
    )
    assert check_sizes(Task(TensorDataset(smooth, labels[:, 0, 0])), [(8, 8)]) == ()
    assert check_sizes(Task(TensorDataset(smooth, noise), parts=("image", "noise")), [(8, 8)]) == ()
    assert check_sizes(Task(TensorDataset(smooth, noise)), [None, (16, 16)]) == ()


def test_names_of_the_task_win_and_are_checked() -> None:
    smooth, noise, _ = made()
    rows = [{"picture": smooth[k], "target": noise[k], "class": 3} for k in range(8)]
    assert Task(rows).kinds == ("image", "noise", "fixed")
    assert Task(rows, parts={"target": "area"}).kinds == ("image", "area", "fixed")
    assert Task(rows, parts={"picture": "fixed", "target": "image"}).kinds == ("fixed", "image", "fixed")
    for parts, message in (
        (("image",), "expected a word for each part of a batch, which has the keys picture, target, class"),
        ({"pictur": "image"}, "a batch has no `pictur`; did you mean picture?"),
    ):
        with pytest.raises(InputError, match=message):
            _ = Task(rows, parts=parts).kinds
    with pytest.raises(InputError, match="parts: unknown part `nose`; did you mean noise?"):
        Task(rows, parts={"target": "nose"})
    with pytest.raises(InputError, match="expected a word for each item of a batch"):
        Task(rows, parts="noise")
    with pytest.raises(InputError, match="which has 2 items; got"):
        _ = Task(TensorDataset(smooth, noise), parts=("image", "noise", "fixed")).kinds


def test_looking_draws_no_random_numbers() -> None:
    smooth, noise, _ = made()
    task = Task(TensorDataset(smooth, noise), inputs=lambda batch: ((batch[0] + torch.randn_like(batch[0]),), {}))
    state = torch.get_rng_state()
    assert task.kinds == ("image", "noise")
    assert torch.equal(torch.get_rng_state(), state)


# --- the task of a stage ----------------------------------------------------------------------------------------------


def denoiser(side: int) -> progc.Program:
    return progc.capture(nn.Conv2d(1, 1, 3, padding=1), (torch.zeros(2, 1, side, side),))


def squares(outputs: Tensor, batch: Any) -> Tensor:
    assert outputs.shape == batch[1].shape, (outputs.shape, batch[1].shape)
    return (outputs - batch[1]).square().mean()


def test_network_and_loss_get_the_same_batch() -> None:
    smooth, noise, _ = made()
    samples = TensorDataset(smooth + noise, noise)
    program = denoiser(8)
    task = for_stage(Task(samples, squares, validation=samples), Regularisation(), program)
    module = program.module()
    (batch,) = next(steps(task, batch=16, seed=0, epoch=0))
    assert batch[0].shape == batch[1].shape == (16, 1, 8, 8)
    assert task.loss(task.run(module, batch), batch) > 0
    drawn = next(task.batches(16, seed=0))
    assert all(torch.equal(a, b) for a, b in zip(batch, drawn, strict=True))
    with torch.no_grad():
        found = validate(lambda given: task.run(module, given), task, batch=16)
        whole = task.fit([smooth + noise, noise])
        assert found == {"loss": pytest.approx(float(squares(module(whole[0]), whole)), rel=1e-5)}
    again = for_stage(task, Regularisation(), denoiser(4))
    assert again.of is task.of and next(again.batches(4, seed=0))[1].shape == (4, 1, 4, 4)


DENOISER = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))

    def forward(self, x):
        x = self.enter(x)
        for conv in self.body:
            x = x + conv(torch.relu(x))
        return self.leave(x)

def build():
    return Net()

def example_inputs():
    return (torch.randn(2, 1, 16, 16),)

def datasets():
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.rand(64, 1, 16, 16, generator=generator), torch.randn(64, 1, 16, 16, generator=generator)
    return TensorDataset(clean + noise, noise)

seen = []

def loss(outputs, batch):
    assert outputs.shape == batch[1].shape, (outputs.shape, batch[1].shape)
    seen.append((batch[1].shape[-1], float(batch[1].std())))
    return (outputs - batch[1]).square().mean()
"""


def test_a_denoiser_trains_through_four_sizes(tmp_path: Path) -> None:
    from progc.data.taskfile import load_task
    from progc.files.python import load_file
    from progc.models.opening import open_source

    path = tmp_path / "denoiser.py"
    path.write_text(DENOISER)
    program = open_source(str(path)).program()
    schedule = progc.plan(program, resolutions=SIZES, depths="none", total=4, count=False)
    settings = progc.Settings(batch=32, compile="eager")
    trainer = progc.Trainer(schedule, program=program, task=load_task(path), run=tmp_path / "run", settings=settings)
    assert trainer.fit().finished
    seen = load_file(path).seen
    assert {side for side, _ in seen} == {4, 8, 12, 16}
    assert all(abs(spread - 1) < 5 / math.sqrt(2 * 8 * side * side) for side, spread in seen)
