"""Pieces on tokens `[batch, tokens, width]`; those that never look at tokens also take vectors `[batch, width]`."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.properties.pieces import L2, TOKENS, TokensFirst, activation, divisor, piece, table, token_norm


@piece("tokens", "vectors")
class Mlp(nn.Module):
    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        hidden = rng.choice([4, 6, 9])
        wrap = rng.choice([lambda m: m, lambda m: m, parametrizations.weight_norm, parametrizations.spectral_norm])
        self.up = wrap(nn.Linear(width, hidden, bias=rng.random() < 0.7))
        self.act, self.drop = activation(hidden, rng), nn.Dropout(rng.choice([0.0, 0.0, 0.1]))
        self.norm = token_norm(hidden, rng) if rng.random() < 0.3 else nn.Identity()
        self.down = nn.Linear(hidden, width, bias=rng.random() < 0.7)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.drop(self.norm(self.act(self.up(x)))))


@piece("tokens", "vectors")
class Gated(nn.Module):
    """GLU in every spelling: packed both ways, separate layers, the fused op."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        self.hidden, self.kind = (
            rng.choice([3, 4, 6]),
            rng.choice(["chunk", "glu", "separate", "split", "inner", "slice"]),
        )
        self.up = nn.Linear(width, 2 * self.hidden)
        self.other = nn.Linear(width, self.hidden) if self.kind == "separate" else None
        self.act = activation(self.hidden, rng, in_place=False)
        self.down = nn.Linear(2 * self.hidden if self.kind == "separate" else self.hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        if self.kind == "glu":
            return self.down(F.glu(y))
        if self.kind == "separate":
            return self.down(self.act(y) * torch.cat([self.other(x), self.other(x)], -1))
        if self.kind == "inner":
            value, gate = y.unflatten(-1, (self.hidden, 2)).unbind(-1)
        elif self.kind == "slice":
            value, gate = y[..., : self.hidden], y[..., self.hidden :]
        elif self.kind == "split":
            value, gate = y.split(self.hidden, -1)
        else:
            value, gate = y.chunk(2, -1)
        return self.down(value * self.act(gate))


@piece("tokens", "vectors")
class Parts(nn.Module):
    """Concatenation of unlike parts, then slices or splits of it at other places."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        a, b = rng.choice([2, 3, 4]), rng.choice([2, 4, 5])
        self.a, self.b = nn.Linear(width, a), nn.Linear(width, b)
        self.keep, self.cut, self.size = rng.random() < 0.5, rng.choice([a, a, 1, 3]), a + b + width
        self.norm = token_norm(self.size if self.keep else a + b, rng)
        self.mode, self.act = rng.choice(["whole", "slice", "split", "swap"]), activation(1, rng)
        size = self.size if self.keep else a + b
        self.out = nn.Linear(size - self.cut if self.mode == "slice" else size, width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), self.act(self.b(x)), *([x] if self.keep else [])], -1)
        y = self.norm(y)
        if self.mode == "slice":
            y = y[..., self.cut :]
        elif self.mode == "split":
            first, second = y.split([self.cut, y.shape[-1] - self.cut], -1)
            y = torch.cat([first.tanh(), second], -1)
        elif self.mode == "swap":
            y = torch.cat([y[..., self.cut :], y[..., : self.cut]], -1)
        return self.out(y)


@piece("tokens")
class Modulated(nn.Module):
    """adaLN: shift, scale and gate computed from the mean token."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width, elementwise_affine=False), Mlp(width, rng)
        self.table = table(6, width) if rng.random() < 0.3 else None
        self.make = nn.Linear(width, 3 * width)
        self.split = rng.choice(["chunk", "view"])

    def forward(self, x: Tensor) -> Tensor:
        made = self.make(F.silu(x.mean(1)))
        if self.table is not None:
            made = made + self.table[:3].reshape(-1)
        if self.split == "chunk":
            shift, scale, gate = (part.unsqueeze(1) for part in made.chunk(3, -1))
        else:
            shift, scale, gate = made.view(made.shape[0], 3, 1, x.shape[-1]).unbind(1)
        return gate * self.inner(self.norm(x) * (1 + scale) + shift)


@piece("tokens", "vectors")
class Experts(nn.Module):
    """Dense softmax routing over experts, as a list or as one table."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        count, hidden, self.kind = rng.choice([2, 3]), rng.choice([3, 4]), rng.choice(["list", "stack", "einsum"])
        self.gate = nn.Linear(width, count)
        if self.kind == "einsum":
            self.up, self.down = table(count, width, hidden), table(count, hidden, width)
        else:
            self.experts = nn.ModuleList(Mlp(width, rng) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.gate(x).softmax(-1)
        if self.kind == "einsum":
            hidden = torch.einsum("...c,ech->...eh", x, self.up).relu()
            return torch.einsum("...eh,ehc,...e->...c", hidden, self.down, weight)
        outs = [expert(x) for expert in self.experts]
        if self.kind == "stack":
            return (torch.stack(outs, -1) * weight.unsqueeze(-2)).sum(-1)
        return sum(out * weight[..., i : i + 1] for i, out in enumerate(outs))


@piece("tokens", "vectors")
class Shared(nn.Module):
    """A module called twice, a parameter shared by two modules, a weight used transposed (tied)."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        hidden, self.kind = rng.choice([4, 5]), rng.choice(["twice", "shared", "tied", "double"])
        self.act = activation(hidden, rng)
        self.a, self.b = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.square = nn.Linear(width, width)
        self.down = nn.Linear(hidden, width)
        if self.kind == "shared":
            self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "twice":
            return self.square(self.act(self.square(x)))
        if self.kind == "tied":
            return F.linear(self.act(self.a(x)), self.a.weight.t())
        if self.kind == "double":
            return self.down(self.a(x) + self.act(self.a(x * 2)))
        return self.down(self.a(x) * self.act(self.b(x)))


@piece("tokens")
class TokenMixing(nn.Module):
    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        hidden, self.kind = rng.choice([3, 6]), rng.choice(["linear", "einsum", "conv", "depthwise"])
        self.up, self.down, self.mix = nn.Linear(TOKENS, hidden), nn.Linear(hidden, TOKENS), table(TOKENS, TOKENS)
        groups = width if self.kind == "depthwise" else divisor(rng, width, 1, 2)
        self.conv = nn.Conv1d(width, width, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "linear":
            return self.down(F.gelu(self.up(x.transpose(1, 2)))).transpose(1, 2)
        if self.kind == "einsum":
            return torch.einsum("btc,ts->bsc", x, self.mix)
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


@piece("tokens")
class Recurrent(nn.Module):
    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        hidden = rng.choice([3, 4])
        both = rng.random() < 0.3
        self.cell = rng.choice([nn.LSTM, nn.GRU])(width, hidden, batch_first=True, bidirectional=both)
        self.out = nn.Linear(hidden * (2 if both else 1), width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x)[0])


@piece("tokens")
class Scan(nn.Module):
    """A selective state space: step sizes, input and output maps from the input; a loop or a cumulative sum."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        self.inner, self.states, self.kind = rng.choice([4, 6]), rng.choice([2, 3]), rng.choice(["loop", "cumsum"])
        self.reads = rng.choice(["sum", "einsum", "matmul"])
        self.into, self.maps = nn.Linear(width, 2 * self.inner), nn.Linear(self.inner, 2 + 2 * self.states)
        self.step = nn.Linear(2, self.inner)
        self.log_a, self.skip = nn.Parameter(torch.rand(self.inner, self.states)), nn.Parameter(torch.ones(self.inner))
        self.out = nn.Linear(self.inner, width)

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.into(x).chunk(2, -1)
        low, b, c = self.maps(u).split([2, self.states, self.states], -1)
        step = F.softplus(self.step(low))
        decay = step.unsqueeze(-1) * -torch.exp(self.log_a)
        drive = (step * u).unsqueeze(-1) * b.unsqueeze(2)
        if self.kind == "cumsum":
            total = decay.cumsum(1)
            states = (drive * (-total).exp()).cumsum(1) * total.exp()
        else:
            h, found = torch.zeros_like(drive[:, 0]), []
            for t in range(TOKENS):
                h = decay[:, t].exp() * h + drive[:, t]
                found.append(h)
            states = torch.stack(found, 1)
        if self.reads == "sum":
            y = (states * c.unsqueeze(2)).sum(-1)
        elif self.reads == "matmul":
            y = (states @ c.unsqueeze(-1)).squeeze(-1)
        else:
            y = torch.einsum("btdn,btn->btd", states, c)
        return self.out((y + self.skip * u) * F.silu(gate))


@piece("tokens", "vectors")
class Einsums(nn.Module):
    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        self.kind, heads, inner = rng.choice(["heads", "bilinear", "low rank", "diagonal"]), rng.choice([2, 3]), 3
        self.up, self.down = table(heads, inner, width), table(heads, inner, width)
        self.mix = table(heads, inner, inner) if rng.random() < 0.5 else None
        self.core, self.gain = table(width, inner, inner), table(width)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "diagonal":
            return torch.einsum("...c,c->...c", x, self.gain)
        y = torch.einsum("...c,hic->...hi", x, self.up)
        if self.kind == "bilinear":
            return torch.einsum("...i,...j,cij->...c", y[..., 0, :], y[..., 1, :], self.core)
        if self.mix is not None:
            y = torch.einsum("...hi,hij->...hj", y, self.mix)
        return torch.einsum("...hi,hic->...c", y.tanh() if self.kind == "heads" else y, self.down)


@piece("tokens")
class Normed(nn.Module):
    """A layer between two norms; some of them take statistics per token, some per channel."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        other = rng.choice([4, 6])
        self.into, self.out = nn.Linear(width, other), nn.Linear(other, width)
        self.norm = rng.choice(
            [
                lambda: TokensFirst(nn.BatchNorm1d(other)),
                lambda: TokensFirst(nn.GroupNorm(2, other)),
                lambda: TokensFirst(nn.InstanceNorm1d(other)),
                lambda: L2(other, gain=False),
                lambda: nn.LayerNorm((TOKENS, other)),
                lambda: token_norm(other, rng),
                lambda: nn.BatchNorm1d(TOKENS),
            ]
        )()
        self.last = token_norm(width, rng)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.out(self.norm(self.into(x))))


@piece("tokens")
class Sums(nn.Module):
    """Sums, gates and pools over channels and tokens."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        self.kind = rng.choice(["sum", "gate", "pool", "max", "outer", "parallel sum"])
        self.a, self.b = nn.Linear(width, 4), nn.Linear(4, width)
        self.score, self.gate = nn.Linear(width, 1), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "sum":
            return x * self.a(x).sum(-1, keepdim=True)
        if self.kind == "gate":
            return x * torch.sigmoid(self.gate(x))
        if self.kind == "pool":
            return x + (self.score(x).softmax(1) * x).sum(1, keepdim=True)
        if self.kind == "max":
            return self.b(self.a(x) - self.a(x).amax(-1, keepdim=True)) + x.amax(1, keepdim=True)
        if self.kind == "outer":
            y = self.a(x)
            return self.b((y.unsqueeze(-1) * y.unsqueeze(-2)).mean(-1))
        return self.b(self.a(x)) + self.a(x).sum((1, 2), keepdim=True)


@piece("tokens")
class Tables(nn.Module):
    """A class token and learned tables, by slice and by index, joined to the tokens and taken off again."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        self.first, self.places = table(1, 1, width), table(1, TOKENS + 1, width)
        self.looked_up, self.kind = table(7, width), rng.choice(["class", "index", "mean"])
        self.inner = Mlp(width, rng)
        self.register_buffer("order", torch.tensor([3, 1, 6, 0, 2]))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "index":
            return self.inner(x + self.looked_up[self.order])
        y = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places
        y = self.inner(y)
        return y[:, 1:] + (y[:, :1] if self.kind == "class" else y.mean(1, keepdim=True))


@piece("tokens")
class InPlace(nn.Module):
    """In-place operations, on activations and on views of them."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        self.kind = rng.choice(["add_", "mul_", "slice", "relu_"])
        self.a, self.b, self.gain = nn.Linear(width, width), nn.Linear(width, width), table(width)
        self.half = width // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.kind == "add_":
            y += x
        elif self.kind == "mul_":
            y.mul_(self.gain)
        elif self.kind == "relu_":
            F.relu_(y)
        else:
            y[..., : self.half] *= 2.0
        return self.b(y)
