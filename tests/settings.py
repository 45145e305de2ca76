"""One row per pass: options that make it do something to a network, and options that leave the network alone.

The generic tests of tests/pipeline/test_passes.py run every pass of `PASSES` through this table; a pass without a
row is a failing test.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Setting:
    """How to try a pass.

    Attributes:
        model: a name of tests/zoo.py.
        active: pipeline texts that change that network.
        idle: pipeline texts that change nothing there.
        lossless: which of `active` keep the function.
    """

    model: str
    active: tuple[str, ...]
    idle: tuple[str, ...]
    lossless: tuple[str, ...] = ()


STAGED = "own:flat|inject-sid{stages=3 stage=1 init=normal}"

SETTINGS: dict[str, tuple[Setting, ...]] = {
    "grow-depth": (
        Setting(
            "own:flat",
            active=(
                "grow-depth",
                "grow-depth{to=6}",
                "grow-depth{to=7 init=interpolate}",
                "grow-depth{to=*2 init=stack}",
                "grow-depth{to=6 init=mogrow}",
            ),
            idle=("grow-depth{to=4}", "grow-depth{to=*1}"),
            lossless=("grow-depth", "grow-depth{to=6}"),
        ),
        Setting(
            "transformers:gpt2",
            active=("grow-depth{to=5}", "grow-depth{to=4 init=random seed=3}"),
            idle=("grow-depth{to=3}",),
            lossless=("grow-depth{to=5}",),
        ),
        Setting("own:conv", active=(), idle=("grow-depth",)),
        Setting("own:image", active=("grow-depth{to=6}",), idle=(), lossless=("grow-depth{to=6}",)),
        Setting("own:conditional", active=("grow-depth{to=5}",), idle=(), lossless=("grow-depth{to=5}",)),
    ),
    "freeze": (
        Setting(
            "own:flat",
            active=(
                "freeze{level=1 of=2}",
                "freeze{prefix=2 stem=true}",
                "freeze{only=norms,head measure=false}",
                "freeze{freeze=w1_* train=w1_2 rest=frozen}",
                "freeze{freeze=g_#[1:3]}",
            ),
            idle=("freeze", "freeze{level=4}", "freeze{prefix=0}"),
            lossless=(
                "freeze{level=1 of=2}",
                "freeze{prefix=2 stem=true}",
                "freeze{only=norms,head measure=false}",
                "freeze{freeze=w1_* train=w1_2 rest=frozen}",
                "freeze{freeze=g_#[1:3]}",
            ),
        ),
        Setting(
            "own:conv",
            active=("freeze{train=head,point}", "freeze{freeze=stem_norm}"),
            idle=("freeze{measure=false}",),
            lossless=("freeze{train=head,point}", "freeze{freeze=stem_norm}"),
        ),
        Setting(
            "transformers:gpt2",
            active=("freeze{suffix=1}", "freeze{only=attention}"),
            idle=("freeze{suffix=0}",),
            lossless=("freeze{suffix=1}", "freeze{only=attention}"),
        ),
    ),
    "grow-width": (
        Setting(
            "own:flat",
            active=(
                "grow-width{width=*2}",
                "grow-width{width=24 init=zero noise=0.1 seed=5}",
                "grow-width{mlp=31}",
                "grow-width{width=*1.5 lossy=true}",
                "grow-width{width=*1.5 init=random}",
            ),
            idle=("grow-width", "grow-width{width=12}", "grow-width{mlp=*1}"),
            lossless=(
                "grow-width{width=*2}",
                "grow-width{width=24 init=zero noise=0.1 seed=5}",
                "grow-width{mlp=31}",
            ),
        ),
        Setting(
            "own:conv",
            active=("grow-width{width=*3}",),
            idle=("grow-width{width=*1}",),
            lossless=("grow-width{width=*3}",),
        ),
        Setting(
            "own:image",
            active=("grow-width{width=*2}", "grow-width{width=32 heads=4 mlp=48}"),
            idle=("grow-width{heads=2}",),
            lossless=("grow-width{width=*2}", "grow-width{width=32 heads=4 mlp=48}"),
        ),
        Setting(
            "own:conditional",
            active=("grow-width{width=*2}",),
            idle=(),
            lossless=("grow-width{width=*2}",),
        ),
        Setting(
            "transformers:gpt2",
            active=("grow-width{width=*2}",),
            idle=("grow-width{heads=4}",),
            lossless=("grow-width{width=*2}",),
        ),
    ),
    "inject-sid": (
        Setting(
            "own:flat",
            active=(
                "inject-sid",
                "inject-sid{stages=3 site=features dropout=0.0}",
                "inject-sid{stage=2}",
                "inject-sid{stage=null init=normal seed=4}",
            ),
            idle=("inject-sid{stages=0}",),
            lossless=("inject-sid", "inject-sid{stages=3 site=features dropout=0.0}", "inject-sid{stage=2}"),
        ),
        Setting(
            "diffusers:unet",
            active=("inject-sid", "inject-sid{form=token lossy=true}"),
            idle=("inject-sid{stages=0}",),
            lossless=("inject-sid",),
        ),
        Setting(STAGED, active=("inject-sid{dropout=0.5}",), idle=(), lossless=("inject-sid{dropout=0.5}",)),
    ),
    "remove-sid": (
        Setting("own:flat", active=(), idle=("remove-sid", "remove-sid{stage=2}")),
        Setting(
            STAGED,
            active=("remove-sid", "remove-sid{stage=1}", "remove-sid{stage=0}"),
            idle=(),
            lossless=("remove-sid", "remove-sid{stage=1}"),
        ),
    ),
    "grow-resolution": (
        Setting(
            "timm:vit_tiny_patch16_224@64",
            active=("grow-resolution{to=96}", "grow-resolution{to=48x80}", "grow-resolution{to=*0.5}"),
            idle=("grow-resolution{to=64}", "grow-resolution{to=*1}"),
        ),
        Setting(
            "own:conv",
            active=("grow-resolution{to=24,32}",),
            idle=("grow-resolution{to=16}",),
        ),
    ),
    "shrink": (
        Setting(
            "own:flat",
            active=(
                "shrink{depth=0.5}",
                "shrink{depth=g_#:3 rule=last width=*0.5}",
                "shrink{width=7 mlp=9 units=leading}",
                "shrink{depth=2 axes=w1_0:5 storage=copy}",
            ),
            idle=("shrink", "shrink{depth=4 width=12}", "shrink{depth=*1 mlp=20 storage=copy}"),
        ),
        Setting("own:conv", active=("shrink{width=*0.5}", "shrink{width=*0.25 storage=copy}"), idle=("shrink",)),
        Setting("transformers:gpt2", active=("shrink{depth=1 width=16 heads=2}",), idle=("shrink{heads=4}",)),
    ),
    "set-drop": (
        Setting(
            "own:dropping",
            active=(
                "set-drop{path=0.1}",
                "set-drop{path=0.0 dropout=0.0}",
                "set-drop{path=0.3 ramp=uniform}",
                "set-drop{path=0.1 dropout=0.2 ramp=linear}",
            ),
            idle=("set-drop", "set-drop{path=0.2}", "set-drop{path=0.2 dropout=0.1 ramp=linear}"),
            lossless=(
                "set-drop{path=0.1}",
                "set-drop{path=0.0 dropout=0.0}",
                "set-drop{path=0.3 ramp=uniform}",
                "set-drop{path=0.1 dropout=0.2 ramp=linear}",
            ),
        ),
        Setting(
            "transformers:gpt2",
            active=("set-drop{dropout=0.3}", "set-drop{dropout=0.0}"),
            idle=("set-drop{dropout=0.1}", "set-drop{path=0.0}"),
            lossless=("set-drop{dropout=0.3}", "set-drop{dropout=0.0}"),
        ),
    ),
}
