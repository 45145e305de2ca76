"""Averaged copies of the weights (EMA) that follow growth.

`Averages` tracks a network in training with one copy for each decay, like timm's ModelEmaV2: average = decay * average
+ (1 - decay) * value for parameters and floating-point buffers; other buffers are copied. An `Average` is one such copy
as a value. Every pass maps the averages of a program (`Program.averages`) by the lift that maps its weights, so both
keep the same shapes. Averages are never trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from progc.errors import InputError, VerifyError
from progc.ir.program import Average

if TYPE_CHECKING:
    from progc.ir.program import Program
    from progc.lift.lift import Lift

DECAYS = (0.998, 0.9986, 0.999, 0.9996)
"""The decays of AutoProg (Li et al., CVPR 2022)."""

_PREFIXES = ("module.", "_orig_mod.")


class Averages:
    """Averaged copies of a network in training; `progc.EMA`.

        ema = progc.EMA(module)              # once: growth re-points it
        ema.update(module)                   # after every optimizer step
        bigger = progc.grow(program, to=..., optimizer=optimizer, ema=ema)

    Attributes:
        decays: one for each copy.
    """

    def __init__(
        self,
        source: nn.Module | Program | Mapping[str, torch.Tensor],
        decays: Sequence[float] = DECAYS,
        *,
        warmup: bool = False,
        warmup_gamma: float = 1.0,
        warmup_power: float = 2 / 3,
    ) -> None:
        """Starts from the present values.

        Args:
            source: the network: a module (also one wrapped by DistributedDataParallel or torch.compile), a program, or
                tensors by name.
            decays: one for each copy: distinct, at least 0 and below 1.
            warmup: whether the decay rises as 1 - (1 + step / warmup_gamma) ** -warmup_power up to its value. Steps
                count as in timm's ModelEmaV3: the first update copies the values.

        Raises:
            InputError: a decay is out of range or given twice.
        """
        self.decays = tuple(float(decay) for decay in decays)
        if not self.decays or len(set(self.decays)) < len(self.decays) or not all(0 <= d < 1 for d in self.decays):
            raise InputError(f"decays {list(decays)}: expected distinct numbers, at least 0 and below 1")
        self.warmup, self.warmup_gamma, self.warmup_power = warmup, warmup_gamma, warmup_power
        self._updates = 0
        self._left_out: torch.Tensor | None = None
        named = tracked_tensors(source)
        self._copies = {decay: _copied(named) for decay in self.decays}

    @property
    def tensors(self) -> dict[float, dict[str, torch.Tensor]]:
        """The averages by decay, then by name; tied names map to the same tensor."""
        return {decay: dict(copy) for decay, copy in self._copies.items()}

    def decay_at(self, decay: float, update: int) -> float:
        """Returns the decay of update number `update`; the first is number 1."""
        step = update - 1
        if not self.warmup:
            return decay
        if step <= 0:
            return 0.0
        return max(min(1 - (1 + step / self.warmup_gamma) ** -self.warmup_power, decay), 0.0)

    @property
    def num_updates(self) -> int:
        """Number of updates; reading it waits for the device if some may have been left out there."""
        if self._left_out is not None:
            self._updates, self._left_out = self._updates - round(float(self._left_out)), None
        return self._updates

    @num_updates.setter
    def num_updates(self, value: int) -> None:
        self._updates, self._left_out = value, None

    @torch.no_grad()
    def update(
        self, source: nn.Module | Program | Mapping[str, torch.Tensor], *, unless: torch.Tensor | None = None
    ) -> None:
        """Updates the averages with the present values.

        Args:
            source: as for the constructor.
            unless: f32, 0-d, on the device of the averages: where it is 1, nothing is updated, and where it is 0,
                everything. The host does not read it. Parameters have to be finite then. None updates.

        Raises:
            InputError: names or shapes differ from the tracked ones; nothing is changed.
        """
        named = tracked_tensors(source)
        pairs = {}
        for decay, copy in self._copies.items():
            _check(copy, named)
            first = {id(tensor): name for name, tensor in reversed(copy.items())}
            pairs[decay] = [(copy[name], named[name]) for name in first.values()]
        number = (self.num_updates if self.warmup else self._updates) + 1
        self._updates += 1
        if unless is not None:
            self._left_out = unless if self._left_out is None else self._left_out + unless
        for decay, found in pairs.items():
            own = self.decay_at(decay, number)
            if unless is None:
                _update(found, own)
            else:
                _update_unless(found, own, unless)

    def add(self, decay: float, source: nn.Module | Program | Mapping[str, torch.Tensor]) -> None:
        """Adds a copy with another decay; it starts from the present values.

        Raises:
            InputError: there is a copy with this decay, or the decay is out of range.
        """
        if decay in self.decays or not 0 <= decay < 1:
            raise InputError(f"decay {decay}: expected a new one, at least 0 and below 1, next to {list(self.decays)}")
        self.decays = (*self.decays, float(decay))
        self._copies[float(decay)] = _copied(tracked_tensors(source))

    def remove(self, decay: float) -> None:
        """Removes the copy with this decay."""
        self.decays = tuple(own for own in self.decays if own != decay)
        del self._copies[decay]

    def values(self) -> tuple[Average, ...]:
        """Returns the averages as values that share memory with these, one for each decay."""
        return tuple(Average(dict(copy), decay) for decay, copy in self._copies.items())

    def repoint(self, averages: Iterable[Average]) -> None:
        """Replaces the averages by grown ones, one for each decay; `num_updates` stays."""
        grown = {average.decay: dict(average.complete.tensors) for average in averages}
        assert grown.keys() == self._copies.keys(), "averages of other decays"
        self._copies = {decay: grown[decay] for decay in self.decays}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Returns the averages by `DECAY/NAME`, and `num_updates`, in one flat dict; a tied tensor appears once."""
        state = {"num_updates": torch.tensor(self.num_updates)}
        for decay, copy in self._copies.items():
            first = {id(tensor): name for name, tensor in reversed(copy.items())}
            state.update({f"{decay!r}/{name}": copy[name].contiguous() for name in sorted(first.values())})
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copies in the tensors of a `state_dict`.

        Raises:
            InputError: decays, names or shapes differ; nothing is changed.
        """
        own = self.state_dict()
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        odd = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
        if missing or unknown or odd:
            first = (missing or unknown or odd)[0]
            what = "is missing" if missing else "is unknown" if unknown else "has another shape"
            raise InputError(
                f"averages: {first} {what}; expected decays {list(self.decays)} and the network at its present size"
            )
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self.num_updates = int(state["num_updates"])


EmaLike = Averages | Average | Mapping[str, torch.Tensor] | nn.Module
"""Types that `ema=` accepts: averages in training, an average, tensors by name, or a module that holds them."""


def tracked_tensors(source: Any) -> dict[str, torch.Tensor]:
    """Returns the tensors that averages track, by name: all of `named_tensors`, unless a module says otherwise.

    A module that holds more than averages should track, such as a supernet, has a method `tracked`.
    """
    tracked = getattr(source, "tracked", None) if isinstance(source, nn.Module) else None
    return named_tensors(tracked() if callable(tracked) else source)


def named_tensors(source: Any) -> dict[str, torch.Tensor]:
    """Returns the tensors of a state dict by name, aliases included, without the prefixes of torch's wrappers."""
    if isinstance(source, nn.Module):
        held = source.state_dict(keep_vars=True)
        named = {name: tensor for name, tensor in held.items() if isinstance(tensor, torch.Tensor)}
    else:
        named = dict(source.persistent() if hasattr(source, "persistent") else source)
    for prefix in _PREFIXES:
        if named and all(name.startswith(prefix) for name in named):
            named = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
    return named


def _copied(named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    made: dict[int, torch.Tensor] = {}
    for tensor in named.values():
        if id(tensor) not in made:
            low = tensor.is_floating_point() and tensor.dtype.itemsize < 4
            made[id(tensor)] = tensor.detach().to(torch.float32 if low else tensor.dtype, copy=True)
    return {name: made[id(tensor)] for name, tensor in named.items()}


Pair = tuple[torch.Tensor, torch.Tensor]
"""An average and the present value of the same tensor."""


def _update(pairs: Iterable[Pair], decay: float) -> None:
    weight = 1.0 - decay
    floating, others = _sorted_pairs(pairs)
    for group in floating:
        averages, values = _sides(group)
        torch._foreach_mul_(averages, 1.0 - weight)
        torch._foreach_add_(averages, values, alpha=weight)
    for average, value in others:
        average.copy_(value)


def _update_unless(pairs: Iterable[Pair], decay: float, unless: torch.Tensor) -> None:
    """The same, with factors that are 1 and 0 where `unless` is 1.

    Buffers are selected instead of multiplied by 0: a step that is left out may have written what is not finite into
    running statistics. They are small and many, so they are joined.
    """
    scaled: list[Pair] = []
    selected: list[Pair] = []
    for average, value in pairs:
        own = scaled if isinstance(value, nn.Parameter) and average.is_floating_point() else selected
        own.append((average, value))
    for group in _sorted_pairs(scaled)[0]:
        averages, values = _sides(group)
        weight = (1.0 - decay) * (1.0 - unless.to(averages[0].device, averages[0].dtype))
        torch._foreach_mul_(averages, 1.0 - weight)
        torch._foreach_add_(averages, torch._foreach_mul(values, weight))
    floating, others = _sorted_pairs(selected)
    for group in (*floating, *_by_kind(others)):
        averages, values = _sides(group)
        old, new = (torch.cat([tensor.reshape(-1) for tensor in side]) for side in (averages, values))
        if new.is_floating_point():
            new = old * decay + new * (1.0 - decay)
        pieces = torch.where(unless.to(old.device) != 0, old, new).split([average.numel() for average in averages])
        torch._foreach_copy_(
            averages, [piece.view_as(average) for piece, average in zip(pieces, averages, strict=True)]
        )


def _sorted_pairs(pairs: Iterable[Pair]) -> tuple[list[list[Pair]], list[Pair]]:
    """Floating-point pairs by kind, with values of the dtype and device of their average; and the others."""
    floating, others = [], []
    for average, value in pairs:
        value = value.detach()
        if average.is_floating_point():
            floating.append(
                (average, value.to(average.device, average.dtype))
            )  # the same tensor where both are the same
        else:
            others.append((average, value))
    return _by_kind(floating), others


def _by_kind(pairs: Iterable[Pair]) -> list[list[Pair]]:
    kinds: dict[object, list[Pair]] = {}
    for average, value in pairs:
        kinds.setdefault((average.device, average.dtype, type(average)), []).append((average, value))
    return list(kinds.values())


def _sides(pairs: Iterable[Pair]) -> list[list[torch.Tensor]]:
    return [list(side) for side in zip(*pairs, strict=True)]


def _check(copy: Mapping[str, torch.Tensor], named: Mapping[str, torch.Tensor]) -> None:
    odd = [name for name in copy if name not in named or named[name].shape != copy[name].shape]
    odd += [name for name in named if name not in copy]
    if odd:
        raise InputError(
            f"averages: {odd[0]} was added, removed or reshaped since tracking began ({len(odd)} tensors in all); "
            "pass the averages to the growth as ema=..., or create new ones"
        )


def attached(program: Program, ema: EmaLike | Sequence[EmaLike]) -> Program:
    """Returns `program` with the averages replaced by these.

    Buffers and constants that an average does not hold are copied from the program.

    Raises:
        InputError: a parameter is missing, a name is unknown, or a shape differs.
    """
    return program.replace(averages=tuple(_fitted(program, item) for item in _values(ema)))


def handed_over(ema: EmaLike | Sequence[EmaLike], program: Program) -> None:
    """Replaces the copies of every `Averages` in `ema` by the grown averages of `program`."""
    averages = iter(program.averages)
    for item in _listed(ema):
        if isinstance(item, Averages):
            own = [next(averages) for _ in item.decays]
            item.repoint(
                Average({n: t for n, t in average.tensors.items() if program.specs[n].persistent}, average.decay)
                for average in own
            )
        else:
            next(averages)


def _listed(ema: EmaLike | Sequence[EmaLike]) -> list[EmaLike]:
    return list(ema) if isinstance(ema, (list, tuple)) else [ema]  # type: ignore[list-item]


def _values(ema: EmaLike | Sequence[EmaLike]) -> list[Average]:
    found: list[Average] = []
    for item in _listed(ema):
        if isinstance(item, Averages):
            found += item.values()
        elif isinstance(item, Average):
            found.append(item)
        elif isinstance(item, (nn.Module, Mapping)):
            found.append(Average({name: tensor.detach() for name, tensor in tracked_tensors(item).items()}))
        else:
            raise InputError(f"ema: expected progc.EMA, a module or tensors by name, found {type(item).__name__}")
    return found


def _fitted(program: Program, average: Average) -> Average:
    tensors = program.tensors
    given = dict(average.tensors)
    for alias, name in program.tied.items():  # a tied tensor may be given under either name
        known = given.get(name, given.get(alias))
        if known is not None:
            given[alias] = given[name] = known
    missing = [n for n in tensors if n not in given and program.specs[n].kind == "parameter"]
    unknown = [name for name in given if name not in tensors]
    odd = [name for name in given if name in tensors and given[name].shape != tensors[name].shape]
    label = program.class_name.rpartition(".")[2]
    for what, names in (("lacks", missing), ("has the unknown tensor", unknown), ("has another shape for", odd)):
        if names:
            raise InputError(
                f"ema: the average {what} {names[0]} ({len(names)} tensors); expected the tensors of {label}, by name"
            )
    # Copies, since an average may be written to in place.
    return Average(
        {name: given[name] if name in given else tensor.detach().clone() for name, tensor in tensors.items()},
        average.decay,
    )


def moved(averages: Sequence[Average], lift: Lift | None, after: Program, step: str) -> tuple[Average, ...]:
    """Maps averages by the lift of a step.

    Args:
        averages: before the step.
        lift: of the step; None if it changed no tensor.
        after: the program after the step.
        step: its name, for the message.

    Raises:
        VerifyError: the lift does not produce a tensor of `after`.
    """
    return tuple(_moved(average, lift, after, step) for average in averages)


def _moved(average: Average, lift: Lift | None, after: Program, step: str) -> Average:
    grown = dict(average.tensors) if lift is None else lift.apply(average.tensors)
    tensors = {}
    for name, tensor in after.tensors.items():
        found = grown.get(name)
        if found is None and after.specs[name].kind != "parameter":
            found = tensor.detach().clone()  # a constant that the step added
        if found is None or found.shape != tensor.shape:
            raise VerifyError(f"after {step}: the averaged copies cannot follow, because no lift produces `{name}`")
        if isinstance(found, nn.Parameter):  # a new tensor of the lift, a parameter as in the program
            found = found.detach()
        tensors[name] = found
    return dataclasses.replace(average, tensors=tensors)
