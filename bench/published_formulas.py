"""The equations of AutoProg and AutoProg-Zero, written from the papers for runs without the published code.

Numbers are computed in double precision and in the published order, because rounding decides some of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def linspace(first: float, last: float, count: int) -> list[float]:
    """Evenly spaced numbers as numpy computes them."""
    if count == 1:
        return [first]
    step = (last - first) / (count - 1)
    return [first + k * step for k in range(count - 1)] + [last]


def divisible(value: float, divisor: int) -> int:
    """The nearest multiple, at least one, not below 90 % of the value."""
    near = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * value else near


def grid(largest: int, scale: float, count: int, divisor: int) -> list[int]:
    """Sizes from `scale * largest` to `largest`."""
    return [divisible(part * largest, divisor) for part in linspace(scale, 1.0, count)]


def ramp(last: float, scale: float, count: int) -> list[float]:
    """Strengths from `scale * last` to `last`, at least 0."""
    return [max(0.0, part * last) for part in linspace(scale, 1.0, count)]


def growth_epochs(epochs: int, stages: int) -> list[int]:
    """The epoch at which each stage begins."""
    return [math.floor(epoch) for epoch in linspace(0, epochs, stages + 1)][:-1]


def layer_sources(old: int, new: int) -> list[int]:
    """Interpolation: every layer `new // old` times, the last `new % old` layers once more."""
    times, more = divmod(new, old)
    return [layer for layer in range(old) for _ in range(times + (layer >= old - more))]


def new_layers(old: int, new: int) -> list[int]:
    """Positions of second and later copies."""
    sources = layer_sources(old, new)
    return [k for k in range(1, new) if sources[k] == sources[k - 1]]


def nested(base: int, depth: int, full: int) -> list[int]:
    """Positions of a sub-network: the base layers, and the last `depth - base` of the new ones."""
    left_out = new_layers(base, full)[: full - depth]
    return [k for k in range(full) if k not in left_out]


def split_depth(total: int) -> tuple[int, int]:
    """VOLO's two kinds of layers: 23 % of them are outlookers, an even number."""
    first = divisible(total * 0.23, 2)
    return first, total - first


def one_shot(sizes: Sequence[int], depths: Sequence[int], current: tuple[int, int] | None) -> list[tuple[int, int]]:
    """Candidates (size, depth); `sizes` and `depths` without repeats."""
    if current is None:
        chosen = [[levels[0], levels[len(levels) // 2], levels[-1]] for levels in (sizes, depths)]
    else:
        size, depth = sizes.index(current[0]), depths.index(current[1])
        depth = min(depth + 1, len(depths) - 1)
        chosen = [list(sizes[size : size + 2]), list(depths[depth : depth + 3])]
    return list(itertools.product(*chosen))


def zero_shot(sizes: Sequence[int], levels: Sequence[int], current: tuple[int, int] | None) -> list[tuple[int, int]]:
    """Candidates (size, level); `sizes` and `levels` without repeats."""
    if current is None:
        chosen = [[own[0], own[len(own) // 2 - 1]] for own in (sizes, levels)]
    else:
        size, level = sizes.index(current[0]), levels.index(current[1])
        chosen = [list(sizes[size : size + 2]), list(levels[level : level + 2])]
    return list(itertools.product(*chosen))


def fitted(losses: Sequence[float], times: Sequence[float]) -> tuple[float, int]:
    """Alpha of loss = a2 * time ** a1 by least squares from (1, 1), and the smallest loss * time ** alpha."""
    from scipy.optimize import curve_fit

    (power, _), _ = curve_fit(lambda x, a1, a2: a2 * x**a1, list(times), list(losses))
    alpha = max(-float(power), 0.0)
    totals = [loss * time**alpha for loss, time in zip(losses, times, strict=True)]
    return alpha, totals.index(min(totals))


def vote(times: Sequence[float], ntk: Sequence[float], zico: Sequence[float]) -> int:
    """Rank of the time plus half the ranks of both proxies; the smallest wins, a tie goes to the fastest."""

    def ranks(values: Sequence[float]) -> list[int]:
        found, first = [0] * len(values), None
        for position, place in enumerate(sorted(range(len(values)), key=values.__getitem__), 1):
            if first is None or values[place] - first > 1e-6:
                rank, first = position, values[place]
            found[place] = rank
        return found

    columns = [ranks(times), ranks([-score for score in ntk]), ranks([-score for score in zico])]
    totals = [a + 0.5 * b + 0.5 * c for a, b, c in zip(*columns, strict=True)]
    return min(range(len(times)), key=lambda place: (totals[place], times[place], place))


def levels(level: int, blocks: int = 28) -> set[int]:
    """The blocks that a level trains: of every four the first `level`."""
    return {block for block in range(blocks) if block % 4 < level}


def levels_by_text(level: int, blocks: int = 28) -> set[int]:
    """The same as the code finds it: levels 2 and 3 look for `blocks.1` in names, which is also in `blocks.10`."""
    texts = [f"blocks.{k}." for k in range(blocks) if k % 4 == 0 or level == 4]
    texts += [f"blocks.{k}" for k in range(blocks) if 0 < k % 4 < level < 4]
    return {block for block in range(blocks) if any(text in f"blocks.{block}.weight" for text in texts)}


def rate(epoch: int, epochs: int, peak: float, warm: int, first: float, least: float) -> float:
    """Learning rate of an epoch: a warm-up from `first`, then a cosine that began at epoch 0."""
    if epoch < warm:
        return first + epoch * (peak - first) / warm
    if epoch >= epochs:
        return least
    return least + 0.5 * (peak - least) * (1 + math.cos(math.pi * epoch / epochs))


def drop_rates(rate: float, layers: Sequence[int], dropping: Sequence[bool]) -> list[float]:
    """Drop-path of each layer: a line from 0 to `rate` over all layers; 0 in kinds of layers that have none."""
    total, before, found = sum(layers), 0, []
    for count, on in zip(layers, dropping, strict=True):
        found += [rate * (before + k) / (total - 1) if on else 0.0 for k in range(count)]
        before += count
    return found


def resampled(table: Tensor, side: int) -> Tensor:
    """A table over positions `[1, channels, full, full]` at another size: bicubic, with the published scale factor."""
    scale = (side + 0.1) / table.shape[-1]
    return table if table.shape[-1] == side else F.interpolate(table, scale_factor=(scale, scale), mode="bicubic")


def condition(rows: Tensor) -> float:
    """Condition number of the kernel of gradients `[samples, parameters]`."""
    values = torch.linalg.eigvalsh(rows @ rows.T)
    return float(torch.nan_to_num(values[-1] / values[0]))


def zico(gradients: Sequence[Tensor]) -> float:
    """Sum over weights of log of the sum over entries of mean |g| / std g; each `[batches, entries]`."""
    score = 0.0
    for own in gradients:
        spread = own.std(0, correction=0)
        ratios = own.abs().mean(0)[spread > 0] / spread[spread > 0]
        score += math.log(float(ratios.sum())) if len(ratios) else 0.0
    return score
