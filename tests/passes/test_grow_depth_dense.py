"""Dense networks grow into the class of that depth: new segments, wider transitions, strict load, equal in float64."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import nn

import progc
from progc.growth.grow import grow_with_report
from progc.ir.program import Program
from tests import zoo


def _capture(model: nn.Module) -> tuple[nn.Module, Program]:
    zoo.perturb(model).eval()
    return model, progc.capture(model, (torch.randn(2, 3, 64, 64),))


def _grown(small: nn.Module, large: nn.Module) -> dict[str, int]:
    """Checks the growth of one into the class of the other; the widths that grew."""
    source, program = _capture(small)
    target, wanted = _capture(large)
    growth = grow_with_report(program, wanted)
    assert growth.plan.lossless
    target.load_state_dict(growth.program.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before, after = source.double()(x), target.double()(x)
    assert before.std() > 0 and torch.allclose(after, before, rtol=1e-9, atol=1e-12)
    return {axis.axis: axis.new for axis in growth.plan.axes}


def _torchvision(*blocks: int, rate: int = 4, stem: int = 8) -> nn.Module:
    net = importlib.import_module("torchvision.models.densenet").DenseNet
    made = net(growth_rate=rate, block_config=blocks, num_init_features=stem, bn_size=2, num_classes=5)
    assert isinstance(made, nn.Module)
    return made


def test_a_longer_dense_block_widens_the_transition_behind_it() -> None:
    """A transition has half as many outputs as inputs, so its output grows with the number of layers before it."""
    assert _grown(_torchvision(2, 2, 2), _torchvision(2, 4, 3)) == {"features.transition2.conv": (8 + 4 * 4) // 2}


def test_growth_rate_and_depth_together() -> None:
    widths = _grown(_torchvision(2, 2), _torchvision(3, 2, rate=8, stem=16))
    assert widths["features.conv0"] == 16 and widths["features.denseblock1.denselayer3.conv2"] == 8


def test_another_class_of_dense_network() -> None:
    net = importlib.import_module("timm.models.densenet").DenseNet
    small: Any = {"growth_rate": 4, "bn_size": 2, "num_classes": 5}
    widths = _grown(net(block_config=(2, 3, 2), **small), net(block_config=(4, 3, 5), **small))
    assert set(widths) == {"features.transition1.conv", "features.transition2.conv"}


@pytest.mark.slow
def test_published_depths() -> None:
    timm = importlib.import_module("timm")
    widths = _grown(*(timm.create_model(name, num_classes=5) for name in ("densenet121", "densenet169")))
    assert set(widths) == {"features.transition3.conv"}
