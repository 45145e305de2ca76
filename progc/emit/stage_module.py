"""Makes a program a module for training: an outer graph that calls one region per block.

Tensors have the names of the user's module, as in `ProgramModule`. A block whose tensors are all below one module path
is called through the module of that path, so that hooks on it (those of FSDP, for example) see its forward. Equal
blocks share one compiled function, so compile time does not grow with depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from progc.emit.pieces import Piece, cut
from progc.emit.region import Call, Region, Regions, as_function
from progc.errors import InputError
from progc.ir.binding import InputBinding
from progc.ir.module import register_all
from progc.ir.program import MODES, Mode, Program

How = Literal["regions", "whole", "eager"]
Compiler = Callable[..., Callable[..., Any]]
HOWS: tuple[How, ...] = ("regions", "whole", "eager")


class StageBlock(nn.Module):
    """The module at a block's path: runs the block's region with its own tensors."""

    def run_with(self, mode: Mode, function: Callable[..., Any], own: dict[int, str], count: int, again: bool) -> None:
        """Sets how the region is called.

        Args:
            mode: the graph.
            function: the region.
            own: which of its `count` tensor arguments belong to this module: position to name below it.
            count: number of tensor arguments.
            again: whether the backward recomputes activations instead of keeping them.
        """
        owners = {place: _owner_of(self, name) for place, name in own.items()}
        self.__dict__.setdefault("_runs", {})[mode] = (function, owners, count, again)

    def forward(self, mode: Mode, values: tuple[Any, ...], foreign: tuple[torch.Tensor, ...], rates: Any) -> Any:
        """Returns the values of the block's exits.

        Args:
            mode: the graph.
            values: the entries.
            foreign: tensors that are not below this module, in order.
            rates: 0-d tensors.
        """
        function, owners, count, again = self.__dict__["_runs"][mode]
        others = iter(foreign)
        tensors = [getattr(*owners[place]) if place in owners else next(others) for place in range(count)]
        if again and torch.is_grad_enabled():
            # Reentrant checkpointing gives no gradient to a block whose inputs need none, as after a frozen stem.
            parameters = [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]
            function = _written_once(function, len(values), tensors)
            return checkpoint(function, *values, *parameters, *rates, use_reentrant=False)
        return function(*values, *tensors, *rates)


def _written_once(function: Callable[..., Any], start: int, tensors: list[torch.Tensor]) -> Callable[..., Any]:
    """Wraps the function without its buffer arguments; a recomputing call sees the buffers as they were before.

    Running statistics are updated once, by the first call.

    Args:
        start: index of the first tensor argument.
    """
    buffers = {start + k: tensor for k, tensor in enumerate(tensors) if not isinstance(tensor, nn.Parameter)}
    if not buffers:
        return function
    before = {place: tensor.clone() for place, tensor in buffers.items()}
    first = [True]

    def run(*given: Any) -> Any:
        arguments = list(given)
        for place, tensor in buffers.items():
            arguments.insert(place, tensor if first[0] else before[place].clone())
        first[0] = False
        return function(*arguments)

    return run


def _step(
    mode: Mode, unit: str | None, function: Callable[..., Any], names: tuple[str, ...], numbers: tuple[float, ...]
) -> Callable[..., Any]:
    """One call of the outer graph. It holds no reference to a module: a copied StageModule runs on its own tensors."""

    def step(root: StageModule, *values: Any) -> Any:
        owners = root._owners
        tensors = tuple(getattr(*owners[name]) for name in names)
        rates = root._given(numbers, (*values, *tensors))
        if unit is not None:
            return root.__dict__["_blocks"][unit](mode, values, tensors, rates)
        return function(*values, *tensors, *rates)

    return step


class StageModule(nn.Module):
    """Runs the graphs of a program piece by piece; made by `emit`.

    Its attributes have the names of the user's modules, so it has no public ones of its own: see `unit_paths`,
    `regions`.
    """

    def __init__(
        self,
        program: Program,
        how: How,
        recompute: bool,
        compiled: tuple[Mode, ...],
        options: dict[str, Any],
        compiler: Compiler = torch.compile,
        hollow: bool = False,
    ) -> None:
        super().__init__()
        program = program if hollow else program.complete()
        pieces = {mode: cut(program, mode) if how != "whole" else [_whole(program, mode)] for mode in MODES}
        register_all(self, program.tensors, program.specs)
        self._units = tuple(blocks_of(program, pieces["train"]))
        blocks: dict[str, StageBlock] = {}
        for path in self._units:
            block = self.get_submodule(path)
            block.__class__ = StageBlock  # registered before, in the program's order, which optimizers use
            assert isinstance(block, StageBlock)
            blocks[path] = block
        self.__dict__["_blocks"] = blocks
        self._owners = {name: _owner_of(self, name) for name in program.tensors}
        self._binding = InputBinding(program)
        self._out_specs = dict(program.signature.out_specs)
        self._held: dict[tuple[int, float, torch.device], torch.Tensor] = {}
        self._calls: dict[Mode, list[Call]] = {}
        self._options = options
        self._run: dict[Mode, Callable[..., Any]] = {}
        for mode in MODES:
            regions = Regions(program, mode, lift_rates=how != "eager")
            learns = learning(program, mode)
            own = [regions.call(piece, learns) for piece in pieces[mode]]
            as_it_is = how == "eager" or mode not in compiled
            functions = {
                key: region.function if as_it_is or not region.computes else compiler(region.function, **options)
                for key, region in regions.by_key.items()
            }
            self._calls[mode] = own
            self._run[mode] = self._outer(program, mode, own, functions, recompute)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Takes and returns what the captured module does.

        Raises:
            InputError: as for `ProgramModule.forward`.
        """
        leaves = self._binding.flatten(args, kwargs)
        mode: Mode = "train" if self.training else "eval"
        return pytree.tree_unflatten(self._run[mode](self, *leaves), self._out_specs[mode])

    def _outer(
        self,
        program: Program,
        mode: Mode,
        calls: list[Call],
        compiled: dict[str, Callable[..., Any]],
        recompute: bool,
    ) -> Callable[..., Any]:
        graph = fx.Graph()
        root = graph.placeholder("root")
        env: dict[fx.Node, Any] = {}
        for node in program.graphs[mode].nodes:
            if node.op == "placeholder":
                env[node] = graph.placeholder(node.name)
        for call in calls:
            step = self._call(call, mode, compiled[call.region.key], recompute)
            out = graph.call_function(step, (root, *(env[node] for node in call.values)))
            for place, node in enumerate(call.exits):
                env[node] = graph.call_function(_item, (out, place))
        output = next(node for node in program.graphs[mode].nodes if node.op == "output")
        for node in output.all_input_nodes:
            if node.op == "get_attr":
                env[node] = graph.call_function(_tensor, (root, str(node.target)))
        graph.output(fx.node.map_arg(output.args[0], lambda n: env[n]))
        return as_function(graph)

    def _call(self, call: Call, mode: Mode, function: Callable[..., Any], recompute: bool) -> Callable[..., Any]:
        label = call.piece.label
        if label is None or label not in self._units:
            return _step(mode, None, function, call.tensors, call.rates)
        below = {i: name[len(label) + 1 :] for i, name in enumerate(call.tensors) if name.startswith(f"{label}.")}
        self.__dict__["_blocks"][label].run_with(mode, function, below, len(call.tensors), recompute)
        foreign = tuple(name for i, name in enumerate(call.tensors) if i not in below)
        return _step(mode, label, function, foreign, call.rates)

    def _given(self, numbers: tuple[float, ...], near: tuple[Any, ...]) -> list[torch.Tensor]:
        """The rates as tensors, on the device of the piece."""
        if not numbers:
            return []
        device = next((value.device for value in near if isinstance(value, torch.Tensor)), torch.device("cpu"))
        # One tensor per argument: if two were the same object, another graph would be compiled.
        keys = [(place, number, device) for place, number in enumerate(numbers)]
        for key in keys:
            if key not in self._held:
                self._held[key] = torch.full((), key[1], device=device)  # unlike a copy, it does not wait
        return [self._held[key] for key in keys]


def emit(
    program: Program,
    how: How = "regions",
    *,
    recompute: bool = False,
    modes: tuple[Mode, ...] = MODES,
    compiler: Compiler = torch.compile,
    hollow: bool = False,
    **options: Any,
) -> StageModule:
    """Returns a module that trains a program.

    Args:
        program: the program.
        how: `regions`: one compiled function for all equal blocks. `whole`: the graph as one compiled function.
            `eager`: not compiled, bitwise equal to `program.module()`.
        recompute: blocks that are modules keep no activations; the backward computes them again (activation
            checkpointing, not reentrant).
        modes: the modes whose graphs are compiled. Validation has incomplete batches, each of which would compile
            again.
        compiler: called in place of `torch.compile`, with the same arguments.
        hollow: keep deferred tensors. The module shows what will be compiled, and cannot run.
        options: options of `torch.compile`; by default `fullgraph=True` and `dynamic=False`.

    Raises:
        InputError: an unknown `how`, or the program was captured for its shapes only.
    """
    if how not in HOWS:
        raise InputError(f"emit: how={how!r}: expected one of {', '.join(HOWS)}")
    if program.graphs["train"] is program.graphs["eval"]:
        raise InputError(
            f"{program.class_name} was captured for its shapes only, and cannot run; capture it with progc.capture"
        )
    unsafe = getattr(torch.compiler, "skip_guard_on_all_nn_modules_unsafe", None)
    if unsafe is not None and (options.get("options") or {}).get("guard_filter_fn") is unsafe:
        raise InputError(
            "emit: with guard_filter_fn=skip_guard_on_all_nn_modules_unsafe a layer that is unfrozen "
            "later gets no gradient; compile without this option"
        )
    return StageModule(
        program, how, recompute, modes, {"fullgraph": True, "dynamic": False, **options}, compiler, hollow
    )


def unit_paths(module: nn.Module) -> tuple[str, ...]:
    """Returns the paths of submodules that are called block by block, for FSDP and activation checkpointing.

    A module that is not cut into blocks, such as a supernet, has none.
    """
    return module._units if isinstance(module, StageModule) else ()


def regions(module: StageModule, mode: Mode) -> dict[str, Region]:
    """Returns the distinct regions of a mode by key; a run at one batch size compiles each of them once."""
    return {call.region.key: call.region for call in module._calls[mode] if call.region.computes}


def calls(module: StageModule, mode: Mode) -> list[Call]:
    """Returns the calls of a mode's graph in order."""
    return list(module._calls[mode])


def settings(module: StageModule) -> dict[str, Any]:
    """Returns the options of `torch.compile` of the module's regions."""
    return dict(module._options)


def learning(program: Program, mode: Mode) -> set[fx.Node]:
    """Returns the nodes whose value depends on a tensor that trains."""
    found: set[fx.Node] = set()
    for node in program.graphs[mode].nodes:
        if node.op == "get_attr":
            if program.tensors[str(node.target)].requires_grad:
                found.add(node)
        elif any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _whole(program: Program, mode: Mode) -> Piece:
    return Piece(None, tuple(node for node in program.graphs[mode].nodes if node.op == "call_function"))


def blocks_of(program: Program, pieces: list[Piece]) -> list[str]:
    """Returns labels of pieces that are module paths whose tensors only that piece reads."""
    readers: dict[str, set[str | None]] = {}
    for piece in pieces:
        for node in piece.nodes:
            for source in node.all_input_nodes:
                if source.op == "get_attr":
                    readers.setdefault(str(source.target), set()).add(piece.label)
    found = []
    for piece in pieces:
        below = [name for name in program.tensors if piece.label is not None and name.startswith(f"{piece.label}.")]
        alone = all(readers.get(program.tied.get(name, name), {piece.label}) == {piece.label} for name in below)
        if piece.label is not None and below and alone:
            found.append(piece.label)
    return found


def _owner_of(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return root.get_submodule(path), leaf


def _tensor(root: StageModule, name: str) -> torch.Tensor:
    tensor: torch.Tensor = getattr(*root._owners[name])
    return tensor


def _item(values: Any, place: int) -> Any:
    return values[place]
