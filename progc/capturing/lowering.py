"""Lowers the graphs of torch.export to graphs of a `Program`: canonical names, plain metadata, inlined regions.

torch.export keeps `with torch.no_grad():` and `with torch.autocast(...):` as calls of sub-graphs. A no-grad region is
inlined, and its results are detached if a gradient could flow. A region with autocast disabled (as in rotary
embeddings) is inlined; under an outer autocast it then runs like the code around it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, cast

import torch
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from progc.capturing.refusals import place_of_trace, refusal
from progc.ir.program import Mode, TensorMeta, TensorSpec

aten = torch.ops.aten
_SET_GRAD = "wrap_with_set_grad_enabled"
_AUTOCAST = "wrap_with_autocast"
# Checks of dtype and device at capture: the program may run in another dtype or on another device.
_DROPPED = {aten._assert_tensor_metadata.default}
_ESTIMATES = {getattr(torch.ops.aten, name) for name in ("var", "std", "var_mean", "std_mean")}
_READS_NUMBER = {aten.item.default, aten._local_scalar_dense.default}


class Lowering:
    """Lowers the graphs of a model; adds its lifted constants to `tensors` and `specs`.

    A constant with equal values in both modes becomes one tensor, so that a pass changes it once.
    """

    def __init__(
        self,
        model: nn.Module,
        tensors: dict[str, torch.Tensor],
        specs: dict[str, TensorSpec],
        tied: Mapping[str, str],
    ) -> None:
        self._model, self._tensors, self._specs, self._tied = model, tensors, specs, tied

    def graph(self, exported: Any, mode: Mode) -> fx.Graph:
        """Returns the graph of one `ExportedProgram`; placeholders have `meta["batch_dynamic"]` (bool) for the caller.

        Raises:
            CaptureError: control flow on tensors, a size that depends on data, or autocast enabled inside `forward`.
        """
        graph = fx.Graph()
        module = exported.module(check_guards=False)
        result = self._copy(module, graph, {}, mode, grad=True)
        output = graph.output(result)
        output.meta["tensor"] = fx.map_arg(result, lambda node: node.meta["tensor"])
        for node in reversed(graph.nodes):
            if not node.users and _has_no_effect(node):
                graph.erase_node(node)
        graph.lint()
        return graph

    def _copy(self, module: nn.Module, graph: fx.Graph, env: dict[fx.Node, Any], mode: Mode, grad: bool) -> Any:
        """Appends the nodes of `module.graph` to `graph`; returns its output structure. `env` holds the inputs."""
        source = module.graph
        assert isinstance(source, fx.Graph)
        inputs = set(env)
        for node in source.nodes:
            if node in inputs or node.op == "call_module" or node.target in _DROPPED:  # call_module: export's guards
                continue
            if node.op == "output":
                return fx.map_arg(node.args[0], lambda n: env[n])
            if node.op == "get_attr" and isinstance(_attribute(module, node.target), fx.GraphModule):
                env[node] = _attribute(module, node.target)  # a region; its caller follows
            elif node.op == "call_function" and isinstance(node.target, torch._ops.HigherOrderOperator):
                env[node] = self._inline(node, graph, env, mode, grad)
            elif node.target is operator.getitem and isinstance(env.get(node.all_input_nodes[0]), (tuple, list)):
                env[node] = env[node.all_input_nodes[0]][cast(int, node.args[-1])]
            else:
                env[node] = self._copy_node(module, node, graph, env, mode)
        raise AssertionError("the graph has no output node")

    def _copy_node(
        self, module: nn.Module, node: fx.Node, graph: fx.Graph, env: dict[fx.Node, Any], mode: Mode
    ) -> fx.Node:
        self._check_sizes(node)
        copy = graph.node_copy(node, lambda n: env[n])
        if node.op == "get_attr":
            copy.target = self._state_name(module, str(node.target), mode)
        if node.op == "placeholder":
            copy.target = copy.name
        value = node.meta.get("val")
        copy.meta = {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
        copy.meta["tensor"] = _meta_of(value)
        _count_correction(copy)
        if node.op == "placeholder":
            dynamic = isinstance(value, torch.Tensor) and value.dim() > 0 and isinstance(value.shape[0], torch.SymInt)
            copy.meta["batch_dynamic"] = dynamic
        return copy

    def _inline(self, node: fx.Node, graph: fx.Graph, env: dict[fx.Node, Any], mode: Mode, grad: bool) -> Any:
        assert isinstance(node.target, torch._ops.HigherOrderOperator)
        name = node.target.name()
        args: Any = fx.map_arg(node.args, lambda n: env[n])
        regions = [value for value in args if isinstance(value, fx.GraphModule)]
        if name == _SET_GRAD:
            enabled, operands = bool(args[0]), args[2:]
            if enabled and not grad:
                self._refuse(node, "enables gradients inside torch.no_grad", "split the no_grad block", regions)
        elif name == _AUTOCAST:
            enabled, operands = grad, args[5:]
            if args[2]:
                self._refuse(
                    node, "enables torch.autocast inside forward", "use torch.autocast around the model", regions
                )
        else:
            self._refuse(
                node,
                f"uses control flow on tensors ({name})",
                "use torch.where, or choose the branch by an argument that is not a tensor",
                regions,
            )
        region = regions[0]
        placeholders = [inner for inner in region.graph.nodes if inner.op == "placeholder"]
        outputs = self._copy(region, graph, dict(zip(placeholders, operands, strict=True)), mode, grad and enabled)
        if enabled or not grad:
            return outputs
        return fx.map_arg(outputs, lambda n: _detached(graph, n, self._specs))

    def _state_name(self, module: nn.Module, target: str, mode: Mode) -> str:
        if target in self._tensors:
            return self._tied.get(target, target)
        value = _attribute(module, target)
        if not isinstance(value, torch.Tensor):
            raise refusal(
                self._model, None, f"holds `{target}`, a {type(value).__name__}", "use tensors and numbers only"
            )
        value = value.detach()
        name = f"_constants.{target.replace('.', '_')}"
        if name in self._tensors and not _equal(self._tensors[name], value):
            name = f"{name}_{mode}"
        if name not in self._tensors:
            self._tensors[name], self._specs[name] = value, TensorSpec("constant", False)
        return name

    def _check_sizes(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if node.target in _READS_NUMBER:
            self._refuse(
                node,
                "reads a number from a tensor (.item())",
                "keep the value in a tensor, or pass it as a Python number",
            )
        if value is not None and free_unbacked_symbols(value):
            self._refuse(
                node,
                "creates a tensor whose size depends on the data",
                "use operations whose result sizes do not depend on the data (torch.where, masks)",
            )

    def _refuse(self, node: fx.Node, what: str, instead: str, regions: Sequence[fx.GraphModule] = ()) -> NoReturn:
        # The call of a region has no stack trace; the nodes inside have.
        nodes = [node, *(inner for region in regions for inner in region.graph.nodes)]
        places = (place_of_trace(inner.meta.get("stack_trace")) for inner in nodes)
        raise refusal(self._model, next((place for place in places if place), None), what, instead)


def _count_correction(node: fx.Node) -> None:
    """Writes the correction of variances as a number: after growth, `n - 1` over r copies has to become `rn - r`."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet not in _ESTIMATES:
        return
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    correction = given.get("correction")
    if correction is None:
        correction = int(bool(given.get("unbiased", True)))
    node.target = packet.correction  # type: ignore[union-attr]
    node.args = (given["self"], given.get("dim"))
    node.kwargs = {"correction": correction, "keepdim": given.get("keepdim", False)}


def _has_no_effect(node: fx.Node) -> bool:
    """Whether a node without users can be removed: it writes nothing, checks nothing and draws no random numbers."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        pure = not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
        return pure and len(target._schema.returns) > 0
    return node.op == "get_attr" or target is operator.getitem


def _detached(graph: fx.Graph, node: fx.Node, specs: Mapping[str, TensorSpec]) -> fx.Node:
    if not _may_need_gradient(node, specs):
        return node
    copy = graph.call_function(aten.detach.default, (node,))
    copy.meta = dict(node.meta)
    return copy


def _may_need_gradient(node: fx.Node, specs: Mapping[str, TensorSpec]) -> bool:
    """Whether `node` depends on a parameter or a floating-point input."""
    seen, open_nodes = {node}, [node]
    while open_nodes:
        current = open_nodes.pop()
        if current.op == "get_attr" and specs[str(current.target)].kind == "parameter":
            return True
        meta = current.meta["tensor"]
        if current.op == "placeholder" and isinstance(meta, TensorMeta) and meta.dtype.is_floating_point:
            return True
        for other in current.all_input_nodes:
            if other not in seen:
                seen.add(other)
                open_nodes.append(other)
    return False


def _meta_of(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return TensorMeta(tuple(_hint(size) for size in value.shape), value.dtype)
    if isinstance(value, (tuple, list)):
        return tuple(_meta_of(item) for item in value)
    if isinstance(value, (torch.SymInt, int)):
        return _hint(value)
    return None


def _hint(size: Any) -> int:
    hint: Any = size.node.hint if isinstance(size, torch.SymInt) else size
    return int(hint)


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    return a.is_meta or torch.equal(a, b)


def _attribute(module: nn.Module, target: Any) -> Any:
    value: Any = module
    for part in str(target).split("."):
        value = getattr(value, part)
    return value
