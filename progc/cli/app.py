"""Commands and their options. The module of the same name runs a command, and is imported only then."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from progc.cli.options import (
    AverageOption,
    EmaOption,
    InitOption,
    JsonOption,
    ModelArgOption,
    NetworkArgument,
    OutOption,
    SeedOption,
    SourceArgument,
    WeightsOption,
)
from progc.cli.schedule_options import (
    DepthsOption,
    ResolutionsOption,
    RuleOption,
    SharesOption,
    StageBatchOption,
    StagesOption,
    StrategyOption,
    UnfreezeOption,
    WidthsOption,
)
from progc.models.sizes import PRESETS

app = typer.Typer(
    name="progc",
    help="A compiler for progressive training: grows any PyTorch network, losslessly.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from progc.version import __version__

        print(f"progc {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and library warnings.")] = False,
) -> None:
    """Global options; `main` itself reads --debug."""


@app.command()
def grow(
    source: NetworkArgument,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="TARGET",
            help=f"Sizes (depth=12,width=768 or depth*2,width*1.5), a preset ({' '.join(PRESETS)}), or another model.",
        ),
    ],
    model_arg: ModelArgOption = None,
    weights: WeightsOption = None,
    ema: EmaOption = None,
    init: InitOption = None,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Accept an approximate growth where an exact one is impossible.")
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain", metavar="AXIS", help="Explain why an axis grows or does not: its name, a pattern, or `all`."
        ),
    ] = None,
    out: OutOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Grow SOURCE to the size of TARGET and check that it computes the same function."""
    from progc.cli.common import with_args
    from progc.cli.grow import run_grow

    run_grow(
        with_args(source, model_arg), to, weights=weights, ema=ema, init=init, lossy=lossy, explain=explain, out=out,
        seed=seed, as_json=as_json,
    )  # fmt: skip


@app.command()
def plan(
    source: SourceArgument,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="TARGET",
            help="The full network: sizes, a preset or a model, as for grow. Default: SOURCE itself.",
        ),
    ] = None,
    strategy: StrategyOption = None,
    stages: StagesOption = None,
    shares: SharesOption = None,
    rules: RuleOption = None,
    decide: Annotated[
        str,
        typer.Option(
            "--decide",
            metavar="WHEN",
            help="When a search decides: before training (default), or in training, at each boundary.",
        ),
    ] = "before",
    mode: Annotated[
        str, typer.Option("--mode", metavar="NAME", help="default, or reference for the published procedure.")
    ] = "default",
    depths: DepthsOption = None,
    widths: WidthsOption = None,
    resolutions: ResolutionsOption = None,
    unfreeze: UnfreezeOption = None,
    epochs: Annotated[int | None, typer.Option("--epochs", metavar="N", help="Length of the run in epochs.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Length of the run in steps.")] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", help="Batch size, for searches and costs.", min=1)
    ] = None,
    stage_batch: StageBatchOption = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="TEXT",
            help="Samples: digits, imagefolder:PATH, hf:PATH, or FILE.py with datasets() and loss(outputs, batch). "
            "Default: SOURCE's file.",
        ),
    ] = None,
    model_arg: ModelArgOption = None,
    weights: WeightsOption = None,
    seed: SeedOption = 0,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also time training steps of each stage; needs samples.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set an option of the strategy; may be repeated."),
    ] = None,
    sid: Annotated[bool, typer.Option("--sid", help="Give each stage a stage identifier (SID).")] = False,
    sid_init: Annotated[
        str | None,
        typer.Option(
            "--sid-init",
            metavar="NAME",
            help="How the rows of the stage identifier start: zero (default), or normal, as published.",
        ),
    ] = None,
    init: InitOption = None,
    regularise: Annotated[
        str | None,
        typer.Option(
            "--regularise",
            metavar="TEXT",
            help="Regularisation of the last stage, weaker in earlier ones: drop_path=.1,rand_augment=9,"
            "random_erasing=.25,mixup=.2, or none. Default: the drop rates of the network.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="JSON file to write; an existing file is replaced.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Plan the stages of a training run of SOURCE, and count what each costs."""
    from progc.cli.common import with_args
    from progc.cli.plan import run_plan
    from progc.files.values import key_values, literal
    from progc.schedule.stage_shares import batches_from_text, stages_from_text
    from progc.search.options import PlanOptions, run_length

    total, unit = run_length(epochs, steps)
    options = PlanOptions(
        strategy=strategy or "linear", stages=stages_from_text(stages, 100), shares=shares, mode=mode, depths=depths,
        widths=widths, resolutions=resolutions, unfreeze=unfreeze, batch=batch, seed=seed, total=total, unit=unit,
        measure=measure, regularise=regularise, sid=sid,
        settings={key: literal(text) for key, text in key_values(settings or (), example="batches=4").items()},
        sid_init=sid_init, init=init, decide=decide, rules=rules or (),
        stage_batch=batches_from_text(stage_batch) or (),
    )  # fmt: skip
    run_plan(with_args(source, model_arg), options, to=to, data=data, weights=weights, out=out, as_json=as_json)


@app.command()
def inspect(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE|DIR|PLAN|RUN",
            help="A model, a folder written by --out, a plan written by progc plan, a run, or a checkpoint.",
            show_default=False,
        ),
    ],
    axes: Annotated[
        bool, typer.Option("--axes", help="List the axes: which can be widened, and why others cannot.")
    ] = False,
    chains: Annotated[bool, typer.Option("--chains", help="List the chains of blocks, which can be deepened.")] = False,
    graph: Annotated[bool, typer.Option("--graph", help="Print the captured eval graph.")] = False,
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain", metavar="AXIS", help="Explain why an axis may or may not grow: its name, a pattern, or `all`."
        ),
    ] = None,
    stage: Annotated[
        int | None,
        typer.Option(
            "--stage", metavar="K", help="Show stage K of a plan or run in full, or its network. Default: the newest."
        ),
    ] = None,
    model_arg: ModelArgOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what progc finds in a model, an output folder, a plan or a run.

    Folders, plans and runs are read without running code; tables and graph of a run's network need its source.
    """
    from progc.cli.common import with_args
    from progc.cli.inspect import run_inspect

    run_inspect(
        with_args(source, model_arg),
        axes=axes,
        chains=chains,
        graph=graph,
        explain=explain,
        stage=stage,
        as_json=as_json,
    )


@app.command()
def apply(
    source: NetworkArgument,
    pipeline: Annotated[
        str,
        typer.Option(
            "--pipeline", metavar="TEXT", help="Passes to run, such as 'grow-depth{to=12},grow-width{width=*2}'."
        ),
    ],
    model_arg: ModelArgOption = None,
    weights: WeightsOption = None,
    average: AverageOption = None,
    ema: EmaOption = None,
    init: InitOption = None,
    out: OutOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Run passes on SOURCE one after another, and verify the program after each."""
    from progc.cli.apply import run_apply
    from progc.cli.common import with_args

    run_apply(
        with_args(source, model_arg), pipeline, weights=weights, average=average, ema=ema, init=init, out=out,
        seed=seed, as_json=as_json,
    )  # fmt: skip


@app.command()
def passes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A pass to describe in full.", show_default=False)
    ] = None,
) -> None:
    """List the passes, or describe one and its options."""
    from progc.cli.passes import run_passes

    run_passes(name)


@app.command()
def diff(
    a: Annotated[
        str, typer.Argument(metavar="A", help="A model, a run, or a folder written by --out.", show_default=False)
    ],
    b: Annotated[
        str | None,
        typer.Argument(metavar="[B]", help="Another model or folder. Default: A after --pipeline.", show_default=False),
    ] = None,
    pipeline: Annotated[
        str | None, typer.Option("--pipeline", metavar="TEXT", help="Passes to run on B first; B must be a model.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="Weights to load into A: .safetensors, or .pt.")
    ] = None,
    graph: Annotated[bool, typer.Option("--graph", help="Also compare the printed graphs line by line.")] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Show what changed from A to B. Folders are read without running code."""
    from progc.cli.diff import run_diff

    run_diff(a, b, pipeline=pipeline, weights=weights, graph=graph, seed=seed, as_json=as_json)


@app.command()
def train(
    given: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG|SOURCE", help="A config file (.toml, .yaml, .json), or a model.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="Folder of the run; an existing run is resumed."),
    ] = None,
    origin: Annotated[
        str | None,
        typer.Option("--from", metavar="RUN[:STEP]", help="Go on from a checkpoint of another run, with its config."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="TEXT",
            help="Samples: digits, imagefolder:PATH, hf:PATH, or FILE.py with datasets() and loss(outputs, batch). "
            "Default: SOURCE's file.",
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="TARGET", help="The full network, as for grow. Default: SOURCE itself."),
    ] = None,
    model_arg: ModelArgOption = None,
    weights: WeightsOption = None,
    init: InitOption = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="A plan written by progc plan; replaces [plan] of the config."),
    ] = None,
    strategy: StrategyOption = None,
    decide: Annotated[
        str | None,
        typer.Option(
            "--decide",
            metavar="WHEN",
            help="When a search decides: in training, at each boundary (default), or before training.",
        ),
    ] = None,
    stages: StagesOption = None,
    shares: SharesOption = None,
    rules: RuleOption = None,
    epochs: Annotated[int | None, typer.Option("--epochs", metavar="N", help="Length of the run in epochs.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Length of the run in steps.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", metavar="N", help="Batch size over all ranks.")] = None,
    stage_batch: StageBatchOption = None,
    lr: Annotated[float | None, typer.Option("--lr", metavar="RATE", help="Peak learning rate.")] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Seed of initial weights, data order and everything else.", min=0, max=2**32 - 1),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the config; may be repeated.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print steps, sizes, memory, checkpoints and compilations per stage; train nothing."
        ),
    ] = False,
    smoke: Annotated[
        int | None,
        typer.Option(
            "--smoke", metavar="N", help="Train N steps of every stage in a temporary folder, and resume once."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a network progressively. Run the same command again to resume."""
    from progc.cli.train import run_train
    from progc.files.values import key_values
    from progc.schedule.stage_shares import batches_from_text, stages_from_text

    args = key_values(model_arg or (), example="num_classes=10", option="--model-arg")
    flags = {
        "out": ("--out", out), "data": ("--data", data), "to": ("--to", to), "weights": ("--weights", weights),
        "init": ("--init", init),
        "plan.file": ("--plan", plan), "plan.strategy": ("--strategy", strategy),
        "plan.decide": ("--decide", decide), "plan.stages": ("--stages", stages_from_text(stages)),
        "plan.shares": ("--shares", shares), "plan.rules": ("--rule", rules or None),
        "epochs": ("--epochs", epochs), "steps": ("--steps", steps), "train.batch": ("--batch", batch),
        "train.stage_batch": ("--stage-batch", batches_from_text(stage_batch)),
        "train.seed": ("--seed", seed), "train.lr": ("--lr", lr),
    }  # fmt: skip
    sets = [*(f"source_args.{name}={text}" for name, text in args.items()), *(settings or ())]
    run_train(given, origin=origin, flags=flags, sets=sets, dry_run=dry_run, smoke=smoke, as_json=as_json)


@app.command()
def export(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Folder of a run, finished or not, or of one of its checkpoints.", show_default=False
        ),
    ],
    average: AverageOption = None,
    stage: Annotated[
        int | None,
        typer.Option(
            "--stage",
            metavar="K",
            help="Export the network as stage K left it, from its last kept checkpoint. Default: the final network, or "
            "that of the newest checkpoint of an unfinished run.",
        ),
    ] = None,
    sid: Annotated[
        str | None,
        typer.Option(
            "--sid",
            metavar="ROW",
            help="The row of the stage identifier that is folded into the weights (0, 1, ... or null), or keep, which "
            "leaves the stage an input. Default: the row of the exported stage.",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="safetensors (default), pt2 (torch.export), onnx, or folder: config and weights for from_pretrained "
            "of diffusers or transformers.",
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", metavar="PATH", help="What to write; its suffix tells the format. Default: export.* in the run."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file or exported folder.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the network of a run, under the names of your own class, after checking that it computes the same."""
    from progc.cli.export import run_export

    run_export(run, average=average, stage=stage, sid=sid, form=form, to=to, force=force, as_json=as_json)


@app.command()
def doctor(
    folder: Annotated[
        Path, typer.Option("--folder", metavar="DIR", help="Folder for runs; the speed of its disk is measured.")
    ] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Check this machine: versions, devices, threads, compiler, disk, and distributed training."""
    from progc.cli.doctor import run_doctor

    run_doctor(folder, as_json=as_json)


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders written by progc train.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="A .png, .svg or .pdf file. Default for one run: plot.png in its folder."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw loss and accuracy of runs over time and steps, with the boundaries between stages."""
    from progc.cli.plot import run_plot

    run_plot(runs, out, as_json=as_json)
