"""A complete custom pass: options, a lift, and a claim that is checked (docs/custom-passes.md).

    python examples/custom_pass.py

The pass balances the scales of two linear layers around a ReLU. If a package registers it under the entry point group
`progc.passes`, it can be used on the command line like the passes of progc:

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
from progc import Lift, Pass, PassResult, Program, Scale, TensorLift, option
from progc.errors import PassOptionError

LINEAR, RELU = torch.ops.aten.linear.default, torch.ops.aten.relu.default

# -- the pass ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Balance(Pass):
    """Balances the rows of a linear layer and the columns of the next linear layer, across a ReLU.

    Idea: relu(c * z) = c * relu(z) for c > 0, so the weights into a hidden unit can be multiplied by c and the weights
    out of it divided by c (Nagel et al., ICCV 2019). c makes the largest weights of both sides about equal; it is a
    power of two, so that nothing is rounded.
    Preserved: the function, exactly, in eval mode and in train mode.
    Needs: linear, ReLU, linear, with values and parameters that nothing else reads.
    Leaves behind: unchanged graphs; tensors under the old names, with one tensor lift for each.
    """

    name: ClassVar[str] = "balance"
    only: tuple[str, ...] = option(
        (), help="parameters of first layers, as globs such as blocks.*.up.weight; empty: all"
    )

    def run(self, program: Program) -> PassResult:
        """Balances the chosen pairs of layers.

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
    """Returns weight and bias (empty if there is none) of each first layer, and the weight of the second layer."""
    train, evaluation = (list(_pairs_of(program, program.graphs[mode])) for mode in ("train", "eval"))
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
    """Returns a power of two for each hidden unit, from weights `[hidden, in]` and `[out, hidden]`."""
    rows, columns = first.detach().abs().amax(1), second.detach().abs().amax(0)
    usable = (rows > 0) & (columns > 0)
    exponents = torch.where(usable, torch.log2(columns / rows) / 2, 0.0).round()
    return tuple(torch.exp2(exponents.double()).tolist())


# -- a network to try it on --------------------------------------------------------------------------------


class Net(nn.Module):
    """Maps features `[batch, 5]` to logits `[batch, 3]`."""

    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, hidden), nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))


def build() -> Net:
    """Builds a model whose hidden units differ in scale."""
    net = Net()
    with torch.no_grad():
        net.up.weight *= torch.logspace(-2, 2, 6)[:, None]
    return net


def example_inputs() -> tuple[Tensor]:
    """Returns the arguments of one call."""
    return (torch.randn(4, 5),)


def main() -> None:
    """Runs the pass, which is verified, and measures the difference of the outputs."""
    program = progc.capture(build(), example_inputs())
    balanced, result = progc.apply(program, [Balance()]), Balance().run(program)
    print(progc.diff(program, balanced))
    print(f"\nlossless: {result.lossless}; measured in float64: {progc.compare(program, balanced, seed=0).max_rel:.1e}")
    moments = {name: {"exp_avg": torch.ones_like(tensor)} for name, tensor in program.parameters()}
    assert result.lift is not None
    print(f"first moments of the units: {result.lift.moments(moments)['up.bias']['exp_avg'].tolist()}")


if __name__ == "__main__":
    main()
