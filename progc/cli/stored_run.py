"""`progc inspect` of a run: what is in its folder, and its plan. Runs no code of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from progc.cli.plan import described
from progc.cli.terminal import Terminal
from progc.errors import InputError
from progc.files.writing import json_text
from progc.runs.stored import StoredRun
from progc.schedule.detail import stage_json, stage_text
from progc.schedule.text import schedule_text


def print_run(path: Path, stage: int | None, as_json: bool) -> None:
    """Prints the state of a run and its plan, or one stage of the plan.

    Raises:
        InputError: the folder is not that of a run, a file is damaged, or there is no such stage.
    """
    terminal, run = Terminal(), StoredRun.open(path)
    if stage is not None:
        run.check_stage(stage)
        shown = json_text(stage_json(run.schedule, stage)) if as_json else stage_text(run.schedule, stage)
        terminal.print(shown)
        return
    found = _facts(run)
    if as_json:
        terminal.print(json_text({**found, "plan": described(run.schedule)}))
        return
    config = run.config
    rows = [
        ("run", f"{run.path}, {'finished' if run.finished else 'not finished'}"),
        ("source", config.source + (f" grown to {config.to}" if config.to is not None else "")),
        ("checkpoints", ", ".join(f"{item['name']} ({item['state']})" for item in found["checkpoints"]) or "none"),
        ("averages", ", ".join(map(repr, config.settings.ema)) or "none"),
    ]
    terminal.table(rows)
    terminal.print()
    terminal.print(schedule_text(run.schedule))


def _facts(run: StoredRun) -> dict[str, Any]:
    checkpoints: list[dict[str, Any]] = []
    for step, folder, manifest in run.manifests():
        stage = None if isinstance(manifest, InputError) else manifest.stage
        state = "damaged" if stage is None else f"stage {stage}"
        checkpoints.append({"name": folder.name, "step": step, "stage": stage, "state": state})
    return {
        "run": str(run.path),
        "finished": run.finished,
        "checkpoints": checkpoints,
        "config": run.config.to_json(),
    }
