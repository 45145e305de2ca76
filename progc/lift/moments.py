"""Maps optimizer moments by the lift.

Growth that preserves the function determines how gradients change: if g is the gradient of an old entry, every copy of
it has the gradient b * g. A producer's rows are consumed downstream in equal shares, so b is 1 / (number of copies). A
dim that contracts copies leaves gradients unchanged. An entry that was multiplied by s has b = 1/s (docs/growth.md
3.1). First moments scale like g, second moments like its square; step counts stay. Noisy shares are mapped by their
mean, an error that decays. A tensor that shrinks keeps the moments of its remaining units.

New entries start with m = 0 and the mean of the mapped v: with v = 0 and an old step count, Adam's first updates would
be several times too large (docs/growth.md 3.2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from progc.errors import InputError

if TYPE_CHECKING:
    from progc.lift.entry import TensorLift
    from progc.lift.resampling import Resample

State = Mapping[str, Mapping[str, Any]]
"""Optimizer state by parameter name: `{"head.weight": {"step": ..., "exp_avg": ..., "exp_avg_sq": ...}}`."""


@dataclasses.dataclass(frozen=True)
class _Moment:
    """How an entry of the state scales with the gradient: g ** power; `size` entries are never negative."""

    power: int
    size: bool


MOMENTS = {
    "exp_avg": _Moment(1, False),  # Adam, AdamW, NAdam, RAdam, Adamax, Lion
    "exp_avg_sq": _Moment(2, True),
    "max_exp_avg_sq": _Moment(2, True),  # amsgrad
    "exp_inf": _Moment(1, True),  # Adamax
    "momentum_buffer": _Moment(1, False),  # SGD, Muon
    "square_avg": _Moment(2, True),  # RMSprop, Adadelta
    "grad_avg": _Moment(1, False),  # centred RMSprop
    "sum": _Moment(2, True),  # Adagrad
    "variance": _Moment(2, True),  # Adafactor, of vectors
    "exp_avg_var": _Moment(2, True),  # AdaBelief
    "max_exp_avg_var": _Moment(2, True),
    "exp_avg_diff": _Moment(1, False),  # Adan
    "neg_pre_grad": _Moment(1, False),
}

_ROWS, _COLUMNS = "row_var", "col_var"
"""Adafactor's factored second moment of a matrix: means over the last dim, and over the one before it (of size 1)."""

_NORMALISED = _Moment(0, False)
"""RMSprop's momentum averages g / sqrt(v), which growth does not change."""


@dataclasses.dataclass(frozen=True)
class DimLaw:
    """The effect of a lift along one dim of a tensor, as vectors over the grown dim.

    The factors of an entry of the tensor are the products over its dims.

    Attributes:
        index: int64, the old unit of each new one; None if the dim does not grow.
        weight: float64, the ratio of an entry to its source (the mean share, times scales).
        gradient: float64, the ratio of the gradients; 1 where `reset` is set.
        reset: bool, units whose gradient has no history: fresh units, and units that were multiplied by 0.
    """

    index: torch.Tensor | None
    weight: torch.Tensor
    gradient: torch.Tensor
    reset: torch.Tensor


def dim_laws(entry: TensorLift) -> dict[int, DimLaw]:
    """Returns the laws of one tensor by dim, for the dims that change."""
    scaled = {scale.dim for scale in entry.scales if not entry.storage}
    grown = {dim for dim, index_map in enumerate(entry.dims) if index_map is not None and not index_map.unchanged}
    return {dim: _dim_law(entry, dim, dim in grown) for dim in sorted(scaled | grown)}


def _dim_law(entry: TensorLift, dim: int, grows: bool) -> DimLaw:
    index = reset = None
    size = next((len(scale.values) for scale in entry.scales if scale.dim == dim), 0)
    copies = torch.ones(size, dtype=torch.float64)
    weight = torch.ones(size, dtype=torch.float64)
    if grows:
        index_map = entry.dims[dim]
        assert index_map is not None
        index, reset, copies = index_map.index(), index_map.fresh(), index_map.counts().double()
        weight = torch.ones(len(index), dtype=torch.float64)
        for split in entry.splits:
            over = split.over if split.over is not None else index_map
            if split.dim == dim:
                shared = ~over.fresh()
                if split.where is not None:
                    shared &= torch.tensor(split.where)[index]
                weight = torch.where(shared, weight / over.counts().double(), weight)
    # Summed over its copies, weight times gradient is the old gradient: the chain rule.
    gradient = 1.0 / (copies * weight)
    reset = torch.zeros(len(copies), dtype=torch.bool) if reset is None else reset
    for scale in () if entry.storage else entry.scales:  # a sub-network computes another function: no scaling
        if scale.dim == dim:
            values = torch.tensor(scale.values, dtype=torch.float64)
            values = values if index is None else values[index]
            weight, gradient, reset = weight * values, gradient / values, reset | (values == 0)
    return DimLaw(index, weight, torch.where(reset, 1.0, gradient), reset)


def grow_moments(tensors: Iterable[TensorLift], removed: Collection[str], state: State) -> dict[str, dict[str, Any]]:
    """Returns the optimizer state of the grown program; `Lift.moments` calls this.

    Args:
        tensors: the entries of the lift.
        removed: names that do not exist any more.
        state: the state by parameter name before growth. Parameters without state (frozen ones) may be missing.

    Returns:
        The state by parameter name after growth; shares no memory with `state`. Inserted blocks have m = 0, and v of
        the tensor they are copied from. Entries that do not have the shape of the parameter are copied unchanged.

    Raises:
        InputError: a parameter that changes has a state entry of its shape that is not a known moment.
    """
    entries = {entry.name: entry for entry in tensors}
    grown = {
        name: {key: _copy(value) for key, value in own.items()}
        for name, own in state.items()
        if name not in entries and name not in removed
    }
    for name, entry in entries.items():
        if entry.source in state:
            own = state[entry.source]
            for step in entry.steps:
                own = _grown_state(step, own)
            grown[name] = dict(own)
    return grown


def _grown_state(entry: TensorLift, own: Mapping[str, Any]) -> dict[str, Any]:
    new = entry.fresh or entry.fill is not None or (entry.init == "random" and not any(entry.dims))
    laws = dim_laws(entry)
    if laws:
        refuse_lists(entry.source, own)
    known = [value.shape for key, value in own.items() if key in MOMENTS and isinstance(value, torch.Tensor)]
    grown: dict[str, Any] = {}
    for key, value in own.items():
        if key in (_ROWS, _COLUMNS) and {_ROWS, _COLUMNS} <= own.keys():
            continue
        moment = MOMENTS.get(key)
        if key == "momentum_buffer" and "square_avg" in own:
            moment = _NORMALISED
        if key == "step" or not isinstance(value, torch.Tensor) or not (new or laws or entry.resample):
            grown[key] = _copy(value)
        elif moment is not None and entry.resample is not None:
            grown[key] = _resampled_moment(value, entry.resample, moment)
        elif moment is not None:
            grown[key] = _grown_moment(value, laws, moment, new)
        elif value.dim() and (value.shape == known[0] if known else _fits(value, laws)):
            raise InputError(
                f"optimizer state `{key}` of {entry.source}: expected one of {', '.join(sorted(MOMENTS))}; remove it, "
                "or create a new optimizer"
            )
        else:
            grown[key] = _copy(value)
    if {_ROWS, _COLUMNS} <= own.keys():
        grown.update(_grown_factors(own[_ROWS], own[_COLUMNS], laws, new))
    return grown


def refuse_lists(name: str, own: Mapping[str, Any]) -> None:
    """Raises an InputError for a state with lists of tensors: how these relate to the parameter is unknown."""
    for key, value in own.items():
        if isinstance(value, (list, tuple)) and any(isinstance(item, torch.Tensor) for item in value):
            raise InputError(
                f"optimizer state `{key}` of {name} is a list of tensors, which growth cannot map; clear "
                "optimizer.state before growing"
            )


def _grown_factors(
    rows: torch.Tensor, columns: torch.Tensor, laws: Mapping[int, DimLaw], new: bool
) -> dict[str, torch.Tensor]:
    """Maps Adafactor's factors through the second moment that they represent: both have rank 1, before and after."""
    if not laws:
        return {_ROWS: _copy(rows), _COLUMNS: _copy(columns)}
    mean = rows.mean(-2, keepdim=True)
    whole = torch.where(mean > 0, rows * columns / mean, 0.0)
    grown = _grown_moment(whole, laws, _Moment(2, True), new)
    return {_ROWS: grown.mean(-1, keepdim=True), _COLUMNS: grown.mean(-2, keepdim=True)}


def _grown_moment(value: torch.Tensor, laws: Mapping[int, DimLaw], moment: _Moment, new: bool) -> torch.Tensor:
    shape = value.shape
    dtype = value.dtype if value.dtype.itemsize >= 4 else torch.float32  # b ** 2 would be too small for f16
    result = value.detach().to(dtype, copy=True).reshape(shape or (1,))
    reset = torch.full((1,) * result.dim(), new, dtype=torch.bool, device=value.device)
    for dim, law in laws.items():
        along = [1] * result.dim()
        along[dim] = -1
        if law.index is not None:
            result = result.index_select(dim, law.index.to(value.device))
        if not new:  # the gradient of a new tensor has no known relation to its source's
            result = result * (law.gradient**moment.power).to(value.device, dtype).reshape(along)
            reset = reset | law.reset.to(value.device).reshape(along)
    if not moment.size:
        result = torch.where(reset, 0.0, result)
    elif not new and bool(reset.any()):
        reset = reset.expand(result.shape)
        past = result if bool(reset.all()) else result[~reset]
        result = torch.where(reset, past.mean(), result)
    return result.reshape(result.shape if shape else ()).to(value.dtype)


def _resampled_moment(value: torch.Tensor, resample: Resample, moment: _Moment) -> torch.Tensor:
    """Resamples a moment like the values; second moments stay at least as large as the smallest old one.

    A recomputed table has no history: first moments start at 0, second moments at their mean.
    """
    if not resample.linear:
        start = value.double().mean().to(value.dtype) if moment.size else value.new_zeros(())
        return start.expand(resample.shape).clone()
    mapped = resample.apply(value)
    return mapped.clamp_min(value.min()) if moment.size else mapped  # bicubic weights may be negative


def _fits(value: torch.Tensor, laws: Mapping[int, DimLaw]) -> bool:
    """Whether an unknown state entry may have the parameter's shape: it is large enough along every dim that grows."""
    return all(
        dim < value.dim() and (law.index is None or int(law.index.max()) < value.shape[dim])
        for dim, law in laws.items()
    )


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def optimizer_state_by_name(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, torch.Tensor]]
) -> dict[str, dict[str, Any]]:
    """Returns the state of a torch optimizer by parameter name; the tensors are not copied.

    Args:
        optimizer: the optimizer.
        named_parameters: `module.named_parameters()`; parameters without state are left out.
    """
    state = optimizer.state
    return {name: dict(state[tensor]) for name, tensor in named_parameters if tensor in state}


def load_state_by_name(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, torch.Tensor]], state: State
) -> None:
    """Loads state by parameter name into an optimizer; tensors are copied.

    Args:
        optimizer: an optimizer over these parameters.
        named_parameters: of the module that the optimizer trains; with `remove_duplicate=False` if `state` also has
            aliases of tied parameters.
        state: the result of `optimizer_state_by_name` or `Lift.moments`.

    Raises:
        InputError: the optimizer does not train a parameter of this name, or a moment does not have its shape.
    """
    named = dict(named_parameters)
    trained = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
    for name, own in state.items():
        parameter = named.get(name)
        if parameter is None or id(parameter) not in trained:
            raise InputError(
                f"optimizer state for {name}: expected a parameter that the optimizer trains; leave it out"
            )
        for key, value in own.items():
            if key in MOMENTS and isinstance(value, torch.Tensor) and value.shape != parameter.shape:
                raise InputError(
                    f"optimizer state `{key}` of {name}: expected shape {list(parameter.shape)}, found "
                    f"{list(value.shape)}; map it with `plan.moments`"
                )
    for name, own in state.items():
        device = named[name].device
        optimizer.state[named[name]] = {
            # Step counts stay on their device: torch keeps them on the CPU by default.
            key: _copy(value.to(device) if key in MOMENTS and isinstance(value, torch.Tensor) else value)
            for key, value in own.items()
        }
