"""A vision transformer for 8x8 handwritten digits, in plain PyTorch. Copy this file and adapt it.

    python examples/digits_vit.py --out weights.safetensors --seconds 60     train it (about a minute)
    progc inspect examples/digits_vit.py --axes --chains                     what can grow in it
    progc grow examples/digits_vit.py --to vit_b --weights weights.safetensors --out grown
    progc plan examples/digits_vit.py --strategy zero-shot --out plan.json   which stages to train it in

progc needs `build()` and `example_inputs()` in a file, and to search, measure or train also `datasets()` and `loss()`.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention, [batch, tokens, width] to the same shape."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [batch, heads, tokens, head width]
        x = F.scaled_dot_product_attention(q, k, v)
        return self.out(x.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """One pre-norm transformer block: attention, then a two-layer perceptron, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.contract(F.gelu(self.expand(self.norm2(x))))


class DigitsViT(nn.Module):
    """Images [batch, 1, 8, 8] in [0, 1] to logits [batch, 10]: four 4x4 patches, a class token, positions."""

    def __init__(self, depth: int = 4, width: int = 192, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=4, stride=4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 5, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


def build() -> nn.Module:
    """The small model, before growth."""
    return DigitsViT()


def example_inputs() -> tuple[Tensor, ...]:
    """One call of the model; a batch of two or more leaves the batch size free."""
    return (torch.rand(4, 1, 8, 8),)


def datasets() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Samples for training and for validation, each (images, labels)."""
    train_images, train_labels, test_images, test_labels = load_digits()
    return (train_images, train_labels), (test_images, test_labels)


def loss(outputs: Tensor, batch: list[Tensor]) -> Tensor:
    """Mean cross entropy; `batch` is [images, labels]. For pairs like these it may be left out."""
    return F.cross_entropy(outputs, batch[1], label_smoothing=0.1)


def load_digits(held_out: int = 360, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's 1,797 digits as (train images, train labels, held-out images, held-out labels)."""
    from sklearn.datasets import load_digits as load

    images, labels = load(return_X_y=True)
    x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
    y = torch.from_numpy(labels).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[held_out:], order[:held_out]
    return x[train], y[train], x[test], y[test]


def shifted(images: Tensor) -> Tensor:
    """Each image moved by up to one pixel in both directions; what leaves the frame is lost."""
    padded = F.pad(images, (1, 1, 1, 1))
    row, column = torch.randint(3, (2, len(images), 1, 1))
    rows, columns = row + torch.arange(8)[None, :, None], column + torch.arange(8)[None, None, :]
    return padded[torch.arange(len(images))[:, None, None], 0, rows, columns][:, None]


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, batch: int = 64) -> Tensor:
    """Logits [images, 10] in eval mode."""
    model.eval()
    return torch.cat([model(part) for part in images.split(batch)])


def train(model: nn.Module, images: Tensor, labels: Tensor, seconds: float, batch: int = 64) -> int:
    """AdamW with a short warm-up and a cosine decay that ends when the time is up. Returns the steps taken."""
    peak = 5e-4
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.05)
    model.train()
    start, step, done, told = time.monotonic(), 0, 0.0, 0.1
    while done < 1:
        for part in torch.randperm(len(images)).split(batch):
            optimizer.param_groups[0]["lr"] = peak * min(1, (step + 1) / 50) * (1 + math.cos(math.pi * done)) / 2
            loss = F.cross_entropy(model(shifted(images[part])), labels[part], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            done = (time.monotonic() - start) / seconds
            if done >= told:
                print(f"step {step:5d}  {min(done, 1):4.0%} of the time  loss {loss.item():.3f}", flush=True)
                told += 0.1
            if done >= 1:
                break
    return step


def main() -> None:
    """Trains the small model and saves its weights."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description="Train the digits ViT.")
    parser.add_argument("--out", required=True, help="safetensors file to write")
    parser.add_argument("--seconds", type=float, default=60, help="how long to train (default 60)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    train_images, train_labels, test_images, test_labels = load_digits()
    model = build()
    steps = train(model, train_images, train_labels, options.seconds)
    accuracy = (predict(model, test_images).argmax(1) == test_labels).float().mean().item()
    save_file(model.state_dict(), options.out)
    print(f"{steps} steps, {accuracy:.1%} of {len(test_images)} held-out digits right, weights in {options.out}")


if __name__ == "__main__":
    main()
