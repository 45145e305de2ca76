"""Captures an `nn.Module` as a `Program` with torch.export (docs/adr/0001).

One module object is exported twice, in train and in eval mode, so both graphs share its parameters and buffers. Dim 0
of the tensor inputs is dynamic where the model allows it:

- torch.export fixes a batch size of 1, so an example batch of 1 is repeated to 2 (`Program.example` then has 2);
- if the model's Python code reads the batch size, the program accepts the sizes that take the same branches as the
  example (a limit on the placeholder, checked when the program runs);
- if that range holds no size but the example's, or export fails, the batch size is fixed.

A batch of 1 runs the same graph, so a model with special code for it (`if x.shape[0] == 1`) is not captured faithfully.

Tracing runs the user's `forward`, which may fill caches, count calls or draw random numbers. `restored` undoes all of
that, also when capture fails: training flags, attributes, caches one level deep, and random states. `without_values`
lets torch.export trace a model whose parameters have shapes and no memory.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import inspect
import io
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from progc.capturing.lowering import Lowering
from progc.capturing.refusals import definition_of, explain, refusal
from progc.errors import CaptureError, InputError, first_of
from progc.ir.deferred import defer
from progc.ir.program import MODES, Mode, Program, Signature, TensorSpec
from progc.ir.random_state import kept_random_states
from progc.ranks.agreeing import world

_Inputs = tuple[tuple[Any, ...], dict[str, Any]]
_Range = tuple[int, "int | None"]

# Batch sizes that are tested against the conditions of torch.export for its graph.
_TRIED_BATCHES = 512
_CONTAINERS = (dict, collections.OrderedDict, list, set)
_NOISY_LOGGERS = ("torch.export", "torch.export._trace", "torch.fx.experimental.symbolic_shapes")


def capture(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Program:
    """Captures a model on example inputs, in train and in eval mode.

    Args:
        model: the module. The program shares its parameters and buffers without copying. The module itself is not
            changed (training flags, attributes, random states), also when capture fails.
        args: example positional inputs: tensors, numbers, strings, None, and tuples, lists, dicts and dataclasses of
            them. Values that are not tensors become constants of the program. If the model is on the meta device, the
            inputs are moved there.
        kwargs: example keyword inputs.

    Returns:
        The program.

    Raises:
        CaptureError: torch.export cannot trace the model; the message gives the file, the line and the construct.
    """
    return _capture(model, _inputs(model, args, kwargs), MODES)


def capture_shapes(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Program:
    """Captures the eval graph only, for both modes, in half the time of `capture`.

    This is enough for axes and chains of a target that never runs, best built under `torch.device("meta")`. `module()`
    of such a program raises an error. It is recognised by `graphs["train"] is graphs["eval"]`.

    Raises:
        CaptureError: see `capture`.
    """
    program = _capture(model, _inputs(model, args, kwargs), ("eval",))
    return program.replace(
        graphs=dict.fromkeys(MODES, program.graphs["eval"]),
        signature=dataclasses.replace(
            program.signature, out_specs=dict.fromkeys(MODES, program.signature.out_specs["eval"])
        ),
    )


def capture_deferred(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Program:
    """Captures a model without its weights, for models that may be too large for this machine.

    Passes, analysis and costs work on the program; reading weights (`module()`, weight files) raises an InputError.
    Build the model with `Source.build_skeleton(allocate=False)`: parameters on the meta device, real buffers.

    Raises:
        CaptureError: see `capture`.
    """
    if not isinstance(model, nn.Module):
        return capture(model, args, kwargs)  # its message
    with without_values(model) as deferred:
        program = _capture(model, _inputs(model, args, kwargs), MODES)
        tensors = {name: deferred.get(id(tensor), tensor) for name, tensor in program.tensors.items()}
    return program.replace(tensors=tensors)


def _inputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> _Inputs:
    if not isinstance(model, nn.Module):
        raise CaptureError(f"cannot capture a {type(model).__name__}: expected an instance of torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise refusal(model, None, "is a TorchScript module", "capture the Python module that it was made from")
    if not isinstance(args, (tuple, list)):
        raise CaptureError(f"example inputs: expected a tuple of arguments such as (x,), got a {type(args).__name__}")
    positional, keywords = tuple(args), dict(kwargs or {})
    register_dataclasses((positional, keywords))
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*positional, **keywords)
    except TypeError as error:
        raise refusal(
            model, definition_of(model), f"does not take the example inputs: {error}", "pass the arguments of forward"
        ) from error
    # torch.export takes keyword inputs in the order of forward's signature.
    order = [name for name in signature.parameters if name in keywords]
    keywords = {name: keywords[name] for name in (*order, *(k for k in keywords if k not in order))}
    if any(tensor.is_meta for tensor in model.parameters()):
        positional, keywords = pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), (positional, keywords))
    return positional, keywords


def _capture(model: nn.Module, inputs: _Inputs, modes: tuple[Mode, ...]) -> Program:
    _tell_synced(model)
    batch = next((leaf.shape[0] for leaf in pytree.tree_leaves(inputs) if _has_dims(leaf)), None)
    attempts: list[tuple[_Inputs, bool]] = [(inputs, False)]
    if batch == 1:
        attempts.insert(0, (pytree.tree_map(_twice, inputs), True))
    elif batch is not None:
        attempts.insert(0, (inputs, True))
    failure: Exception | None = None
    for example, dynamic in attempts:
        exported: dict[Mode, Any] = {}
        limits: _Range = (1, None)
        try:
            with restored(model), dataclass_outputs(model), _quiet():
                for mode in modes:
                    model.train(mode == "train")
                    exported[mode] = _export(model, example, dynamic)
        except Exception as error:  # torch.export raises many types; all become one message for the user
            failure = error
            continue
        if dynamic:
            found = _batch_range(exported.values(), 2 if batch == 1 else int(batch or 0))
            if found is None:
                continue
            limits = found
        return _assemble(model, exported, example, limits)
    assert failure is not None
    raise explain(failure, model) from failure


def _export(model: nn.Module, inputs: _Inputs, dynamic: bool) -> Any:
    shapes = None
    if dynamic:
        leaves = [leaf for leaf in pytree.tree_leaves(inputs) if _has_dims(leaf)]
        shapes = torch.export.ShapesCollection()
        for leaf in leaves:
            if leaf.shape[0] == leaves[0].shape[0]:
                shapes[leaf] = {0: torch.export.Dim.AUTO}
    return torch.export.export(model, *inputs, dynamic_shapes=shapes, strict=False)


def _has_dims(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0


def _twice(leaf: Any) -> Any:
    if _has_dims(leaf) and leaf.shape[0] == 1:
        return torch.cat((leaf, leaf)).detach()
    return leaf


def _batch_range(exported: Any, example: int) -> _Range | None:
    """The range of batch sizes around `example` that meet the conditions of tracing; None if only `example` does."""
    conditions: list[str] = []
    for program in exported:
        for text in getattr(program, "_guards_code", None) or ():
            conditions.append(re.sub(r"L\[[^\]]*\](?:\[[^\]]*\]|\.\w+)*?\.size\(\)\[0\]", "batch", text))
    codes = [compile(text, "<batch condition>", "eval") for text in sorted(set(conditions)) if "batch" in text]

    def holds(batch: int) -> bool:
        try:  # the conditions come from torch, over sizes only
            return all(eval(code, {"__builtins__": {}}, {"batch": batch}) for code in codes)
        except (NameError, ZeroDivisionError, TypeError):
            return False

    if not codes:
        return 1, None
    if not holds(example):
        return None
    low = high = example
    while low > 1 and holds(low - 1):
        low -= 1
    while high < _TRIED_BATCHES and holds(high + 1):
        high += 1
    if low == high:
        return None
    return low, None if high == _TRIED_BATCHES else high


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the warnings, logs and partial graphs of torch.export; prints of the user's code are kept."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    before = [logger.disabled for logger in loggers]
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.disabled = True
            yield
        sys.stderr.write(said.getvalue())  # left out on failure, when it is torch's dump of the partial graph
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def _fixed(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() and not parameter.requires_grad


def _assemble(model: nn.Module, exported: Mapping[Mode, Any], inputs: _Inputs, limits: _Range) -> Program:
    tensors: dict[str, torch.Tensor] = {}
    specs: dict[str, TensorSpec] = {}
    persistent = set(model.state_dict(keep_vars=True))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tensors[name], specs[name] = parameter, TensorSpec("parameter", fixed=_fixed(parameter))
    for name, buffer in model.named_buffers(remove_duplicate=False):
        tensors[name], specs[name] = buffer, TensorSpec("buffer", name in persistent)
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in tensors.items():
        canonical = first.setdefault(id(tensor), name)
        if canonical != name:
            tied[name] = canonical

    lowering = Lowering(model, tensors, specs, tied)
    graphs = {mode: lowering.graph(program, mode) for mode, program in exported.items()}
    leaves, in_spec = pytree.tree_flatten(inputs)
    batched: list[bool] = []
    arguments = _argument_of_leaves(model, inputs)
    for graph in graphs.values():
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        batched = [node.meta.pop("batch_dynamic") for node in placeholders]
        for node, dynamic, argument in zip(placeholders, batched, arguments, strict=True):
            node.meta["argument"] = argument
            if dynamic:
                node.meta["batch_range"] = limits
    return Program(
        graphs=graphs,
        tensors=tensors,
        specs=specs,
        tied=tied,
        signature=Signature(
            in_spec=in_spec,
            out_specs={mode: program.call_spec.out_spec for mode, program in exported.items()},
            shapes=tuple(tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else None for leaf in leaves),
            batch_dims=tuple(batched),
        ),
        example=inputs,
        class_name=_class_name(type(model)),
        synced=_synced(model),
    )


def _synced(model: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, part in model.named_modules() if isinstance(part, nn.SyncBatchNorm))


def _tell_synced(model: nn.Module) -> None:
    """Refuses layers with statistics over all processes if there are several, and otherwise says how they are captured.

    In one process they compute what batch norms do, and that is what their graph shows.
    """
    names = _synced(model)
    if not names:
        return
    shown = first_of([name or "itself" for name in names])
    if world() > 1:
        raise refusal(
            model, None, f"takes statistics over all {world()} processes (SyncBatchNorm: {shown})",
            "train in one process, or use BatchNorm layers, with statistics of each process, or GroupNorm",
        )  # fmt: skip
    logging.getLogger(__name__).warning(
        "progc: %s: SyncBatchNorm is captured as batch norm, which is the same in one process; several processes "
        "cannot train the captured network", first_of([name or type(model).__name__ for name in names]),
    )  # fmt: skip


def _argument_of_leaves(model: nn.Module, inputs: _Inputs) -> list[tuple[str, int]]:
    """The parameter of `forward` that each flat input belongs to: `(name, position)`; -1 for keyword-only ones."""
    kinds = inspect.Parameter
    positions: dict[str, int] = {}
    for index, parameter in enumerate(inspect.signature(model.forward).parameters.values()):
        if parameter.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD):
            positions[parameter.name] = index
    names = list(positions)
    owners: list[tuple[str, int]] = []
    for index, value in enumerate(inputs[0]):
        name = names[index] if index < len(names) else ""  # "": in *args, without a name
        owners += [(name, index)] * len(pytree.tree_leaves(value))
    for name, value in inputs[1].items():
        owners += [(name, positions.get(name, -1))] * len(pytree.tree_leaves(value))
    return owners


def _class_name(kind: type) -> str:
    """The qualified class name; without its module if that has a private name (a user's file, loaded by path)."""
    hidden = kind.__module__.startswith("_") or kind.__module__ == "builtins"
    return kind.__qualname__ if hidden else f"{kind.__module__}.{kind.__qualname__}"


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Restores the attributes of `model` and the random states of torch, numpy and Python on exit."""
    attributes = {module: dict(module.__dict__) for module in model.modules()}
    contents: dict[int, tuple[Any, Any]] = {}
    for values in attributes.values():
        for value in values.values():
            if type(value) in _CONTAINERS:
                contents[id(value)] = value, type(value)(value)
    try:
        with kept_random_states(), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, values in attributes.items():
            module.__dict__.clear()
            module.__dict__.update(values)
        for container, before in contents.values():
            container.clear()
            container.extend(before) if isinstance(container, list) else container.update(before)


@contextlib.contextmanager
def dataclass_outputs(model: nn.Module) -> Iterator[None]:
    """Registers the dataclasses that a model returns as pytree nodes, when it returns them.

    The registration is global and permanent: the captured program returns the same class.
    """

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        register_dataclasses(output)

    handle = model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def register_dataclasses(tree: Any) -> None:
    """Registers every dataclass in `tree` as a pytree node, unless it is one already."""
    while True:
        instances = (leaf for leaf in pytree.tree_leaves(tree) if not isinstance(leaf, type))
        kinds = {type(leaf) for leaf in instances if dataclasses.is_dataclass(leaf)}
        if not kinds:
            return
        for kind in kinds:  # a registered class is not a leaf any more, so the next turn looks at its fields
            torch.export.register_dataclass(kind)


@contextlib.contextmanager
def without_values(model: nn.Module) -> Iterator[dict[int, torch.Tensor]]:
    """Replaces the trainable parameters of a model by fake tensors on the device of the buffers, and restores them.

    Yields:
        The deferred tensor for each fake parameter, by its id; computing the values raises an InputError.

    Raises:
        CaptureError: a buffer is on the meta device; analysis reads buffers.
    """
    for name, buffer in model.named_buffers():
        if buffer.is_meta:
            raise CaptureError(
                f"buffer {name} of {type(model).__qualname__} is on the meta device, but analysis reads its "
                "values; build the model with progc.models.skeleton.build_skeleton(build, allocate=False)"
            )
    device = next((buffer.device for buffer in model.buffers()), torch.device("cpu"))
    # torch.export takes over the mode of its inputs, so the mode has to support symbolic batch sizes.
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    before: list[tuple[dict[str, nn.Parameter | None], str, nn.Parameter]] = []
    fakes: dict[int, nn.Parameter] = {}
    twins: dict[int, torch.Tensor] = {}
    refuse = _refusing(type(model).__qualname__)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not (parameter.is_meta or parameter.requires_grad):
                continue  # one that does not train keeps its values, such as a computed table
            before.append((module._parameters, name, parameter))
            if id(parameter) not in fakes:
                fake = _faked(parameter, mode, device)
                fakes[id(parameter)] = fake
                twins[id(fake)] = defer(refuse, fake)
    try:
        for slots, name, parameter in before:
            slots[name] = fakes[id(parameter)]
        yield twins
    finally:
        for slots, name, parameter in before:
            slots[name] = parameter


def _faked(parameter: nn.Parameter, mode: FakeTensorMode, device: torch.device) -> nn.Parameter:
    where = device if parameter.is_meta else parameter.device
    empty = torch.empty_strided(parameter.shape, parameter.stride(), dtype=parameter.dtype, device="meta")
    return nn.Parameter(FakeTensor(mode, empty, where), requires_grad=parameter.requires_grad)


def _refusing(name: str) -> Callable[[], torch.Tensor]:
    def make() -> torch.Tensor:
        raise InputError(f"{name} was captured without its weights, to plan only; use progc.capture to run it")

    return make
