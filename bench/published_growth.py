"""Rows of bench/published.py about networks: growth operators, averages, tables of positions, identifier, sizes."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import progc
from bench import published_formulas as formulas
from bench.published_code import Code
from bench.published_nets import (
    Kinds,
    WithoutStage,
    block_of,
    chains,
    denoiser,
    image_network,
    latents,
    perturbed,
    sub_network,
)
from bench.published_row import CODE, FORMULA, LIBRARY, Compare, Count, Row
from bench.published_schedules import RECORD
from progc.data.regularisation import Regularisation
from progc.ir.program import Average, Program
from progc.lift.averages import DECAYS, Averages, attached
from progc.models.opening import open_source
from progc.passes.grow_depth import GrowDepth
from progc.pipeline.manager import run
from progc.pipeline.text import parse_inits
from progc.schedule import Point
from progc.schedule.regularising import passes_for
from progc.search.supernet import Supernet
from progc.transforms.dropping import find_drops
from progc.transforms.sid.prompt import guided

SMALL, DEEP, FULL = (2, 7), (4, 8), (4, 14)
"""Layers of both kinds: 9, 12 and 18 as published."""


def growth(code: Code) -> Iterator[Row]:
    """Growth from 9 to 12 layers by MoGrow, and of the four averages."""
    small, bigger = image_network(code, SMALL), image_network(code, DEEP, seed=1)
    averages = [perturbed(copy.deepcopy(small), seed) for seed in (2, 3, 4, 5)]
    program = attached(
        progc.capture(small, (torch.zeros(2, 3, 64, 64),)),
        [Average(dict(own.state_dict()), decay) for own, decay in zip(averages, DECAYS, strict=True)],
    )
    to = dict(zip(chains(code), DEEP, strict=True))
    inits = parse_inits("depth=mogrow,source=all")  # what a run's config says
    (asked,) = Point(depths=to).growing(Point(), inits)
    result, _ = run(program, [asked], verify=False)
    new, _ = run(program, [GrowDepth(to=tuple(f"{name}:{n}" for name, n in to.items()), init="mogrow")], verify=False)
    side, slow = _side(code.autoprog), averages[3]
    theirs = _grown(code, bigger, slow, averages)
    weights, statistics, only_new, own = Count(1e-6), Count(1e-6), Count(1e-6), Count(1e-6)
    parameters = {name for name, _ in bigger.named_parameters()}
    for name, tensor in theirs.items():
        if name in parameters:
            weights.tensors(result.tensors[name], tensor)
            only_new.tensors(new.tensors[name], tensor)
        elif "running" in name:
            statistics.tensors(result.tensors[name], tensor)
    for average, model in zip(result.averages, averages, strict=True):
        for name, tensor in _grown(code, image_network(code, DEEP, seed=1), model).items():
            if name in parameters:
                own.tensors(average.tensors[name], tensor)
    source = "AutoProg prog/helpers.py load_slice_clone_ema"
    config = "grow-depth, from the text depth=mogrow,source=all of a run's config"
    yield weights.row("MoGrow, source=all", config, source, side, numbers=True)
    yield only_new.row("MoGrow, default", "grow-depth init=mogrow", source, side, numbers=True, record=RECORD,
                       note="only inserted blocks come from the average")  # fmt: skip
    yield statistics.row("norm statistics at growth", config, source, side, numbers=True, record=RECORD,
                         note="the published code begins with mean 0 and variance 1")  # fmt: skip
    yield own.row("four averages, grown", "grow-depth", "AutoProg prog/helpers.py load_slice_clone", side, numbers=True)


def _grown(code: Code, model: Any, source: Any, averages: list[Any] | None = None) -> dict[str, Tensor]:
    """Tensors of the deeper network as published; with `averages` by MoGrow."""
    if code.autoprog is not None:
        helpers = code.module(code.autoprog, "prog.helpers")
        with contextlib.redirect_stdout(io.StringIO()):
            if averages is None:
                helpers.load_slice_clone(model, source)
            else:
                helpers.load_slice_clone_ema(model, source, averages)
        state = dict(model.state_dict())
    else:
        held, state = source.state_dict(), {}
        for name in model.state_dict():
            origin = name
            for chain, old, new in zip(chains(code), SMALL, DEEP, strict=True):
                place = block_of(name, chain)
                if place is not None:
                    layer = formulas.layer_sources(old, new)[place]
                    origin = name.replace(f"{chain}.{place}.", f"{chain}.{layer}.")
            state[name] = held[origin]
    if code.autoprog is None:  # the published statistics are those of a new network
        fresh = nn.BatchNorm2d(1)
        state |= {n: t * 0 + getattr(fresh, n.split(".")[-1]) for n, t in state.items() if "running" in n}
    return state


def averages(code: Code) -> Iterator[Row]:
    """Ten updates of the four averages."""
    from timm.utils import ModelEmaV2

    model, count = Kinds((1, 1), 32), Count(1e-6)
    ours, theirs = Averages(model), [ModelEmaV2(model, decay=decay) for decay in DECAYS]
    for step in range(10):
        perturbed(model, step)
        ours.update(model)
        for each in theirs:
            each.update(model)
    for decay, each in zip(DECAYS, theirs, strict=True):
        for name, tensor in each.module.state_dict().items():
            count.tensors(ours.tensors[decay][name], tensor)
    yield count.row(
        "four averages", "EMA", "timm's ModelEmaV2, which AutoProg main_prog.py uses", LIBRARY, numbers=True
    )


def supernet(code: Code) -> Iterator[Row]:
    """Outputs of sub-networks of 9, 15 and 18 layers of a supernet of 18, at the full and at half the image size."""
    model = image_network(code, FULL)
    program = progc.capture(model, (torch.zeros(2, 3, 64, 64),))
    sizes = {9: (2, 7), 15: (4, 11), 18: (4, 14)}
    generator = torch.Generator().manual_seed(0)
    full, half, scale = Count(1e-5), Count(1e-5), 0.0
    for side, count in ((64, full), (32, half)):
        points = [
            Point(dict(zip(chains(code), sizes[layers], strict=True)), {}, None if side == 64 else (side, side))
            for layers in sizes
        ]
        base = dict(zip(chains(code), SMALL, strict=True))
        images = torch.randn(4, 3, side, side, generator=generator)
        for layers, member in zip(sizes, Supernet(program, points, base=base, nesting="deepest").members, strict=True):
            with torch.no_grad():
                theirs = sub_network(model, 9, layers, 18, lambda total: sizes[total])(images)
                count.tensors(member.module.eval()(images), theirs)
            scale = max(scale, float(theirs.abs().max()))
    names, side_ = ("Supernet", "AutoProg models/volo.py set_sample_config"), _side(code.autoprog)
    yield full.row("supernet's outputs, full size", *names, side_, numbers=True)
    yield half.row("supernet's outputs, half size", *names, side_, numbers=True, record=RECORD,
                   note=f"of outputs up to {scale:.2g}: the table of positions")  # fmt: skip


def tables(code: Code) -> Iterator[Row]:
    """Tables of positions at other sizes: of images (a parameter), of latents (sines)."""
    side_ = _side(code.autoprog)
    count, largest = Count(1e-6), 0.0
    for side, new in ((64, 128), (64, 32)):
        model = image_network(code, (1, 1), side)
        program = progc.capture(model, (torch.zeros(2, 3, side, side),))
        ours = _at(program, new).tensors["pos_embed"]
        places = torch.zeros(1, new // 16, new // 16, ours.shape[-1])
        with torch.no_grad():
            theirs = model.table(new // 16) if isinstance(model, Kinds) else model.interpolate_pos_encoding(places)
        count.tensors(ours, theirs)
        largest = max(largest, float(theirs.abs().max()))
    yield count.row("learned table of positions at another size", "grow-resolution, shrink",
                    "AutoProg models/volo.py interpolate_pos_encoding", side_, numbers=True, record=RECORD,
                    note=f"64 to 128 and 32 pixels, of values up to {largest:.2g}")  # fmt: skip
    count, full = Count(1e-6), 32
    model = denoiser(code, full)
    program = progc.capture(*_call(code, model, latents(full, 2)))
    name = next(name for name in program.tensors if name.endswith("pos_embed"))
    gaps = []
    for new in (8, 16, 24):
        ours, table = _at(program, new).tensors[name], model.pos_embed
        if code.zero is None:
            square = table.transpose(1, 2).unflatten(2, (full // 2, full // 2))
            theirs = formulas.resampled(square, new // 2).flatten(2).transpose(1, 2)
        else:
            theirs = model.interpolate_pos_encoding(torch.zeros(1, (new // 2) ** 2, ours.shape[-1]), new, new)
        count.tensors(ours, theirs)
        gaps.append(f"{float((ours - theirs).abs().max()):.2g}")
    yield count.row("computed table of positions at another size", "shrink",
                    "AutoProg-Zero apz_models.py interpolate_pos_encoding", _side(code.zero), numbers=True,
                    record=RECORD, note=f"latents of 32 to 8, 16, 24: {', '.join(gaps)}")  # fmt: skip


def _at(program: Program, side: int) -> Program:
    from progc.transforms.resolution.resize import resize

    after = resize(program, str(side)).program
    return after.complete()


def _call(code: Code, model: Any, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return (model if code.zero is None else WithoutStage(copy.deepcopy(model))), inputs


def identifier(code: Code) -> Iterator[Row]:
    """Outputs with each row and the null row, guidance, and the rate of the null row in training."""
    model, inputs = denoiser(code, dropout=0.1), latents()
    program = progc.capture(*_call(code, model, inputs))
    after = progc.apply(program, "inject-sid{init=normal}")
    assert after.sid is not None and after.sid.input is not None
    rows = after.tensors[after.sid.table].detach()
    if code.zero is not None:
        with torch.no_grad():
            model.s_embedder.embedding_table.weight.copy_(rows)
    x, t, y = inputs
    module, outputs, folded, half = after.module().eval(), Count(1e-5), Count(1e-5), Count(1e-5)
    with torch.no_grad():
        for stage in range(5):
            stages = torch.full((len(x),), stage)
            theirs = model(x, t, y, rows[stage] if code.zero is None else stages)
            outputs.tensors(module(*inputs, **{after.sid.input: stages}), theirs)
            plain = progc.apply(after, f"remove-sid{{stage={stage}}}")
            folded.tensors(plain.module().eval()(*inputs), theirs)
        null = torch.full_like(y, 5)
        ours = guided(module, after.sid, (inputs, {}), ((x, t, null), {}), scale=1.5, stage=3, channels=3)
        if code.zero is None:
            with_label, without = (model(x, t, label, rows[k]) for label, k in ((y, 3), (null, 4)))
            theirs = torch.cat([without[:, :3] + 1.5 * (with_label - without)[:, :3], with_label[:, 3:]], 1)
        else:
            twice = [torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null])]
            theirs = model.forward_with_cfg(*twice, 1.5, torch.tensor([3, 4]).repeat_interleave(len(x)))[: len(x)]
        half.tensors(ours, theirs)
    side = _side(code.zero)
    yield outputs.row("identifier: outputs", "inject-sid", "AutoProg-Zero apz_models.py DiT", side, numbers=True)
    yield half.row("identifier: guidance", "guided", "AutoProg-Zero apz_models.py forward_with_cfg", side, numbers=True)
    yield folded.row("identifier, folded", "remove-sid", "AutoProg-Zero apz_models.py DiT", side, numbers=True)
    yield _null_rate(code)


def _null_rate(code: Code) -> Row:
    """How many of 2,000 samples get the null row in training."""
    torch.manual_seed(0)
    many, count = 2000, Count(5 * (0.1 * 0.9 / 2000) ** 0.5)
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    program = progc.apply(progc.capture(plain, (torch.randn(2, 4),)), "inject-sid{site=features}")
    assert program.sid is not None and program.sid.input is not None
    with torch.no_grad():
        program.tensors[program.sid.table][-1] = 10.0
    module, x = program.module().train(), torch.ones(many, 4)
    found = module(x, **{program.sid.input: torch.zeros(many, dtype=torch.int64)})
    module.eval()
    usual = module(x[:1], **{program.sid.input: torch.zeros(1, dtype=torch.int64)})
    theirs = 0.1
    if code.zero is not None:
        embedder = code.module(code.zero, "apz_models").StageEmbedder(4, 8, 0.1)
        theirs = float((embedder.token_drop(torch.zeros(many, dtype=torch.int64)) == 4).float().mean())
    count.near(float((~torch.isclose(found, usual)).any(1).float().mean()), theirs)
    source = "AutoProg-Zero apz_models.py StageEmbedder"
    return count.row("identifier: rate of the null row", "inject-sid", source, _side(code.zero), numbers=True,
                     note=f"{many} samples; the tolerance is five standard errors")  # fmt: skip


def drop_path(code: Code) -> Iterator[Row]:
    """Rates of drop-path in each block: of a source with the argument, and after a stage's rate is set."""
    source = "timm:vit_tiny_patch16_224?img_size=8&patch_size=4&in_chans=1&embed_dim=24&depth=4&num_heads=3"
    count = Count(1e-6)
    program = open_source(f"{source}&drop_path_rate=0.1").program()
    ours = [drop.rate for drop in find_drops(program.graphs["train"]) if drop.kind == "path"]
    theirs = [own for own in formulas.drop_rates(0.1, [4], [True])[1:] for _ in ("attention", "mlp")]
    count.same(len(ours), len(theirs))
    for rate, other in zip(ours, theirs, strict=False):
        count.near(rate, other)
    yield count.row("drop-path of a library's network", "timm:NAME?drop_path_rate=0.1",
                    "AutoProg models/volo.py transformer_blocks", FORMULA, numbers=True)  # fmt: skip
    count, each = Count(1e-6), 1 if code.autoprog is None else 2
    for rate in (0.1 / 3, 0.2 / 3):
        program = progc.capture(image_network(code, SMALL, rate=0.1), (torch.zeros(2, 3, 64, 64),))
        after, _ = run(program, passes_for(Regularisation(drop_path=rate), program), verify=False)
        ours = [drop.rate for drop in find_drops(after.graphs["train"]) if drop.kind == "path"]
        if code.autoprog is None:
            theirs = [own for own in formulas.drop_rates(rate, SMALL, (False, True)) if own]
        else:
            built = image_network(code, SMALL, rate=rate).modules()
            theirs = [module.drop_prob for module in built if type(module).__name__ == "DropPath"]
        theirs = [own for own in theirs for _ in range(each)]
        count.same(len(ours), len(theirs))
        for own, other in zip(ours, theirs, strict=False):
            count.near(own, other)
    yield count.row("drop-path of a stage", "set-drop", "AutoProg models/volo.py transformer_blocks",
                    _side(code.autoprog), numbers=True)  # fmt: skip


def presets(code: Code) -> Iterator[Row]:
    """Number of parameters of DiT-XL/2."""
    skeleton = open_source("diffusers:dit_xl").build_skeleton(allocate=False)
    ours = sum(parameter.numel() for parameter in skeleton.parameters())
    width = 1152
    theirs = 28 * (18 * width**2 + 15 * width) + 17 * width + (258 * width + width**2) + 1001 * width + 5 * width
    theirs += 32 * width + 32 + 2 * width**2 + 2 * width
    if code.zero is not None:
        with torch.device("meta"):
            made = code.module(code.zero, "apz_models").DiT_XL_2()
        theirs = sum(parameter.numel() for parameter in made.parameters())
    count = Count()
    count.same(ours, theirs)
    note = f"{ours / 1e6:.0f} M parameters here, {theirs / 1e6:.0f} M published"
    source = "AutoProg-Zero apz_models.py DiT_XL_2"
    yield count.row("preset dit_xl", "diffusers:dit_xl", source, _side(code.zero), record=RECORD, note=note)


def _side(source: Any) -> str:
    return CODE if source else FORMULA


ROWS: tuple[Compare, ...] = (growth, averages, supernet, tables, identifier, drop_path, presets)
