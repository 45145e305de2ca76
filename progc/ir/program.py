"""The program: a captured network as two torch.fx graphs over one set of parameters and buffers.

A program is a value. Passes never change one; they build another that may share tensors with it.
Graphs hold user inputs as `placeholder` nodes (flat, in pytree order), parameters, buffers and lifted
constants as `get_attr` nodes under the user's own dotted names, and ATen calls. `node.meta` carries:

- `"tensor"`: `TensorMeta` of the node's value at the example size (a tuple of them for multi-output ops,
  a plain int for a size, None for nothing);
- `"nn_module_stack"`: `{key: (module path, class name)}` from torch.export, outermost first;
- `"stack_trace"`: the user's source line.

Averaged copies (`Average`) and the stage identifier (`StageIdentifier`) of a program are values too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from progc.ir import facade
from progc.ir.deferred import all_deferred, all_values, is_deferred

Mode = Literal["train", "eval"]
MODES: tuple[Mode, ...] = ("train", "eval")


@dataclasses.dataclass(frozen=True)
class TensorMeta:
    """Shape (ints at the example size) and dtype of one value."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """The kind of a named tensor.

    Attributes:
        kind: parameter, buffer or lifted constant.
        persistent: False for buffers and constants that the state dict does not hold.
        fixed: True for a parameter that did not train when the program was captured, such as a computed position table.
    """

    kind: Literal["parameter", "buffer", "constant"]
    persistent: bool = True
    fixed: bool = False


@dataclasses.dataclass(frozen=True)
class PassRecord:
    """One entry of a program's history: the canonical text of a pass, and what it changed."""

    text: str
    changed: bool
    before: str
    after: str
    counts: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Signature:
    """The structure of the user's inputs and outputs.

    Attributes:
        in_spec: pytree structure of `(args, kwargs)`.
        out_specs: pytree structure of the outputs, per mode.
        shapes: shape of each flat input at the example size; None for an input that is not a tensor.
        batch_dims: whether dim 0 of each flat input is dynamic.
        free_dims: the dims of each flat input that may have any size; empty if there are none.
    """

    in_spec: pytree.TreeSpec
    out_specs: Mapping[Mode, pytree.TreeSpec]
    shapes: tuple[tuple[int, ...] | None, ...]
    batch_dims: tuple[bool, ...]
    free_dims: tuple[tuple[int, ...], ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A captured network (docs/architecture.md).

    Attributes:
        graphs: `{"train": Graph, "eval": Graph}`; never edited in place.
        tensors: every parameter, buffer and constant by name; tied names map to the same object. Parameters may be
            deferred (progc/ir/deferred.py) while a network grows.
        specs: the kind of every tensor, by name.
        tied: alias name to canonical name; graphs use canonical names only.
        signature: input and output structure.
        example: `(args, kwargs)`, real tensors used for analysis and checks.
        class_name: qualified class of the user's module, for messages.
        history: passes applied so far, oldest first.
        sid: the stage identifier, or None.
        averages: averaged copies of `tensors` (EMA), which every pass maps too (progc/lift/averages.py).
        synced: paths of layers of the user's module that take statistics over all processes; the graphs have those of
            one process.
    """

    graphs: Mapping[Mode, fx.Graph]
    tensors: Mapping[str, torch.Tensor]
    specs: Mapping[str, TensorSpec]
    tied: Mapping[str, str]
    signature: Signature
    example: tuple[tuple[Any, ...], dict[str, Any]]
    class_name: str
    history: tuple[PassRecord, ...] = ()
    sid: StageIdentifier | None = None
    averages: tuple[Average, ...] = ()
    synced: tuple[str, ...] = ()
    _memo: dict[str, Any] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @property
    def axes(self) -> Any:
        """The table of axes (`AxisTable`): which dims can be widened, and why the others cannot."""
        return facade.AXES(self)

    @property
    def chains(self) -> Any:
        """The table of chains (`ChainTable`): runs of isomorphic blocks, into which depth growth inserts."""
        return facade.CHAINS(self)

    def module(self) -> Any:
        """Returns an `nn.Module` over this program's tensors (`ProgramModule`); its mode chooses the graph."""
        return facade.MODULE(self)

    def memo(self, key: str, make: Callable[[Program], Any]) -> Any:
        """Returns `make(self)`, computed once per program; `deferred` shares the results.

        Args:
            key: the key of the result; one for each function.
            make: a function of graphs, shapes and constants only, which a deferred program shares with its original.
        """
        if key not in self._memo:
            self._memo[key] = make(self)
        return self._memo[key]

    def parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields canonical parameter names and tensors; a tied parameter appears once."""
        for name, tensor in self.tensors.items():
            if self.specs[name].kind == "parameter" and name not in self.tied:
                yield name, tensor

    def num_parameters(self) -> int:
        """Returns the number of scalar parameters; tied ones count once."""
        return sum(tensor.numel() for _, tensor in self.parameters())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Returns the persistent tensors under the user's names, aliases included, like `nn.Module.state_dict`."""
        return {name: tensor.detach() for name, tensor in all_values(self.persistent()).items()}

    def persistent(self) -> dict[str, torch.Tensor]:
        """Returns the tensors of `state_dict` without detaching them or computing deferred values."""
        return {name: tensor for name, tensor in self.tensors.items() if self.specs[name].persistent}

    @cached_property
    def deferred(self) -> Program:
        """This program with deferred parameters (progc/ir/deferred.py): passes compute shapes now and values later.

        Buffers and constants are small, and analysis reads some of them, so they are not deferred.
        """
        parameters = {name: tensor for name, tensor in self.tensors.items() if isinstance(tensor, nn.Parameter)}
        averages = tuple(average.deferred for average in self.averages)
        twin = self.replace(tensors={**self.tensors, **all_deferred(parameters)}, averages=averages)
        twin._memo.update(self._memo)
        return twin

    def complete(self) -> Program:
        """Returns this program with the values of all its tensors in memory."""
        held = [self.tensors, *(average.tensors for average in self.averages)]
        if not any(is_deferred(tensor) for tensors in held for tensor in tensors.values()):
            return self
        averages = tuple(average.complete for average in self.averages)
        return self.replace(tensors=all_values(self.tensors), averages=averages)

    def replace(self, **changes: Any) -> Program:
        """Returns a new program with some fields replaced; results of analysis are not carried over."""
        return dataclasses.replace(self, **changes)

    def flat_example(self) -> list[Any]:
        """Returns the example inputs, flat, in the order of the placeholders."""
        return pytree.tree_leaves(self.example)


@dataclasses.dataclass(frozen=True, eq=False)
class Average:
    """One averaged copy of a program's tensors.

    Attributes:
        tensors: the average of every tensor of the program, by name; plain tensors, not parameters. Averages of 16-bit
            tensors are float32, so that small changes are not lost.
        decay: weight of the old average in an update; None if unknown, as for a file.
    """

    tensors: Mapping[str, torch.Tensor]
    decay: float | None = None

    @property
    def deferred(self) -> Average:
        """This average with deferred tensors (progc/ir/deferred.py)."""
        return dataclasses.replace(self, tensors=all_deferred(self.tensors))

    @property
    def complete(self) -> Average:
        """This average with the values of all its tensors in memory."""
        return dataclasses.replace(self, tensors=all_values(self.tensors))


@dataclasses.dataclass(frozen=True)
class StageIdentifier:
    """The stage identifier of a program; `Program.sid` holds it.

    Attributes:
        table: name of the parameter `[stages + 1, width]`; the last row is the null row.
        stages: number of stages K; K is also the index of the null row.
        site: name of the site where the row is added.
        stage: the stage that is fixed in both graphs; None if it is an input.
        input: name of the keyword input; None if the stage is fixed.
        dropout: probability with which the train graph gives a sample the null row.
        form: `add`: the row is added to the values; `token`: it is appended as one more token.
    """

    table: str
    stages: int
    site: str
    stage: int | None
    input: str | None
    dropout: float
    form: str = "add"

    @property
    def null(self) -> int:
        """Index of the null row."""
        return self.stages
