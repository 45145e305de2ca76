"""docs/checkpoints.md: its example runs, and its figures are those of the measurements."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.test_docs import ROOT, blocks, execute

PAGE = ROOT / "docs/checkpoints.md"


def results(name: str) -> Any:
    return json.loads(Path(ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))["results"]


def test_the_example_runs() -> None:
    (code,) = blocks(PAGE, "python")
    execute(PAGE, code)


def test_the_figures_are_those_of_the_measurements() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("## Figures")[2]
    faults, cost = results("checkpoint_faults"), results("checkpoints")
    assert faults["kills"]["wrong"] == faults["races"]["wrong"] == faults["damages"]["wrong"] == []
    row = re.compile(r"^\| (.+?) \| (\d+) of (\d+) \|", re.MULTILINE)
    shown = {name: (int(good), int(all_)) for name, good, all_ in row.findall(text)}
    damages, kills, races = faults["damages"], faults["kills"], faults["races"]
    assert shown == {
        "damages noticed, the checkpoint before used, the file named": (damages["detected"], damages["damages"]),
        "kills after which the last complete checkpoint is the newest": (kills["kills"], kills["kills"]),
        "kills that came in the middle of a save": (kills["inside_a_save"], kills["kills"]),
        "steps that two processes saved at once and that are one's alone": (races["rounds"], races["rounds"]),
    }
    seconds = dict(re.findall(r"^\| `(\w+)` \| .* \| (\d+\.\d+) \|$", text, re.MULTILINE))
    measured = {name: value["median"] if isinstance(value, dict) else value for name, value in cost["seconds"].items()}
    assert seconds == {name: f"{value:.3f}" for name, value in measured.items()}
    assert f"{cost['bytes'] / 1e6:.0f} MB" in text
