"""The card of optimizer state: its example runs, its figures and its picture are those of the measurement."""

from __future__ import annotations

import importlib
import json
import re
from typing import Any

import pytest

from tests.test_docs import CARDS, OTHER_CARDS, blocks, execute

CARD = CARDS / f"{OTHER_CARDS[0]}.md"
DATA: dict[str, Any] = json.loads((CARDS / "state_evidence.json").read_text(encoding="utf-8"))


def test_example_runs() -> None:
    (code,) = blocks(CARD, "python")
    execute(CARD, code)


def test_figures_are_those_of_the_measurement() -> None:
    section = CARD.read_text(encoding="utf-8").partition("## Evidence")[2].partition("\n## ")[0]
    tables = [part for part in section.split("\n\n") if part.strip().startswith("|")]
    assert len(tables) == 2
    seen = set()
    for table in tables:
        head, _, *rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.strip().splitlines()]
        for variant, *cells in rows:
            name = variant.strip("`")
            seen.add(name)
            for step, cell in zip(head[1:], cells, strict=True):
                measured = DATA["losses"][name][DATA["marks"].index(int(step))]
                assert re.findall(r"\d+\.\d+", cell) == [f"{value:.2f}" for value in measured], (name, step)
    assert seen == set(DATA["losses"])


def test_the_curves_show_the_bump_that_mapping_avoids() -> None:
    """In the median, one step after growth; and corrected rates keep to the way of the network that did not grow."""
    first = DATA["marks"].index(1)
    loss = {name: rows[first][0] for name, rows in DATA["losses"].items()}
    assert loss["width, state dropped, rates corrected"] > 1.15 > loss["width, state mapped, rates corrected"]
    assert loss["depth, state dropped"] > 1.4 > 1.1 > loss["depth, state mapped"]
    for one, two in zip(
        DATA["losses"]["not grown"], DATA["losses"]["width, state mapped, rates corrected"], strict=True
    ):
        assert abs(one[0] - two[0]) < 0.02


def test_the_picture_is_drawn_from_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CARDS))
    script = importlib.import_module("state_evidence")
    assert script.picture(DATA) == (CARDS / "optimizer-state.svg").read_text(encoding="utf-8")
