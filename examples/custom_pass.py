"""A pass of your own, with what makes it a good one: options, a lift, a claim that is checked (docs/custom-passes.md).

    python examples/custom_pass.py

The pass evens out the scales of two linear layers around a ReLU. Installed in a package that names it under the entry
point group `progc.passes`, it works on the command line as those of progc do:

    progc passes balance
    progc apply model.py --pipeline 'grow-width{width=*2},balance'
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import progc
from progc.errors import PassOptionError
from progc.ir.check import compare
from progc.ir.program import MODES, Program
from progc.lift.entry import Scale, TensorLift
from progc.lift.lift import Lift
from progc.pipeline.base import Pass, PassResult, option
from progc.pipeline.manager import run

LINEAR, RELU = torch.ops.aten.linear.default, torch.ops.aten.relu.default

# -- the pass ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Balance(Pass):
    """Evens out the rows of a linear layer and the columns of the next one, across a ReLU.

    Idea: relu(c * z) = c * relu(z) for c > 0, so a hidden unit may be multiplied by c on its way in and divided by it
    on its way out (Nagel et al., ICCV 2019). c makes the largest weights of both sides alike; it is a power of two, so
    that nothing is rounded.
    Preserved: the function, exactly, in eval mode and in train mode.
    Needs: linear, ReLU, linear, with values and parameters that nothing else reads.
    Leaves behind: the graphs as they were; tensors under the old names, and one tensor lift for each.
    """

    name: ClassVar[str] = "balance"
    only: tuple[str, ...] = option(
        (), help="parameters of first layers, as globs such as blocks.*.up.weight; empty: all"
    )

    def run(self, program: Program) -> PassResult:
        """Balances every pair of layers that is chosen.

        Raises:
            PassOptionError: `only` matches no first layer.
        """
        pairs = [pair for pair in _pairs(program) if not self.only or _matches(pair[0], self.only)]
        if self.only and not pairs:
            found = ", ".join(pair[0] for pair in _pairs(program)) or "none"
            raise PassOptionError(f"balance: only={','.join(self.only)} matches no first layer; there are {found}")
        entries: list[TensorLift] = []
        for weight, bias, following in pairs:
            factors = _factors(program.tensors[weight], program.tensors[following])
            if any(factor != 1 for factor in factors):
                scales = (Scale(0, factors),)
                entries += [TensorLift(name, name, scales=scales) for name in (weight, bias) if name]
                entries.append(TensorLift(following, following, scales=(Scale(1, tuple(1 / f for f in factors)),)))
        if not entries:
            return PassResult(program, changed=False, lossless=True)
        lift = Lift(tuple(entries))
        tensors = lift.apply(program.tensors)
        balanced = program.replace(tensors={name: tensors[name] for name in program.tensors})
        return PassResult(balanced, True, {"tensors scaled": len(entries)}, lift, lossless=True)


def _pairs(program: Program) -> list[tuple[str, str, str]]:
    """Weight and bias (empty if there is none) of each first layer, and the weight of its second one."""
    train, evaluation = (list(_pairs_of(program, program.graphs[mode])) for mode in MODES)
    return [pair for pair in evaluation if pair in train]


def _pairs_of(program: Program, graph: fx.Graph) -> Iterator[tuple[str, str, str]]:
    for second in graph.nodes:
        if second.target is not LINEAR or second.args[0].target is not RELU:
            continue
        relu = second.args[0]
        first = relu.args[0]
        parameters = [*first.args[1:], second.args[1]] if first.target is LINEAR else []
        own = all(node.op == "get_attr" and node.target in program.tensors for node in parameters)
        if parameters and own and all(len(node.users) == 1 for node in (relu, first, *parameters)):
            names = [str(node.target) for node in parameters]
            yield names[0], names[1] if len(names) == 3 else "", names[-1]


def _matches(name: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in globs)


def _factors(first: Tensor, second: Tensor) -> tuple[float, ...]:
    """Per hidden unit the power of two that brings the largest weights of [hidden, in] and [out, hidden] together."""
    rows, columns = first.detach().abs().amax(1), second.detach().abs().amax(0)
    usable = (rows > 0) & (columns > 0)
    exponents = torch.where(usable, torch.log2(columns / rows) / 2, 0.0).round()
    return tuple(torch.exp2(exponents.double()).tolist())


# -- a network to try it on --------------------------------------------------------------------------------


class Net(nn.Module):
    """[batch, 5] features to [batch, 3] logits."""

    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, hidden), nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))


def build() -> Net:
    """The model that the pass is tried on: its hidden units differ in scale."""
    net = Net()
    with torch.no_grad():
        net.up.weight *= torch.logspace(-2, 2, 6)[:, None]
    return net


def example_inputs() -> tuple[Tensor]:
    """One call of it."""
    return (torch.randn(4, 5),)


def main() -> None:
    """Runs the pass through the manager, which verifies it, and measures what it claims."""
    program = progc.capture(build(), example_inputs())
    balanced, (result,) = run(program, [Balance()])
    print(progc.diff(program, balanced))
    print(f"\nlossless: {result.lossless}; measured in float64: {compare(program, balanced, seed=0).max_rel:.1e}")
    moments = {name: {"exp_avg": torch.ones_like(tensor)} for name, tensor in program.parameters()}
    assert result.lift is not None
    print(f"first moments of the units: {result.lift.moments(moments)['up.bias']['exp_avg'].tolist()}")


if __name__ == "__main__":
    main()
