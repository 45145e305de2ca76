"""The network of `make demo`: a ViT of eight blocks, trained on randomly shifted digits.

    progc train examples/digits.toml --out runs/digits                          a search decides the stages
    progc train examples/digits.toml --stages 1 --shares even --out runs/full   at full size throughout

progc needs `build()`, `example_inputs()` and `datasets()` in a file, and `loss(outputs, batch)` if the loss is not the
cross entropy of (inputs, labels).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from digits_vit import DigitsViT, load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset


class Shifted(Dataset[tuple[Tensor, Tensor]]):
    """Digits, each moved by up to one pixel in both directions. Draws from torch's generator, which progc seeds."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = F.pad(images, (1, 1, 1, 1)), labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row, column = torch.randint(3, (2,)).tolist()
        return self.images[index, :, row : row + 8, column : column + 8], self.labels[index]


def build() -> nn.Module:
    """The network at full size."""
    torch.manual_seed(0)
    return DigitsViT(depth=8, width=64, heads=2)


def example_inputs() -> tuple[Tensor, ...]:
    """One call of the model."""
    return (torch.rand(4, 1, 8, 8),)


def datasets() -> tuple[Shifted, TensorDataset]:
    """Samples for training and for validation."""
    train_images, train_labels, test_images, test_labels = load_digits()
    return Shifted(train_images, train_labels), TensorDataset(test_images, test_labels)


def loss(outputs: Tensor, batch: list[Tensor]) -> Tensor:
    """Mean cross entropy with smoothed labels."""
    return F.cross_entropy(outputs, batch[1], label_smoothing=0.1)
