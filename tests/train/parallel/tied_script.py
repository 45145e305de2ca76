"""One rank: a network with tied weights, BatchNorm and averages, trained as whole copies and spread, side by side."""

from __future__ import annotations

import copy
import os

import torch
import torch.distributed as dist
from torch import nn

import progc
from progc.emit import emit
from progc.lift.averages import Averages
from progc.train.boundary import check_same, digest
from progc.train.parallel.fsdp import Fsdp
from progc.train.parallel.ranks import Ddp

SIZE = 7  # odd, so that the shares differ


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(SIZE), nn.Linear(SIZE, SIZE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(self.norm(x))


class Net(nn.Module):
    """A head that is tied to the stem, two blocks of three that share a weight, a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(SIZE, SIZE, bias=False), nn.Linear(SIZE, SIZE, bias=False)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head.weight = self.stem.weight
        second, third = self.blocks[1], self.blocks[2]
        assert isinstance(second, Block) and isinstance(third, Block)
        third.linear.weight = second.linear.weight
        self.blocks[0].requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def trained(parallel: Ddp | Fsdp, net: nn.Module) -> dict[str, torch.Tensor]:
    """Everything after a few steps; the ranks have the same, or this raises."""
    program = progc.capture(net, (torch.zeros(4, SIZE),))
    module = emit(program, how="eager")
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    averages = Averages(module, (0.9,))
    wrapped = parallel.wrap(module, optimizer, averages)
    module.train()
    torch.manual_seed(parallel.rank)
    for _ in range(3):
        for part in (False, True):
            with parallel.reducing(part):
                wrapped(torch.randn(8, SIZE)).square().mean().backward()
        assert all(p.grad is None for p in module.parameters() if not p.requires_grad)
        parallel.clip(list(module.parameters()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        averages.update(module)
    parallel.unwrap(optimizer, averages)
    check_same(digest(program.module(), optimizer, averages))
    names = {id(tensor): name for name, tensor in program.parameters()}
    return {
        **{name: tensor.detach().clone() for name, tensor in program.tensors.items()},
        **{f"ema {name}": tensor.clone() for name, tensor in averages.tensors[0.9].items()},
        **{f"{names[id(p)]} {key}": t for p, own in optimizer.state.items() for key, t in own.items()},
    }


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    net = Net()
    device = torch.device("cpu")
    whole = trained(Ddp(device), copy.deepcopy(net))
    spread = trained(Fsdp(device), net)
    assert whole.keys() == spread.keys() and "blocks.1.linear.weight momentum_buffer" in whole
    torch.testing.assert_close(spread, whole)
    assert not torch.equal(spread["blocks.1.norm.running_mean"], torch.zeros(SIZE))
    dist.barrier()
    print("alike;", flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)  # as in ranks_script.py
