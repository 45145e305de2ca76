"""`inject-sid`: adds a stage identifier to a network (AutoProg-Zero, Li et al. 2024)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import nn

from progc.errors import LOSSY, NotLosslessError, PassOptionError, TargetError, VerifyError
from progc.ir.deferred import values
from progc.ir.notation import module_path
from progc.ir.program import MODES, Program, StageIdentifier
from progc.lift.entry import Made
from progc.lift.lift import Lift
from progc.pipeline.base import Pass, PassResult, option
from progc.transforms.sid.edit import free_name, input_name, with_sid, with_stage
from progc.transforms.sid.sites import Site, choose_site

_STAGES, _DROPOUT = 4, 0.1
_SPREAD = 0.02
"""Standard deviation of the rows in the published code."""


@dataclasses.dataclass(frozen=True)
class InjectSid(Pass):
    """Adds a stage identifier: one learned row per stage, added where the network is conditioned.

    Idea: training changes from stage to stage, and a learned row tells the network which stage it is in (AutoProg-Zero,
    Li et al. 2024, arXiv 2410.00350; the published code adds it to the time and label embedding). The table has a row
    per stage and a null row. In training each sample gets the null row with probability `dropout`, so that guidance can
    use "no stage" like "no label".
    Preserved: the function, exactly, with `zero`, because zeros are added; not with `normal`.
    Needs: a site, found by analysis or named: values with a batch dim and a channel dim.
    Leaves behind: a parameter `stage_embedding.weight`, an input `stage` or a fixed stage, and the name of the site, so
    that `remove-sid` can fold a row back. On a program that has an identifier, the pass sets its stage and dropout.
    """

    name: ClassVar[str] = "inject-sid"

    stages: int | None = option(None, help="number of stages K; none: 4; 0 adds no identifier")
    site: str = option(
        "auto",
        help="conditioning, tokens, features, context, a module's path or a node's name; auto: the first one found",
    )
    init: str = option("zero", help="initial rows; normal: N(0, 0.02), as in the paper", choices=("zero", "normal"))
    dropout: float | None = option(
        None, help="probability of the null row in training, in [0, 1); none: 0.1, or unchanged"
    )
    stage: str | None = option(
        None, help="input, a number 0 to K-1 that is fixed in the graphs, or null; none: input, or unchanged"
    )
    form: str = option(
        "add",
        help="add the row to the values at the site, or make it an additional token (lossy)",
        choices=("add", "token"),
    )
    seed: int = option(0, help="seed of init=normal")
    lossy: bool = option(False, help="accept form=token, which is not exact")

    def __post_init__(self) -> None:
        if isinstance(self.stage, int) and not isinstance(self.stage, bool):
            object.__setattr__(self, "stage", str(self.stage))
        super().__post_init__()
        if self.stages is not None and self.stages < 0:
            raise PassOptionError(f"inject-sid: stages={self.stages}: expected a number of stages, at least 0")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise PassOptionError(f"inject-sid: dropout={self.dropout}: expected a probability in [0, 1)")
        if self.stage not in (None, "input", "null") and not str(self.stage).isdigit():
            raise PassOptionError(f"inject-sid: stage={self.stage}: expected input, null or the number of a stage")

    def run(self, program: Program) -> PassResult:
        """Adds the identifier, or sets the stage and dropout of an existing one.

        Raises:
            TargetError: no such site or stage, or an existing identifier that no option changes.
            NotLosslessError: form=token without `lossy`.
        """
        if program.sid is not None:
            return self._set(program, program.sid)
        stages = _STAGES if self.stages is None else self.stages
        if stages == 0:
            return PassResult(program, changed=False, lossless=True)
        fixed = self._fixed(stages)
        site = choose_site(program, self.site, self.form)
        if self.form == "token" and not self.lossy:
            raise NotLosslessError(
                f"inject-sid: an additional token at {site.name} changes attention weights and means, even if "
                f"it is zero; use form=add, which is exact, or {LOSSY}"
            )
        sid = StageIdentifier(
            table=free_name(program),
            stages=stages,
            site=site.name,
            stage=fixed,
            input=None if fixed is not None else input_name(program),
            dropout=_DROPOUT if self.dropout is None else self.dropout,
            form=self.form,
        )
        node = next(n for n in program.graphs["eval"].nodes if n.name == site.places[0].nodes["eval"])
        dtype = str(node.meta["tensor"].dtype).removeprefix("torch.")
        made = Made(sid.table, (stages + 1, site.width), _SPREAD if self.init == "normal" else 0.0, dtype)
        lift = Lift((), seed=self.seed, made=(made,))
        table = lift.apply(program.tensors)[sid.table]
        assert isinstance(table, nn.Parameter)
        try:
            result = with_sid(program, sid, table, site.places)
        except VerifyError as error:  # sizes that are written into the graph
            raise TargetError(
                f"inject-sid: the network cannot take an additional token at {site.name}: {error}"
            ) from error
        if self.form == "token" and _outputs(result) != _outputs(program):
            raise TargetError(
                f"inject-sid: an additional token at {site.name} would change the shapes of the outputs; use form=add"
            )
        return PassResult(
            result,
            changed=True,
            counts={"stages": stages, "values that get the row": len(site.places)},
            lift=lift,
            notes=_notes(site, module_path(node) or node.name, self.form),
            lossless=self.init == "zero" and self.form == "add",
        )

    def _fixed(self, stages: int) -> int | None:
        """The fixed stage; None for an input."""
        if self.stage in (None, "input"):
            return None
        stage = stages if self.stage == "null" else int(str(self.stage))
        if stage > stages:
            raise TargetError(f"inject-sid: stage={stage}: expected 0 to {stages - 1}, or {stages} for the null row")
        return stage

    def _set(self, program: Program, sid: StageIdentifier) -> PassResult:
        """The program with its identifier at another stage or with another dropout."""
        fixed = sid.stage if self.stage is None else self._fixed(sid.stages)
        entry = None if fixed is not None else (sid.input or input_name(program))
        dropout = sid.dropout if self.dropout is None else self.dropout
        new = dataclasses.replace(sid, stage=fixed, input=entry, dropout=dropout)
        others = self.site not in ("auto", sid.site) or self.stages not in (None, sid.stages) or self.init != "zero"
        others = others or self.form not in ("add", sid.form)
        if others or new == sid:
            now = f"stage {sid.stage} fixed" if sid.stage is not None else "the stage an input"
            raise TargetError(
                f"inject-sid: the network already has a stage identifier ({sid.stages} stages at {sid.site}, "
                f"{now}, dropout {sid.dropout:g}); set another stage= or dropout= to change it, or use "
                "remove-sid to remove it"
            )
        result = with_stage(program, new)
        rows = values(program.tensors[sid.table]).detach()
        asked = rows if None in (fixed, sid.stage) and fixed != sid.stage else rows[[fixed or 0, sid.stage or 0]]
        same = fixed == sid.stage or bool((asked == asked[0]).all())
        words = "an input" if fixed is None else f"fixed to {fixed}"
        return PassResult(result, changed=True, notes=(f"the stage is {words}, dropout is {dropout:g}",), lossless=same)


def _outputs(program: Program) -> list[Any]:
    return [next(iter(reversed(program.graphs[mode].nodes))).meta.get("tensor") for mode in MODES]


def _notes(site: Site, where: str, form: str) -> tuple[str, ...]:
    if form == "token":
        return (f"{site.name}: an additional token after {where}", "remove-sid cannot fold a token")
    more = f" and {len(site.places) - 1} more values" if len(site.places) > 1 else ""
    if site.fold.targets:
        names = ", ".join(name for name, _ in site.fold.targets)
        return (f"{site.name}: added at {where}{more}", f"remove-sid will fold it into {names}")
    return (
        f"{site.name}: added at {where}{more}",
        f"remove-sid will refuse, because no parameter can absorb the row: {site.fold.reason}",
    )
