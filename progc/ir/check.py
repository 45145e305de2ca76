"""The float64 check: measures how far two programs are from computing the same function.

Both programs are interpreted node by node in float64 on the same inputs. Memory stays small: a parameter is converted
when its node is reached and freed after its last use, so no float64 copy of a model ever exists. Neither program is
written to: in-place operations act on copies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from progc.errors import CheckError, InputError, one_line
from progc.ir.deferred import values
from progc.ir.devices import placed
from progc.ir.notation import call_text, tensor_text
from progc.ir.program import Mode, Program
from progc.ir.random_state import seeded

_WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}
# Arguments that make a random operation deterministic.
_CERTAIN: Mapping[str, Callable[[Any], bool]] = {
    "train": lambda value: value is False,
    "training": lambda value: value is False,
    "p": lambda value: value in (0.0, 1.0),
    "dropout": lambda value: value == 0.0,
    "dropout_p": lambda value: value == 0.0,
}


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much the outputs of two programs differ.

    Attributes:
        max_abs: largest |a - b| over all floating-point outputs; inf if one is not finite.
        max_rel: largest max |a - b| / max |a| over the outputs, where a is the first program (relative to 1 where a is
            zero everywhere); inf if one is not finite.
        finite: False if an output of either program holds NaN or infinity.
        silent: True if an output of the first program is zero everywhere, which hides differences in what feeds it.
    """

    max_abs: float
    max_rel: float
    finite: bool
    silent: bool = False


def compare(before: Program, after: Program, *, seed: int, batch: int | None = None) -> Difference:
    """Compares two programs in eval mode, in float64.

    Args:
        before, after: the programs.
        seed: seed of the inputs: floating-point ones are drawn from N(0, 1) in the example's shape, others are the
            example's.
        batch: batch size where it is dynamic; by default 1, or the example's if the network does not run on 1 sample.

    Raises:
        CheckError: a program fails to run, outputs differ in number or shape, or none is floating-point.
    """
    if batch is not None:
        return _compare(before, after, seed, batch)
    try:
        return _compare(before, after, seed, 1)
    except CheckError:  # some networks cannot take a single sample; the example is known to work
        return _compare(before, after, seed, None)


def _compare(before: Program, after: Program, seed: int, batch: int | None) -> Difference:
    inputs = example_inputs(before, seed, batch)
    first, _ = run_float64(before, "eval", inputs, seed)
    second, _ = run_float64(after, "eval", [*inputs, *_further(after, len(inputs), seed, batch)], seed)
    return _difference(first, second)


def _further(program: Program, known: int, seed: int, batch: int | None) -> list[Any]:
    """Inputs that a pass appended, such as the stage."""
    return example_inputs(program, seed, batch)[known:]


def compare_train(
    before: Program,
    after: Program,
    *,
    seed: int,
    batch: int | None = None,
    buffers: Mapping[str, str] | None = None,
) -> Difference:
    """Compares two programs in train mode, in float64: outputs, and buffers after the step (BatchNorm statistics).

    Args:
        before, after: the programs.
        seed: see `compare`.
        batch: batch size where it is dynamic; by default the example's, since BatchNorm may need several samples.
        buffers: the buffers to compare, name in `after` to name in `before`; by default all that both have in the
            same shape.

    Raises:
        InputError: a train graph draws random numbers, so the programs cannot be compared; the message gives the node.
        CheckError: see `compare`.
    """
    for program in (before, after):
        for node in stochastic(program.graphs["train"]):
            raise InputError(
                f"cannot compare in train mode: node `{node.name}`, {call_text(node)}, draws random numbers; "
                "build the model without dropout or drop-path"
            )
    inputs = example_inputs(before, seed, batch)
    first, old = run_float64(before, "train", inputs, seed)
    second, new = run_float64(after, "train", [*inputs, *_further(after, len(inputs), seed, batch)], seed)
    if buffers is None:
        buffers = {name: name for name in new if name in old and old[name].shape == new[name].shape}
    pairs = [(old[source], new[name]) for name, source in buffers.items()]
    return _difference([*first, *(a for a, _ in pairs)], [*second, *(b for _, b in pairs)])


def example_inputs(program: Program, seed: int, batch: int | None = None) -> list[Any]:
    """Returns flat inputs for `run_float64`: floating-point ones float64 from N(0, 1), others as in the example.

    `batch` replaces the size of dim 0 where it is dynamic (a larger one repeats integer samples).
    """
    generator = torch.Generator().manual_seed(seed)
    inputs: list[Any] = []
    for leaf, dynamic in zip(program.flat_example(), program.signature.batch_dims, strict=True):
        if not isinstance(leaf, torch.Tensor):
            inputs.append(leaf)
            continue
        size = batch if dynamic and batch is not None else (leaf.shape[0] if leaf.dim() else 0)
        if leaf.is_floating_point():
            drawn = torch.randn(leaf.shape and (size, *leaf.shape[1:]), generator=generator, dtype=torch.float64)
            inputs.append(drawn.to(leaf.device))
        else:
            inputs.append(leaf[torch.arange(size, device=leaf.device) % leaf.shape[0]] if size else leaf)
    return inputs


def run_float64(
    program: Program, mode: Mode, inputs: list[Any], seed: int = 0
) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """Runs one graph in float64 without changing the program.

    Args:
        program: the program.
        mode: "train" or "eval".
        inputs: flat, in the order of the placeholders.
        seed: seed of the global random generators during the run; their states are restored afterwards.

    Returns:
        The flat outputs, and the buffers that the graph reads, with their values after the run.

    Raises:
        CheckError: a node fails; the message gives it.
    """
    interpreter = _Float64(program, mode)
    copies = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in inputs]
    with torch.no_grad(), seeded(seed), _default_dtype(torch.float64):
        outputs = interpreter.run(*copies, enable_io_processing=False)
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs], interpreter.buffers


class _Float64(fx.Interpreter):
    """Interprets a program's graph with float64 in place of every smaller floating-point dtype."""

    def __init__(self, program: Program, mode: Mode) -> None:
        super().__init__(nn.Module(), garbage_collect_values=True, graph=program.graphs[mode])
        self.extra_traceback = False
        self.program = program
        self.mode = mode
        self.buffers: dict[str, torch.Tensor] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> str:
        return str(target)  # torch.export puts all these nodes first: tensors are converted where they are used

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        return fx.node.map_arg((n.args, n.kwargs), self.fetch)

    def fetch(self, node: fx.Node) -> Any:
        """Value of an operand; a parameter is converted for this one use."""
        if node.op != "get_attr":
            return self.env[node]
        name = str(node.target)
        if name in self.buffers:
            return self.buffers[name]
        tensor = values(self.program.tensors[name]).detach()
        value = tensor.to(_WIDER.get(tensor.dtype, tensor.dtype), copy=True)
        if self.program.specs[name].kind != "parameter":
            self.buffers[name] = value  # kept: a later use sees what was written
        return value

    def run_node(self, n: fx.Node) -> Any:
        try:
            return super().run_node(n)
        except Exception as error:  # kernels raise many types
            reason = one_line(error)
            raise CheckError(f"float64 check, {self.mode} graph, node `{n.name}`, {call_text(n)}: {reason}") from error

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if _only_asserts(target):
            return None
        args, kwargs = torch.utils._pytree.tree_map(_widen, (tuple(args), dict(kwargs)))
        args, kwargs = placed((args, kwargs), self.program.tensors.values())
        return super().call_function(target, args, kwargs)


def _only_asserts(target: Any) -> bool:
    """Operations that check dtypes, or sizes against the captured range; both differ here."""
    return str(getattr(target, "__name__", target)).startswith(("_assert", "sym_constrain_range"))


def _widen(argument: Any) -> Any:
    return _WIDER.get(argument, argument) if isinstance(argument, torch.dtype) else argument


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def stochastic(graph: fx.Graph) -> list[fx.Node]:
    """Returns the nodes that draw random numbers; dropout of probability 0, or outside training, does not."""
    return [node for node in graph.nodes if node.op == "call_function" and _draws(node)]


def _draws(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    given = dict(node.kwargs)
    for index, argument in enumerate(target._schema.arguments):
        if index < len(node.args):
            given[argument.name] = node.args[index]
        elif argument.name not in given:
            given[argument.name] = argument.default_value
    return not any(name in given and certain(given[name]) for name, certain in _CERTAIN.items())


def _difference(first: list[Any], second: list[Any]) -> Difference:
    if len(first) != len(second):
        raise CheckError(f"float64 check: expected {len(first)} outputs, found {len(second)}")
    max_abs = max_rel = 0.0
    compared, finite, silent = 0, True, False
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
            continue
        if a.shape != b.shape:
            raise CheckError(f"float64 check, output {index}: expected {tensor_text(a)}, found {tensor_text(b)}")
        if not (a.is_floating_point() or a.is_complex()) or not a.numel():
            continue
        compared += 1
        finite = finite and bool(torch.isfinite(a).all()) and bool(torch.isfinite(b).all())
        gap, size = (a - b).abs().max().item(), a.abs().max().item()
        max_abs, silent = max(max_abs, gap), silent or not size
        max_rel = max(max_rel, gap / (size or 1.0))
    if not compared:
        raise CheckError("float64 check: expected a floating-point output to compare, found none")
    return Difference(max_abs, max_rel, True, silent) if finite else Difference(math.inf, math.inf, False)


class GraphRun(fx.Interpreter):
    """Interprets a graph over tensors given by name; `env` holds the value of every node that is still needed.

    Args:
        graph: the graph.
        tensors: real or fake tensors, by the names that the graph reads.
        keep: whether all values stay in `env` until the end.
    """

    def __init__(self, graph: fx.Graph, tensors: Mapping[str, torch.Tensor], *, keep: bool = False) -> None:
        super().__init__(nn.Module(), graph=graph, garbage_collect_values=not keep)
        self.extra_traceback = False
        self.tensors = tensors

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> torch.Tensor:
        """Returns a tensor by name."""
        return self.tensors[str(target)]

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Calls an operation; what it creates is on the device of the tensors."""
        args, kwargs = placed((tuple(args), dict(kwargs)), self.tensors.values())
        return super().call_function(target, args, kwargs)


def empty_like(tensor: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    """Returns an empty tensor with the same strides, dtype and `requires_grad`; without memory under a fake mode."""
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device or tensor.device)
    return empty.requires_grad_(tensor.requires_grad)
