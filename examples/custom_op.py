"""A network with custom operations, and the rules that let it grow. Copy what you need (docs/custom-ops.md).

    python examples/custom_op.py                                  shows the axes, and grows it
    progc inspect examples/custom_op.py --axes
    progc grow examples/custom_op.py --to 'depth*2,width*2' --out grown

The network has two fused kernels, written in plain PyTorch here: an RMS norm with a gain, and a gated unit on packed
halves. PyTorch needs the output shape (`register_fake`) and the gradient (`register_autograd`) of each kernel. progc
needs to know what the kernels do with the dims of their operands (`progc.rule`). Without these rules the axes that the
kernels touch are pinned.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import progc
from progc import rules

# -- the kernels -------------------------------------------------------------------------------------------


@torch.library.custom_op("example::rms_norm", mutates_args=())
def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """[..., width] over the root of its mean square, times a gain [width]."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain


@rms_norm.register_fake
def _(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


def _save_norm(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    x, gain, ctx.eps = inputs
    ctx.save_for_backward(x, gain)


def _norm_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    x, gain = ctx.saved_tensors
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + ctx.eps)
    to_x = scale * (gain * grad - x * scale.square() * (x * gain * grad).mean(-1, keepdim=True))
    return to_x, (grad * x * scale).sum(tuple(range(x.dim() - 1))), None


rms_norm.register_autograd(_norm_gradients, setup_context=_save_norm)


@torch.library.custom_op("example::swiglu", mutates_args=())
def swiglu(packed: Tensor) -> Tensor:
    """[..., 2 * hidden] to [..., hidden]: the second half times the SiLU of the first."""
    gate, value = packed.chunk(2, dim=-1)
    return F.silu(gate) * value


@swiglu.register_fake
def _(packed: Tensor) -> Tensor:
    return packed.new_empty((*packed.shape[:-1], packed.shape[-1] // 2))


def _save_gate(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gate_gradients(ctx: Any, grad: Tensor) -> Tensor:
    gate, value = ctx.saved_tensors[0].chunk(2, dim=-1)
    open_ = torch.sigmoid(gate)
    return torch.cat([grad * value * open_ * (1 + gate * (1 - open_)), grad * gate * open_], dim=-1)


swiglu.register_autograd(_gate_gradients, setup_context=_save_gate)

# -- the rules ---------------------------------------------------------------------------------------------


@progc.rule(rms_norm)
def rms_norm_rule(ctx: rules.Context, node: torch.fx.Node, args: rules.Args) -> rules.Value:
    """A mean square over the width, and a gain for each unit."""
    rules.normalised(ctx, args["x"])
    return rules.elementwise(ctx, args["x"], args["gain"])


@progc.rule(swiglu)
def swiglu_rule(ctx: rules.Context, node: torch.fx.Node, args: rules.Args) -> rules.Value:
    """Two halves that grow in the same way, multiplied elementwise."""
    gate, value = rules.parts(ctx, args["packed"], 2)
    return rules.elementwise(ctx, gate, value)


# -- a network that uses them ------------------------------------------------------------------------------


class Block(nn.Module):
    """Norm, gated unit and residual sum, `[batch, width]` to `[batch, width]`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(swiglu(self.up(rms_norm(x, self.gain, 1e-6))))


class Gated(nn.Module):
    """Maps features `[batch, 10]` to logits `[batch, 5]`."""

    def __init__(self, depth: int = 2, width: int = 12, hidden: int = 20) -> None:
        super().__init__()
        self.embed = nn.Linear(10, width)
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(depth))
        self.gain = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(rms_norm(x, self.gain, 1e-6))


def build() -> Gated:
    """The model that progc grows."""
    return Gated()


def example_inputs() -> tuple[Tensor]:
    """One call of it."""
    return (torch.randn(4, 10),)


def main() -> None:
    """Prints what grows, and grows it."""
    inputs = example_inputs()
    model = build().eval()
    program = progc.capture(model, inputs)
    print(program.axes)
    bigger = progc.grow(program, to="depth*2,width*2")
    print(f"parameters: {program.num_parameters():,} -> {bigger.num_parameters():,}")
    larger = Gated(depth=4, width=24, hidden=40).eval()
    larger.load_state_dict(bigger.state_dict())
    with torch.no_grad():
        print(f"largest difference of the outputs: {(larger(*inputs) - model(*inputs)).abs().max():.1e}")


if __name__ == "__main__":
    main()
