"""Samples and loss by name: `digits`, `imagefolder:PATH`, `hf:PATH`, or a Python file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from progc.errors import InputError, TargetError
from progc.program import Program
from progc.schedule.stage import Regularisation
from progc.suggestions import did_you_mean
from progc.task import Task

KINDS = ("digits", "imagefolder", "hf")
_EXPECTED = "expected digits, imagefolder:PATH, hf:PATH, or a Python file with datasets()"


def open_data(text: str, program: Program) -> Task:
    """The task that a text names.

    Args:
        program: the full network, whose image size and channels samples are made for.

    Raises:
        InputError: an unknown name, a folder without samples, a missing library.
    """
    if text.endswith(".py"):
        from progc.taskfile import load_task

        return load_task(Path(text))
    kind, colon, place = text.partition(":")
    if kind not in KINDS or (kind != "digits") != bool(colon and place):
        raise InputError(f"--data {text}{did_you_mean(kind, KINDS) or f': {_EXPECTED}'}")
    if kind == "digits":
        return _digits(program)
    return _images(*(_folders(Path(place)) if kind == "imagefolder" else _stored(Path(place))), _size(text, program))


@dataclasses.dataclass(frozen=True)
class Transformed:
    """Pairs (image, class index) of which each image is transformed when it is asked for."""

    samples: Any
    transform: Callable[[Any], torch.Tensor]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        try:
            image, label = self.samples[index]
        except OSError as error:  # what the image library raises for a file that is none
            places = getattr(self.samples, "samples", None)
            where = f"sample {index}" if places is None else str(places[index][0])
            raise InputError(
                f"{where} cannot be read as an image: {' '.join(str(error).split())}; remove it"
            ) from error
        return self.transform(image), int(label)


@dataclasses.dataclass(frozen=True)
class _Staged:
    """Makes the task of a stage: its image size, and its strength of augmentation."""

    task: Task
    train: Any
    validation: Any

    def __call__(self, regularisation: Regularisation, size: tuple[int, int]) -> Task:
        from progc.models.augmentation import transforms

        learning, judging = transforms(size, regularisation)
        held_out = None if self.validation is None else Transformed(self.validation, judging)
        return dataclasses.replace(self.task, samples=Transformed(self.train, learning), validation=held_out)


def _images(train: Any, validation: Any, size: tuple[int, int]) -> Task:
    empty = Task(train, validation=validation)
    staged = _Staged(empty, train, validation)
    made = staged(Regularisation(), size)
    return dataclasses.replace(made, staged=staged)


def _digits(program: Program) -> Task:
    """scikit-learn's 1,797 handwritten digits, every fifth held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("--data digits needs scikit-learn; pip install 'progc[demo]'") from error
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
    channels = _channels(program)
    x = x.expand(-1, channels, -1, -1)
    y = torch.from_numpy(labels).long()
    held_out = torch.arange(len(y)) % 5 == 0
    size = _size("digits", program)
    x = (
        torch.nn.functional.interpolate(x, size=list(size), mode="bilinear", align_corners=False)
        if size != (8, 8)
        else x
    )
    train, test = ((x[part], y[part]) for part in (~held_out, held_out))
    return Task(torch.utils.data.TensorDataset(*train), validation=torch.utils.data.TensorDataset(*test))


def _folders(root: Path) -> tuple[Any, Any]:
    """Training and validation samples of folders of classes: `train/` and `val/` below `root`, else `root` itself."""
    from torchvision.datasets import ImageFolder

    names = {name: root / name for name in ("train", "val", "validation", "test") if (root / name).is_dir()}
    places = [names.pop("train", root), next(iter(names.values()), None)]
    found: list[Any] = []
    for place in places:
        try:
            found.append(None if place is None else ImageFolder(str(place)))
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise InputError(
                f"--data imagefolder:{root}: {reason}; expected train/CLASS/*.png and val/CLASS/*.png below it"
            ) from error
    if found[1] is not None and found[0].classes != found[1].classes:
        raise InputError(f"--data imagefolder:{root}: training and validation have other classes; mend the folders")
    return found[0], found[1]


class _Pairs:
    """Rows of a stored data set as pairs."""

    def __init__(self, rows: Any, image: str, label: str) -> None:
        self.rows, self.image, self.label = rows, image, label

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row = self.rows[index]
        return row[self.image].convert("RGB"), int(row[self.label])


def _stored(root: Path) -> tuple[Any, Any]:
    """Splits of a data set that `datasets.Dataset.save_to_disk` wrote."""
    try:
        import datasets  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError(f"--data hf:{root} needs the library datasets; pip install 'progc[hf]'") from error
    try:
        found = datasets.load_from_disk(str(root))
    except (OSError, ValueError) as error:
        raise InputError(f"--data hf:{root}: {' '.join(str(error).split())}; expected a saved data set") from error
    splits = found if isinstance(found, dict) else {"train": found}
    if "train" not in splits:
        raise InputError(f"--data hf:{root} has the splits {', '.join(splits)}; expected one that is called train")
    columns = splits["train"].column_names
    image = next((name for name in ("image", "img", "pixel_values") if name in columns), None)
    label = next((name for name in ("label", "labels", "fine_label") if name in columns), None)
    if image is None or label is None:
        raise InputError(f"--data hf:{root} has the columns {', '.join(columns)}; expected image and label")
    held_out = next((splits[name] for name in ("validation", "val", "test") if name in splits), None)
    return _Pairs(splits["train"], image, label), None if held_out is None else _Pairs(held_out, image, label)


def _size(text: str, program: Program) -> tuple[int, int]:
    from progc.resolution.images import find_images

    try:
        return find_images(program)[0].size
    except TargetError as error:
        raise InputError(f"--data {text} gives images, and this network takes none: {error}") from error


def _channels(program: Program) -> int:
    leaf = next(leaf for leaf in program.flat_example() if isinstance(leaf, torch.Tensor) and leaf.dim() == 4)
    return int(leaf.shape[1])
