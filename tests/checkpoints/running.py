"""Small training runs whose whole state is known, and comparing it bit by bit."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from torch import nn

import progc
from progc.checkpoints import State
from progc.ir.tensor_file import data_of
from progc.lift.optimizers import optimizer_state


class Net(nn.Module):
    """Tied weights, a frozen table, running statistics, bf16, a 0-d and an empty tensor."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.low = nn.Linear(4, 4).to(torch.bfloat16)
        self.head = nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.nothing = nn.Parameter(torch.empty(0, 3))
        self.table = nn.Parameter(torch.randn(4), requires_grad=False)
        self.register_buffer("count", torch.tensor(3))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(ids)) + self.table
        x = x + self.low(x.to(torch.bfloat16)).float()
        out: torch.Tensor = self.head(torch.dropout(x, 0.1, self.training)) * self.scale + self.nothing.sum()
        return out


KINDS: dict[str, Any] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
}


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def new_state(kind: str = "adamw", seed: int = 0, **more: Any) -> State:
    """A state that has not been trained; the seed decides its values."""
    torch.manual_seed(seed)
    model = Net(**more)
    optimizer = KINDS[kind](trainable(model))
    return State(
        model,
        optimizer=optimizer,
        ema=progc.EMA(model, (0.9, 0.999)),
        scaler=torch.amp.GradScaler("cpu", init_scale=1024.0 + seed),
        controllers={"rate": torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])},
        generators={"mine": torch.Generator().manual_seed(seed)},
    )


def train(state: State, steps: int) -> list[float]:
    """Trains on random data from every generator there is; the losses, which tell any difference."""
    assert isinstance(state.model, nn.Module) and isinstance(state.optimizer, torch.optim.Optimizer)
    assert state.ema is not None
    losses = []
    state.model.train()
    for _ in range(steps):
        ids = torch.randint(0, 7, (5,), generator=state.generators["mine"])
        target = torch.tensor([random.randrange(7) for _ in range(3)] + np.random.randint(0, 7, 2).tolist())
        state.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(state.model(ids), target)
        loss.backward()
        state.optimizer.step()
        state.controllers["rate"].step()
        state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": state.scaler.state_dict()["scale"] * 2})
        state.ema.update(state.model)
        losses.append(loss.item())
    return losses


def everything(state: State) -> dict[str, Any]:
    """All of a state, and of the global generators, as a copy."""
    from progc.checkpoints.rng import rng_state
    from progc.checkpoints.state import NamedTensors

    named = NamedTensors(state.model)
    return copy.deepcopy(
        {
            "model": {name: tensor.detach() for name, tensor in named.persistent.items()},
            "optimizers": [optimizer_state(item, named.as_program) for item in state.optimizers.values()],
            "ema": None if state.ema is None else state.ema.state_dict(),
            "scaler": state.scaler and state.scaler.state_dict(),
            "controllers": {name: item.state_dict() for name, item in state.controllers.items()},
            "rng": rng_state(state.generators),
        }
    )


def same(one: Any, two: Any) -> bool:
    """Whether two values are equal in type, dtype and every bit."""
    if type(one) is not type(two):
        return False
    if isinstance(one, torch.Tensor):
        bits = [bytes(data_of(tensor)) for tensor in (one, two)]
        return one.dtype == two.dtype and one.shape == two.shape and bits[0] == bits[1]
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    return repr(one) == repr(two)
