"""Rows of bench/published.py about samples, sources and results of a run, and about what progc does not have."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from bench.published_code import Code
from bench.published_row import CODE, FORMULA, LIBRARY, Compare, Count, Row
from bench.published_schedules import RECORD
from progc.cli import main
from progc.data.regularisation import Regularisation
from progc.data.staged import Mixed
from progc.data.task import Task
from progc.models.opening import open_source
from progc.train.settings import Settings

RECIPES = 24
"""The issue that asks for recipes: what the published scripts have beyond growth and searches."""


def resized(code: Code) -> Iterator[Row]:
    """Noise and dense targets of a denoiser's batch at smaller sizes."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(64, 4, 6, 6, generator=generator)
    clean = F.interpolate(coarse, (32, 32), mode="bicubic")
    noise = torch.randn(64, 4, 32, 32, generator=generator)
    task = Task(TensorDataset(clean + noise, noise, clean))
    batch = [clean + noise, noise, clean]
    spread, dense = Count(0.02), Count()
    for side in (8, 16, 24):
        image, target, whole = task.at_size(batch, (side, side))
        drawn = torch.randn(64, 4, side, side, generator=generator)  # as published: noise of the size of the latents
        spread.near(float(target.std()), float(drawn.std()))
        dense.same([tuple(part.shape) for part in (image, target, whole)], [tuple(drawn.shape)] * 3)
        dense.same(torch.equal(image, whole + target), True)
    source = "AutoProg-Zero train_apz.py main: noise of the shape of the latents"
    yield spread.row("noise at other sizes", "Task.at_size", source, FORMULA, numbers=True,
                     note="standard deviation, latents of 32 to 8, 16, 24")  # fmt: skip
    yield dense.row("dense targets at other sizes", "Task.at_size", source, FORMULA,
                    note="the loss gets what the network gets; image = clean + noise stays")  # fmt: skip


def images(code: Code) -> Iterator[Row]:
    """How images are read for training and evaluation."""
    from progc.models.timm import timm_options

    count = Count()
    wanted: dict[str, Any] = {"crop_pct": 0.96, "interpolation": "bicubic", "mean": (0.485, 0.456, 0.406),
                              "std": (0.229, 0.224, 0.225)}  # fmt: skip
    erasing, colour = "pixel", 0.0
    if code.autoprog is not None:
        wanted = code.module(code.autoprog, "models.volo").default_cfgs["volo"]
        erasing, colour = (_default(code.autoprog / "main_prog.py", name) for name in ("--remode", "--color-jitter"))
    config = open_source("timm:volo_d1_224").images()
    for key in ("crop_pct", "interpolation", "mean", "std"):
        count.same(getattr(config, key), wanted[key])
    ours = timm_options(rand_augment=9.0, random_erasing=0.25)["create_transform"]
    count.same(ours["re_mode"], erasing)
    count.same(ours["color_jitter"] or 0.0, colour)
    yield count.row("images at evaluation and training", "data config of timm:volo_d1_224, timm_options",
                    "AutoProg models/volo.py, main_prog.py", _side(code.autoprog))  # fmt: skip


def _default(path: Path, option: str) -> Any:
    """The default of an option of a script."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and any(isinstance(a, ast.Constant) and a.value == option for a in node.args):
            return next(ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg == "default")
    raise SystemExit(f"{path} has no option {option}")


def mixup(code: Code) -> Iterator[Row]:
    """Which sample each sample is blended with."""
    import numpy
    from timm.data import Mixup

    numpy.random.seed(0)
    many, count = 64, Count()
    own = [(F.one_hot(torch.tensor(k), many).float(), k % 5) for k in range(many)]
    theirs, _ = Mixup(mixup_alpha=0.8, num_classes=5)(torch.stack([x for x, _ in own])[..., None, None],
                                                      torch.tensor([y for _, y in own]))  # fmt: skip
    mixed = Mixed(own, 0.8, 5)
    for place in range(many):
        partners = [set(blend.flatten().nonzero().flatten().tolist()) for blend in (mixed[place][0], theirs[place])]
        count.same(*partners)
    yield count.row("mixup: partners", "Mixed", "timm's Mixup, which AutoProg main_prog.py uses", LIBRARY,
                    record=RECORD)  # fmt: skip


def sources(code: Code) -> Iterator[Row]:
    """The config of a denoiser of diffusers as a source."""
    count, config = Count(), {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4}
    if importlib.util.find_spec("diffusers") is not None:
        from diffusers import DiTTransformer2DModel

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.json"
            path.write_text(json.dumps({"_class_name": "DiTTransformer2DModel", "sample_size": 8, **config}))
            for text in (f"diffusers:{path}", f"diffusers:{folder}"):
                made = open_source(text).build_skeleton(allocate=False)
                with torch.device("meta"):
                    theirs = DiTTransformer2DModel(sample_size=8, **config)
                shapes = [{n: tuple(t.shape) for n, t in own.named_parameters()} for own in (made, theirs)]
                count.same(*shapes)
    yield count.row("diffusers:PATH/config.json", "open_source", "the class of diffusers", LIBRARY)


NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(4))

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def example_inputs():
    return (torch.randn(2, 5),)


def datasets():
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    return (x, x[:, :3].argmax(1)), (x[:16], x[:16, :3].argmax(1))
"""


def command_line(code: Code) -> Iterator[Row]:
    """From a run with MoGrow and an identifier, both from the command line, to weights of the user's class."""
    count = Count()
    with tempfile.TemporaryDirectory() as folder:
        root, said = Path(folder), io.StringIO()
        (root / "net.py").write_text(NET)
        settings = ("train.compile=eager", "train.ahead=false", "train.batch=16", "train.device=cpu",
                    "train.ema=[0.5, 0.9]", "plan.sid=true", "init=depth=mogrow,source=all")  # fmt: skip
        command = ["train", str(root / "net.py"), "--steps", "8", "--stages", "2", "--out", str(root / "run")]
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            count.same(main([*command, *(part for text in settings for part in ("--set", text))]), 0)
            said.truncate(said.seek(0))
            count.same(main(["export", str(root / "run"), "--json"]), 0)
        count.same(json.loads(said.getvalue())["class"], "equal")
    note = "exit codes, and the user's class with the weights computes what the run's network does"
    name = "identifier folded, and MoGrow, from the command line"
    yield count.row(name, "progc train, progc export", "what a run should end with", FORMULA, note=note)


def absent(code: Code) -> Iterator[Row]:
    """What the published scripts have and progc does not; a row asks to be compared once it is there."""
    fields = set(Regularisation.__dataclass_fields__)
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main(["--help"])
    commands = said.getvalue()
    parts = [
        ("CutMix, label smoothing", "cutmix" in fields or "smoothing" in fields, "AutoProg main_prog.py"),
        ("token labels, MixToken", "token" in " ".join(fields), "AutoProg loss/, models/volo.py"),
        ("layer-wise decay of the learning rate", hasattr(Settings, "layer_decay"), "recipes of DeiT"),
        ("latents of a VAE, diffusion loss", _there("progc.data.latents"), "AutoProg-Zero train_apz.py"),
        ("sampling, FID", any(word in commands for word in ("sample ", "evaluate ")), "AutoProg-Zero sample_apz.py"),
    ]
    for name, there, source in parts:
        if there:
            yield Row(name, "there; compare it and remove it from this list", source, "read, not run")
        else:
            yield Row(name, "none", source, "read, not run", issue=RECIPES, absent=True)


def _there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _side(source: Any) -> str:
    return CODE if source else FORMULA


ROWS: tuple[Compare, ...] = (resized, images, mixup, sources, command_line, absent)
