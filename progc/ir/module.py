"""A program as an `nn.Module`, with the names and the call signature of the user's class."""

from __future__ import annotations

import itertools
import linecache
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from progc.errors import InputError
from progc.ir.binding import InputBinding
from progc.ir.devices import home_of
from progc.ir.program import MODES, Mode, Program, TensorSpec

_counter = itertools.count()


class ProgramModule(nn.Module):
    """Runs a program.

    Parameters and buffers are registered under the user's dotted names (nested plain modules), so `state_dict`,
    `named_parameters` and checkpoints are those of the user's class. The two
    graphs are compiled to Python functions of this module, so they always see its current tensors. Tensors
    that a graph creates (`arange`, masks) are made on the device of the module's tensors, also after `.to(device)`.

    Raises:
        InputError: the program was captured for its shapes only (`capture_shapes`).
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        if program.graphs["train"] is program.graphs["eval"]:
            raise InputError(
                f"{program.class_name} was captured for its shapes only; use progc.capture for a program that runs"
            )
        program = program.complete()
        register_all(self, program.tensors, program.specs)
        self._anchor = _anchor(program)
        home = home_of(program) if self._anchor else None
        self._binding = InputBinding(program)
        self._out_specs = dict(program.signature.out_specs)
        self._functions: dict[Mode, Callable[..., Any]] = {
            mode: _compile(_device_free(program.graphs[mode], home), mode) for mode in MODES
        }

    @property
    def graph_device(self) -> torch.device:
        """The device of this module's tensors, on which its graphs create theirs."""
        assert self._anchor is not None  # graphs read this only where the program has a tensor
        path, _, leaf = self._anchor.rpartition(".")
        device: torch.device = getattr(self.get_submodule(path), leaf).device
        return device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Takes and returns what the captured module takes and returns.

        Keyword inputs may come in any order, and by position where the user's `forward` allows it.

        Raises:
            InputError: the inputs differ from the captured ones in structure, in the size of a dim that is not dynamic,
                or in the value of a number, string or None.
        """
        leaves = self._binding.flatten(args, kwargs)
        mode: Mode = "train" if self.training else "eval"
        return pytree.tree_unflatten(self._functions[mode](self, *leaves), self._out_specs[mode])


def register_all(root: nn.Module, tensors: Mapping[str, torch.Tensor], specs: Mapping[str, TensorSpec]) -> None:
    made: dict[int, nn.Parameter] = {}  # a lift gives plain tensors; tied names stay one parameter
    for name, tensor in tensors.items():
        module, leaf = _owner(root, name)
        if specs[name].kind != "parameter":
            module.register_buffer(leaf, tensor, persistent=specs[name].persistent)
        elif isinstance(tensor, nn.Parameter):
            module.register_parameter(leaf, tensor)
        else:
            if id(tensor) not in made:
                made[id(tensor)] = nn.Parameter(tensor.detach(), requires_grad=tensor.is_floating_point())
            module.register_parameter(leaf, made[id(tensor)])


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    *path, leaf = name.split(".")
    module = root
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        child = module._modules[part]
        assert child is not None
        module = child
    return module, leaf


def _anchor(program: Program) -> str | None:
    """The tensor whose device stands for the module's: the first parameter, else the first buffer."""
    names = sorted(program.tensors, key=lambda name: program.specs[name].kind != "parameter")
    return names[0] if names else None


def _device_free(graph: fx.Graph, home: torch.device | None) -> fx.Graph:
    """A copy of the graph that reads the module's device wherever it names the device `home`."""
    result = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    output = result.graph_copy(graph, values)
    anchors: list[fx.Node] = []
    for node in list(result.nodes):
        if home is None or node.op != "call_function" or home not in _devices(node):
            continue
        if not anchors:
            first = next(iter(result.nodes))
            with result.inserting_before(first):
                anchors.append(result.get_attr("graph_device"))
        place = anchors[0]
        node.args = _replaced(node.args, home, place)
        node.kwargs = _replaced(node.kwargs, home, place)
    result.output(output)
    return result


def _devices(node: fx.Node) -> set[torch.device]:
    leaves = pytree.tree_leaves((list(node.args), dict(node.kwargs)))
    return {leaf for leaf in leaves if isinstance(leaf, torch.device)}


def _replaced(arguments: Any, home: torch.device, place: fx.Node) -> Any:
    return pytree.tree_map_only(torch.device, lambda device: place if device == home else device, arguments)


def _compile(graph: fx.Graph, mode: Mode) -> Callable[..., Any]:
    """The graph as a Python function `forward(self, *flat_inputs)` that returns a flat list."""
    code = graph.python_code("self")
    filename = f"<progc {mode} graph {next(_counter)}>"
    linecache.cache[filename] = (len(code.src), None, code.src.splitlines(True), filename)
    scope = dict(code.globals)
    exec(compile(code.src, filename, "exec"), scope)  # the source is our own graph
    function: Callable[..., Any] = scope["forward"]
    return function
