"""Options of the command line that say how a run is divided into stages; `plan` and `train` share most of them."""

from __future__ import annotations

from typing import Annotated

import typer

StrategyOption = Annotated[
    str | None,
    typer.Option(
        "--strategy",
        metavar="NAME",
        help="How stages are chosen: linear, one-shot, zero-shot, or one of an installed package.",
    ),
]
StagesOption = Annotated[
    str | None,
    typer.Option(
        "--stages",
        metavar="K",
        help="Number of stages; the last one is the full network. auto: one per level. Default: that of --shares, "
        "else 4.",
    ),
]
SharesOption = Annotated[
    str | None,
    typer.Option(
        "--shares",
        metavar="TEXT",
        help="Part of the run per stage, such as 0.5,0.2,0.1,0.2, or whole numbers as proportions: 50,20,10,20. "
        "late: half of the run for the first stage (late:0.7 for more), the rest evenly. Default: even.",
    ),
]
RuleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        metavar="TEXT",
        help="End stages early or late by a rule: plateau, or gain{window=2 fraction=0.2}; may be repeated.",
    ),
]
StageBatchOption = Annotated[
    str | None,
    typer.Option(
        "--stage-batch",
        metavar="TEXT",
        help="Samples per step of each stage, one integer per stage: 256,128,64. Default: --batch in all stages.",
    ),
]
DepthsOption = Annotated[
    str | None, typer.Option("--depths", metavar="TEXT", help="Depth levels, such as 0.5:1:4, 6,8,12 or none.")
]
WidthsOption = Annotated[
    str | None, typer.Option("--widths", metavar="TEXT", help="Width levels, such as 0.5:1:2. Default: none.")
]
ResolutionsOption = Annotated[
    str | None,
    typer.Option("--resolutions", metavar="TEXT", help="Image sizes in pixels, such as 128,160,192,224 or none."),
]
UnfreezeOption = Annotated[
    str | None,
    typer.Option("--unfreeze", metavar="TEXT", help="Which blocks train: interleave:4, prefix:4, suffix:4 or none."),
]
