"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="path.py[:name], timm:NAME, torchvision:NAME, diffusers:NAME|PATH, or transformers:PATH.",
        show_default=False,
    ),
]
NetworkArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE|RUN",
        help="A model (path.py[:name], timm:NAME, torchvision:NAME, diffusers:NAME|PATH, or transformers:PATH), or the "
        "folder of a run or of one of its checkpoints, with its weights.",
        show_default=False,
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="Weights to load: .safetensors, or .pt with tensors only."),
]
EmaOption = Annotated[
    Path | None,
    typer.Option("--ema", metavar="FILE", help="Averaged weights (EMA), grown like the weights; mogrow needs them."),
]
ModelArgOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model-arg",
        metavar="KEY=VALUE",
        help="Argument of the model's constructor, such as num_classes=10 or drop_path_rate=0.1; may be repeated.",
    ),
]
InitOption = Annotated[
    str | None,
    typer.Option(
        "--init",
        metavar="TEXT",
        help="How new weights are made, such as width=zero,depth=stack. Width: copy (default), zero or random. "
        "Depth: identity (default), interpolate, stack, mogrow or random; mogrow also has source=all and ema=DECAY.",
    ),
]
AverageOption = Annotated[
    float | None,
    typer.Option(
        "--average", metavar="D", help="Take the averaged weights (EMA) of this decay; for a run that keeps averages."
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Output folder; it must be empty or not exist.")
]
SeedOption = Annotated[
    int, typer.Option("--seed", help="Seed of initial weights and of noise in grown weights.", min=0, max=2**32 - 1)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
