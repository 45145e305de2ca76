"""Opens samples and loss by name: `digits`, `imagefolder:PATH`, `hf:PATH`, or a Python file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from progc.data.regularisation import Regularisation
from progc.data.staged import classes_of
from progc.data.task import Task
from progc.errors import InputError, TargetError, did_you_mean, one_line
from progc.ir.program import Program
from progc.models.images import ImageConfig

KINDS = ("digits", "imagefolder", "hf")
_EXPECTED = "expected digits, imagefolder:PATH, hf:PATH, or a Python file with datasets()"


def open_data(text: str, program: Program, images: ImageConfig | None = None) -> Task:
    """Returns the task that a text names.

    Args:
        text: `digits`, `imagefolder:PATH`, `hf:PATH`, or the path of a Python file.
        program: the full network; samples get its image size and channels.
        images: how the model wants the images of `imagefolder:` and `hf:`; None takes the defaults.

    Raises:
        InputError: an unknown name, a folder without samples, more classes than the network has, or a missing library.
    """
    if text.endswith(".py"):
        from progc.data.taskfile import load_task

        return load_task(Path(text))
    kind, colon, place = text.partition(":")
    if kind not in KINDS or (kind != "digits") != bool(colon and place):
        raise InputError(f"--data {text}{did_you_mean(kind, KINDS) or f': {_EXPECTED}'}")
    if kind == "digits":
        _check_classes(text, 10, program)
        return _digits(program)
    train, validation = _folders(Path(place)) if kind == "imagefolder" else _stored(Path(place))
    _check_classes(text, len(getattr(train, "classes", ())), program)
    return _images(train, validation, _size(text, program), images or ImageConfig())


def _check_classes(text: str, number: int, program: Program) -> None:
    """Raises an error if samples have more classes than the network; on a GPU the loss could not name the label.

    Args:
        text: name of the samples.
        number: number of their classes; 0 if it is not known.
        program: the full network.
    """
    try:
        there = classes_of(program)
    except InputError:  # not a classifier; what its loss needs is not known here
        return
    if number > there:
        raise InputError(
            f"--data {text} has {number} classes, but the network has {there}; build it with at least {number}, such "
            f"as by --model-arg num_classes={number}"
        )


@dataclasses.dataclass(frozen=True)
class Transformed:
    """Pairs (image, class index) whose images are transformed when they are read."""

    samples: Any
    transform: Callable[[Any], torch.Tensor]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        try:
            image, label = self.samples[index]
        except OSError as error:  # what the image library raises for a file that is not an image
            places = getattr(self.samples, "samples", None)
            where = f"sample {index}" if places is None else str(places[index][0])
            raise InputError(f"{where} cannot be read as an image: {one_line(error)}; remove it") from error
        return self.transform(image), int(label)


@dataclasses.dataclass(frozen=True)
class _Staged:
    """Makes the task of a stage, with its image size and its strength of augmentation."""

    task: Task
    train: Any
    validation: Any
    images: ImageConfig

    def __call__(self, regularisation: Regularisation, size: tuple[int, int]) -> Task:
        numbers = isinstance(self.train, _Pairs) and self.train.numbers
        learning, judging = (
            (_ResizedImages(size), _ResizedImages(size)) if numbers else _transforms(size, regularisation, self.images)
        )
        held_out = None if self.validation is None else Transformed(self.validation, judging)
        return dataclasses.replace(self.task, samples=Transformed(self.train, learning), validation=held_out)


def _transforms(size: tuple[int, int], strengths: Regularisation, images: ImageConfig) -> tuple[Any, Any]:
    """Returns the image transforms for training and for validation."""
    from progc.models.timm import transforms

    return transforms(size, rand_augment=strengths.rand_augment, random_erasing=strengths.random_erasing, config=images)


def _images(train: Any, validation: Any, size: tuple[int, int], images: ImageConfig) -> Task:
    empty = Task(train, validation=validation)
    staged = _Staged(empty, train, validation, images)
    made = staged(Regularisation(), size)
    return dataclasses.replace(made, staged=staged)


def _digits(program: Program) -> Task:
    """The 1,797 handwritten digits of scikit-learn; every fifth is held out for validation."""
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
    """Training and validation samples from folders of classes: `train/` and `val/` in `root`, else `root` itself."""
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
                f"--data imagefolder:{root}: {reason}; expected train/CLASS/*.png and val/CLASS/*.png in it"
            ) from error
    if found[1] is not None and found[0].classes != found[1].classes:
        raise InputError(
            f"--data imagefolder:{root}: training and validation have different classes; use the same class folders"
        )
    return found[0], found[1]


class _Pairs:
    """Rows of a stored data set as pairs with a label: images, or numbers that go into the network unchanged."""

    def __init__(self, rows: Any, image: str, label: str, numbers: bool) -> None:
        # A stored data set remembers the format in which its author read it.
        self.rows, self.image, self.label = rows.with_format("numpy" if numbers else None), image, label
        self.numbers = numbers
        self.classes = getattr(rows.features[label], "names", ())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row = self.rows[index]
        value = row[self.image]
        if not self.numbers:
            return value.convert("RGB"), int(row[self.label])
        return torch.as_tensor(value, dtype=torch.float32), int(row[self.label])


@dataclasses.dataclass(frozen=True)
class _ResizedImages:
    """Resizes float images `[channels, height, width]`, without randomness and without rescaling values."""

    size: tuple[int, int]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        if tuple(image.shape[-2:]) == self.size:
            return image
        return torch.nn.functional.interpolate(
            image[None], size=list(self.size), mode="bilinear", align_corners=False, antialias=True
        )[0]


def _stored(root: Path) -> tuple[Any, Any]:
    """Training and validation rows of a data set that `datasets.Dataset.save_to_disk` wrote."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"--data hf:{root} needs the library datasets; pip install 'progc[hf]'") from error
    try:
        found = datasets.load_from_disk(str(root))
    except Exception as error:  # damaged files fail in many ways inside the library
        raise InputError(f"--data hf:{root}: {one_line(error)}; expected a saved data set") from error
    splits = found if isinstance(found, dict) else {"train": found}
    if "train" not in splits:
        raise InputError(f"--data hf:{root} has the splits {', '.join(splits)}; expected one that is called train")
    columns = splits["train"].column_names
    image = next((name for name in ("image", "img", "pixel_values") if name in columns), None)
    label = next((name for name in ("label", "labels", "fine_label") if name in columns), None)
    if image is None or label is None:
        raise InputError(f"--data hf:{root} has the columns {', '.join(columns)}; expected image and label")
    kinds = splits["train"].features
    kind = _dtype(kinds[image])
    numbers = kind.startswith(("float", "int", "uint"))
    if not numbers and not isinstance(kinds[image], datasets.Image):
        raise InputError(f"--data hf:{root} has {kind} in the column {image}; expected images, or numbers")
    if not _dtype(kinds[label]).startswith(("int", "uint")):
        raise InputError(
            f"--data hf:{root} has {_dtype(kinds[label])} in the column {label}; expected numbers of classes, as "
            "datasets.Dataset.class_encode_column makes them"
        )
    held_out = next((splits[name] for name in ("validation", "val", "test") if name in splits), None)
    if held_out is not None and any(held_out.features.get(name) != kinds[name] for name in (image, label)):
        raise InputError(
            f"--data hf:{root} has other classes or columns for validation than for training; expected the same "
            f"{image} and {label} in both"
        )
    pairs = []
    for rows in (splits["train"], held_out):
        if rows is not None:
            decoded = rows if numbers else rows.cast_column(image, datasets.Image())
            pairs.append(_Pairs(decoded, image, label, numbers))
    if numbers and len(pairs[0]) and pairs[0][0][0].dim() != 3:
        shape = list(pairs[0][0][0].shape)
        raise InputError(
            f"--data hf:{root} has numbers of shape {shape} in the column {image}; expected [channels, height, width]"
        )
    return pairs[0], pairs[1] if len(pairs) > 1 else None


def _dtype(kind: Any) -> str:
    """What a column holds, or the lists in it: `float32`, `int64`, `string`."""
    while hasattr(kind, "feature"):
        kind = kind.feature
    return str(getattr(kind, "dtype", kind))


def _size(text: str, program: Program) -> tuple[int, int]:
    from progc.transforms.resolution.images import find_images

    try:
        return find_images(program)[0].size
    except TargetError as error:
        raise InputError(f"--data {text}: the samples are images, but this network takes no images: {error}") from error


def _channels(program: Program) -> int:
    leaf = next(leaf for leaf in program.flat_example() if isinstance(leaf, torch.Tensor) and leaf.dim() == 4)
    return int(leaf.shape[1])
