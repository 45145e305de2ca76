"""`progc plan`: plans the stages of a training run, prints the plan, and writes it as one JSON file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progc.cli.common import versions
from progc.cli.terminal import Terminal
from progc.errors import InputError
from progc.files.writing import check_file, json_text
from progc.runs.networks import ModelAndData
from progc.schedule.stage import time_shares
from progc.schedule.text import schedule_text

if TYPE_CHECKING:
    from progc.schedule.schedule import Schedule
    from progc.search.options import PlanOptions


def run_plan(
    source: str,
    options: PlanOptions,
    *,
    to: str | None,
    data: str | None,
    weights: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Plans, writes, and prints; mistakes that are cheap to find are found before any work.

    Raises:
        ProgcError: see the exit codes of `progc.cli`.
    """
    terminal = Terminal()
    if data is not None and not options.needs_task:
        raise InputError(
            f"--data {data}: samples are for a search and for --measure, and a linear plan needs none; remove --data, "
            "or add --measure or --strategy"
        )
    opened = ModelAndData.open(source, to=to, weights=weights, data=data, seed=options.seed)
    if out is not None:
        check_file(out)

    with terminal.running():
        if options.needs_task:
            opened.check_data(f"strategy {options.strategy}" if options.searching else "--measure")
        show: dict[str, Any] = {"phase": terminal.phase, "note": terminal.note}
        options = dataclasses.replace(options, trained=opened.trained)
        # A linear plan depends on no weight; weights that are given are still checked to fit.
        opened = opened.with_drop_path(options.drop_path, terminal.note)
        start = opened.captured(real=options.needs_task or weights is not None, **show)
        full = opened.grown(start, real=options.needs_task, **show)
        task = None
        if options.needs_task:
            with terminal.phase("data"):
                task = opened.task(full)
        with terminal.phase("plan"):
            from progc.schedule.cutting import cut_notes
            from progc.search.plan import plan_with

            schedule = plan_with(
                full,
                options,
                task=task,
                source=opened.source.text,
                target=opened.to,
                start=start if to is not None else None,
                progress=terminal.note,
            )
        cut = () if to is not None else cut_notes(full, [s.point for s in schedule.stages], trained=options.trained)
        for note in (*(task.notes if task is not None else ()), *opened.not_set(full, schedule.regularisations), *cut):
            terminal.note(note)
        if out is not None:
            schedule.write(out)
    if as_json:
        terminal.print(json_text({**described(schedule), "seconds": terminal.seconds, "versions": versions()}))
        return
    terminal.print(schedule_text(schedule))
    if out is not None:
        terminal.print(f"\nwritten: {out}")


def described(schedule: Schedule) -> dict[str, Any]:
    """Returns the schedule as JSON, with the speedup and the shares of time that follow from it."""
    return {
        **schedule.to_json(),
        "speedup": schedule.speedup,
        "time_shares": time_shares(schedule.stages, unit=schedule.unit),
    }
