"""Small instances of networks that need more than one mechanism at once: experts, scans, joined streams."""

from __future__ import annotations

import pytest

import progc
from bench.models import specs
from progc.growth.grow import grow_with_report
from progc.ir.check import compare_train, stochastic
from progc.ir.program import Program
from progc.lift.revert import tolerance
from progc.models.sizes import parse_sizes
from tests.sweeps import some
from tests.zoo import perturb

GROWTHS = {
    "transformers:MixtralForCausalLM": ("width*2", "width*1.5", "depth*2"),  # experts chosen per token
    "transformers:MambaForCausalLM": ("width*2", "width*1.5"),  # the steps of a scan share one projection
    "transformers:T5ForConditionalGeneration": ("width*2", "depth*2"),  # encoder, decoder, tied tables
    "diffusers:FluxTransformer2DModel": ("width*2", "depth*2"),  # blocks join two streams and part them again
    "diffusers:SD3Transformer2DModel": ("width*2", "depth*2"),
    "diffusers:SanaTransformer2DModel": ("width*2",),  # linear attention, depthwise convolutions inside
}


QUICK = ("transformers:MixtralForCausalLM", "transformers:T5ForConditionalGeneration")


@pytest.fixture(
    scope="module",
    params=some(GROWTHS, QUICK),
)
def captured(request: pytest.FixtureRequest) -> tuple[str, Program]:
    model, args, kwargs = next(spec for spec in specs() if spec.key == request.param).build()
    return request.param, progc.capture(perturb(model).eval(), args, kwargs)


def test_growth_is_exact_in_both_modes(captured: tuple[str, Program]) -> None:
    name, program = captured
    for target in GROWTHS[name]:
        growth = grow_with_report(program, parse_sizes(target))
        limit = tolerance(growth.plan.lifts)
        assert growth.plan.lossless and growth.report["max_rel_diff"] < limit, target
        assert growth.report["params_after"] > growth.report["params_before"]
        if not any(stochastic(graph) for graph in growth.program.graphs.values()):
            assert compare_train(program, growth.program, seed=0).max_rel < limit, target
