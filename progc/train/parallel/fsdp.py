"""Shards parameters, gradients, optimizer state and averages over ranks: torch's fully_shard, again for every stage.

Every block of a stage module is a unit: it is gathered for its forward and its backward, and freed after each. Between
two stages everything is whole on every rank, since growth is arithmetic on whole tensors. The tensors that grow are the
objects that the stage began with; only their memory is freed in the meantime.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from progc.emit.stage_module import unit_paths
from progc.errors import InputError
from progc.ir.program import Average
from progc.lift.optimizers.holdings import PARKED
from progc.train.parallel.ranks import Ranks, same_buffers

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from progc.lift.averages import Averages


class Fsdp(Ranks):
    """See `Parallel`. The rows of every tensor are split over the ranks as by `torch.chunk`."""

    name = "fsdp"

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._mesh = init_device_mesh(device.type, (self.world,))
        self._root: FSDPModule | None = None
        self._pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}

    def wrap(self, module: nn.Module, optimizer: Optimizer | None, ema: Averages | None) -> nn.Module:
        """Shards the module in place, with the tensors of optimizer and averages.

        Raises:
            InputError: a parameter is 0-d, or the optimizer keeps state of another shape than its parameter.
        """
        whole = dict(module.named_parameters())
        single = next((name for name, parameter in whole.items() if not parameter.dim()), None)
        if single is not None:
            raise InputError(f"parallel=fsdp: {single} is 0-d and cannot be sharded; use parallel=ddp")
        _check_state(optimizer, whole)
        for parameter in whole.values():
            parameter.data = parameter.data.contiguous()
        for path in _units(module):
            fully_shard(module.get_submodule(path), mesh=self._mesh)
        root: Any = fully_shard(module, mesh=self._mesh)
        shards = dict(module.named_parameters())
        self._root, self._pairs = root, {name: (whole[name], shards[name]) for name in whole}
        self._move(optimizer, ema, {name: (whole[name], shards[name]) for name in whole}, self._share)
        for parameter in whole.values():
            _forget(parameter)
        return root

    def unwrap(self, optimizer: Optimizer | None, ema: Averages | None) -> None:
        """Gathers everything on every rank; the wrapped module must not be used afterwards."""
        if self._root is None:
            return
        with torch.no_grad():
            for whole, shard in self._pairs.values():
                _remember(whole, _full(shard))
        back = {name: (shard, whole) for name, (whole, shard) in self._pairs.items()}
        self._move(optimizer, ema, back, lambda tensor, _: _full(tensor))
        self._root, self._pairs = None, {}

    @contextlib.contextmanager
    def reducing(self, last: bool) -> Iterator[Any]:
        """Keeps gradients whole until the last micro-batch; then each rank keeps its shard of their mean."""
        assert self._root is not None
        root: Any = self._root
        root.set_requires_gradient_sync(last)
        yield
        if last:
            same_buffers(root)

    def clip(self, parameters: Iterable[nn.Parameter], limit: float | None) -> torch.Tensor:
        """See `Parallel.clip`; the norm is taken over the whole gradients."""
        trained = [parameter for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        norm = _full(norm)
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(trained, limit, norm)
        return norm

    def _share(self, tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """This rank's rows of a whole tensor, sharded as `like` is."""
        assert isinstance(like, DTensor) and like.placements == (Shard(0),)
        size = -(-tensor.shape[0] // self.world)
        rows = tensor[self.rank * size : (self.rank + 1) * size].clone(memory_format=torch.contiguous_format)
        stride = torch.empty(tensor.shape, device="meta").stride()
        return DTensor.from_local(rows, self._mesh, like.placements, run_check=False, shape=tensor.shape, stride=stride)

    def _move(
        self,
        optimizer: Optimizer | None,
        ema: Averages | None,
        pairs: Mapping[str, tuple[nn.Parameter, nn.Parameter]],
        make: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> None:
        """Moves optimizer and averages to other parameters of the same names.

        Args:
            optimizer: its state and groups are changed in place; None where there is none.
            ema: its tensors are replaced; None where there is none.
            pairs: old and new parameter by name.
            make: makes the new tensor from a tensor of the parameter's shape and the new parameter.
        """
        new = {id(left): comes for left, comes in pairs.values()}
        to = {name: comes for name, (_, comes) in pairs.items()}

        def moved(value: Any, parameter: nn.Parameter) -> Any:
            fits = isinstance(value, torch.Tensor) and value.dim() and value.shape == parameter.shape
            return make(value, parameter) if fits else value

        if optimizer is not None:
            with torch.no_grad():
                state = {
                    new.get(id(key), key): {
                        name: moved(value, new[id(key)]) for name, value in own.items()
                    } if id(key) in new else own
                    for key, own in optimizer.state.items()
                }  # fmt: skip
                parked: Any = state.get(PARKED)  # type: ignore[call-overload]
                if parked:
                    parked["state"] = {
                        name: {key: moved(value, to[name]) for key, value in own.items()}
                        for name, own in parked["state"].items()
                    }
            for group in optimizer.param_groups:
                group["params"][:] = [new[id(parameter)] for parameter in group["params"]]
            optimizer.state.clear()
            optimizer.state.update(state)
        if ema is not None:
            root: Any = self._root
            names = {id(parameter): name for name, parameter in root.named_parameters()}
            first = {alias: names[id(p)] for alias, p in root.named_parameters(remove_duplicate=False)}
            with torch.no_grad():
                ema.repoint(
                    Average(_each(copy, lambda name, t: moved(t, to[first[name]]) if name in first else t), decay)
                    for decay, copy in ema.tensors.items()
                )


def _units(module: nn.Module) -> list[str]:
    """Paths of blocks that share no parameter with the rest of the module, inner ones first.

    A tied parameter belongs to the root: two units would each keep a copy of it, which would no longer be tied.
    """
    places: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    found = []
    for path in unit_paths(module):
        own = [names for names in places.values() if any(name.startswith(f"{path}.") for name in names)]
        if own and all(name.startswith(f"{path}.") for names in own for name in names):
            found.append(path)
    return sorted(found, key=lambda path: (-path.count("."), path))


def _check_state(optimizer: Optimizer | None, whole: dict[str, nn.Parameter]) -> None:
    names = {id(parameter): name for name, parameter in whole.items()}
    for key, own in optimizer.state.items() if optimizer is not None else ():
        for label, value in own.items() if id(key) in names else ():
            if isinstance(value, torch.Tensor) and value.dim() and value.shape != key.shape:
                raise InputError(
                    f"parallel=fsdp: the optimizer keeps {label} of shape {list(value.shape)} for {names[id(key)]} of "
                    f"shape {list(key.shape)}, which cannot be sharded with it; use parallel=ddp or another optimizer"
                )


def _each(
    tensors: dict[str, torch.Tensor], make: Callable[[str, torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Makes a tensor from each tensor, once for tied names."""
    made: dict[int, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if id(tensor) not in made:
            made[id(tensor)] = make(name, tensor)
    return {name: made[id(tensor)] for name, tensor in tensors.items()}


def _full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor, gathered from all ranks."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor


def _forget(parameter: nn.Parameter) -> None:
    """Frees the memory of a parameter and keeps its shape, which is all that planning the next stage needs."""
    storage = parameter.untyped_storage()
    if storage.nbytes() == parameter.numel() * parameter.element_size():  # memory that nothing else uses
        with contextlib.suppress(RuntimeError):  # memory that torch does not own, such as a mapped file
            storage.resize_(0)


def _remember(parameter: nn.Parameter, values: torch.Tensor) -> None:
    storage = parameter.untyped_storage()
    if not storage.nbytes():
        storage.resize_(parameter.numel() * parameter.element_size())
    parameter.copy_(values)
