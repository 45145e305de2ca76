"""Passes compose: any order that is legal gives a verified program, any other is refused in one line with the reason.

Driven by tests/settings.py: whatever passes have an active setting on one network are run one after another on it.
"""

from __future__ import annotations

import copy
import functools
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree

import progc
from progc.errors import ProgcError, VerifyError
from progc.ir.graphs import fingerprint
from progc.ir.program import Program
from progc.ir.verify import verify
from progc.lift.revert import measure, tolerance
from progc.pipeline.base import PassResult, to_text
from progc.pipeline.manager import run
from progc.pipeline.text import parse
from tests import zoo
from tests.cli.test_golden_cli import NET as POST_NORM
from tests.command import NET, Command, files_below, in_process
from tests.pipeline.test_passes import Snapshot
from tests.settings import SETTINGS

Outcome = tuple[Program, list[PassResult]] | ProgcError


def texts() -> dict[str, dict[str, list[str]]]:
    """Network to pass to its active settings there, those that keep the function first."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, settings in SETTINGS.items():
        for setting in settings:
            if setting.active:
                ordered = sorted(setting.active, key=lambda text: text not in setting.lossless)
                found.setdefault(setting.model, {}).setdefault(name, []).extend(ordered)
    return found


def chosen(lists: tuple[list[str], ...], draw: random.Random) -> Iterator[tuple[str, ...]]:
    """The first setting of each pass, and one combination at random."""
    firsts = tuple(items[0] for items in lists)
    yield firsts
    others = [combination for combination in itertools.product(*lists) if combination != firsts]
    if others:
        yield draw.choice(others)


def pairs() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every ordered pair of passes, a pass and itself included, of each network."""
    for model, passes in texts().items():
        draw = random.Random(model)
        for names in itertools.product(passes, repeat=2):
            for combination in chosen(tuple(passes[name] for name in names), draw):
                yield model, combination


def triples(count: int = 8) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Some ordered triples of each network; three passes of one name are left out where there are others."""
    for model, passes in texts().items():
        draw = random.Random(f"{model} 3")
        names = [item for item in itertools.product(passes, repeat=3) if len(set(item)) > 1]
        for item in draw.sample(names, min(count, len(names))):
            yield model, tuple(draw.choice(passes[name]) for name in item)


def outcome(program: Program, text: str) -> Outcome:
    """What a pipeline comes to; any other exception than one for users fails the test."""
    try:
        return run(program, text)
    except ProgcError as error:
        return error


@functools.cache
def started(model: str, text: str) -> Outcome:
    """The first pass alone, once for all pipelines that begin with it."""
    return outcome(zoo.captured(model)[1], text)


PAIRS, TRIPLES = tuple(pairs()), tuple(triples())


def test_the_table_gives_what_is_to_be_composed() -> None:
    for name, settings in SETTINGS.items():
        models = {setting.model for setting in settings if setting.active}
        assert any(len(texts()[model]) > 1 for model in models), f"{name} shares no network with another pass"
    assert len(TRIPLES) >= 8 and len(set(PAIRS)) == len(PAIRS)


def quick() -> set[tuple[str, tuple[str, ...]]]:
    """What runs for each commit: each pair of passes on one network, with their first settings; pairs of a network with
    attention; and one triple of each network. Other settings, and pairs on further networks, run in `make test-all`."""
    found: dict[tuple[str, ...], tuple[str, tuple[str, ...]]] = {}
    for model, passes in texts().items():
        for names in itertools.product(passes, repeat=2):
            key = (model, *names) if model == "own:image" else names
            found.setdefault(key, (model, tuple(passes[name][0] for name in names)))
    for model, passes in TRIPLES:
        found.setdefault((model,), (model, passes))
    return set(found.values())


QUICK = quick()
CASES = [
    pytest.param(*case, id="-".join([case[0], "+".join(case[1])]), marks=[] if case in QUICK else [pytest.mark.slow])
    for case in (*PAIRS, *TRIPLES)
]


@pytest.mark.parametrize(("model", "passes"), CASES)
def test_passes_in_a_row(model: str, passes: tuple[str, ...]) -> None:
    _, program = zoo.captured(model)
    before = Snapshot(program)
    found = outcome(program, ",".join(passes))
    stepwise = one_by_one(model, passes)
    before.assert_same()
    if isinstance(found, ProgcError):
        assert isinstance(stepwise, ProgcError)
        assert_refusal(found, stepwise, passes)
        return
    assert not isinstance(stepwise, ProgcError), stepwise
    after, results = found
    assert_recorded(program, after, passes)
    verify(after)
    assert_equal(after, stepwise[0])
    assert_runs(after)
    if all(result.lossless for result in results):
        lifts = [result.lift for result in results if result.lift is not None]
        assert measure(program, after, lifts, seed=1).max_rel <= tolerance(lifts)


def one_by_one(model: str, passes: tuple[str, ...]) -> Outcome:
    """The same passes, each a pipeline of its own."""
    found = started(model, passes[0])
    results: list[PassResult] = []
    for text in passes[1:]:
        if isinstance(found, ProgcError):
            return found
        results += found[1]
        found = outcome(found[0], text)
    return found if isinstance(found, ProgcError) else (found[0], [*results, *found[1]])


def assert_refusal(found: ProgcError, alone: ProgcError, passes: tuple[str, ...]) -> None:
    """One line that names the pass, and says what the pass says by itself. The verifier refuses defects, not orders."""
    text = str(found)
    assert "\n" not in text and found.exit_code in (1, 2) and len(text) > 40
    assert not isinstance(found, VerifyError), text
    steps = [f"pass {number} of {len(passes)}, {to_text(parse(item))}: " for number, item in enumerate(passes, 1)]
    (step,) = [step for step in steps if text.startswith(step)]
    assert step != steps[0], f"alone it is an active setting: {text}"
    name = parse(passes[steps.index(step)])[0].name
    assert text == step + str(alone).removeprefix(f"{name}: ") and type(found) is type(alone)  # named once


def assert_recorded(program: Program, after: Program, passes: tuple[str, ...]) -> None:
    history = after.history
    assert [record.text for record in history] == [to_text(parse(text)) for text in passes]
    prints = [fingerprint(program), *(record.after for record in history)]
    assert [record.before for record in history] == prints[:-1] and prints[-1] == fingerprint(after)
    assert history[0].changed and program.history == ()


def assert_equal(one: Program, two: Program) -> None:
    assert fingerprint(one) == fingerprint(two) and one.tensors.keys() == two.tensors.keys()
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, two.tensors[name]), name


def assert_runs(program: Program) -> None:
    """In both modes, on its own example, with finite outputs; on a copy, since running statistics are written to."""
    module = program.replace(tensors=copy.deepcopy(dict(program.tensors))).module()
    module.load_state_dict(program.state_dict(), strict=True)
    for mode in (False, True):
        args, kwargs = pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, program.example)
        with torch.no_grad():
            leaves = pytree.tree_leaves(module.train(mode)(*args, **kwargs))
        assert all(bool(torch.isfinite(leaf).all()) for leaf in leaves if isinstance(leaf, torch.Tensor))


GROWTHS = ("grow-depth", "grow-width")


@pytest.mark.parametrize("names", list(itertools.product(GROWTHS, repeat=2)))
def test_growth_composes_in_every_order(names: tuple[str, str]) -> None:
    """That a refusal counts as right must not hide that nothing works."""
    found = one_by_one("own:flat", tuple(texts()["own:flat"][name][0] for name in names))
    assert not isinstance(found, ProgcError), found
    assert all(result.lossless for result in found[1])


def test_a_wrong_claim_is_noticed() -> None:
    """The check of claims can fail: a growth that keeps nothing is far from its source."""
    _, program = zoo.captured("own:flat")
    after, results = run(program, "grow-depth{to=7 init=interpolate},grow-width{mlp=31}")
    lifts = [result.lift for result in results if result.lift is not None]
    assert [result.lossless for result in results] == [False, True]
    assert measure(program, after, lifts, seed=1).max_rel > 1e-3


def test_a_frozen_block_stays_frozen_where_it_goes() -> None:
    """Growth in depth renumbers blocks: the flag goes with the tensor, not with the name."""
    _, program = zoo.captured("own:flat")
    frozen = {f"w1_{i}": torch.nn.Parameter(program.tensors[f"w1_{i}"].detach(), False) for i in (0, 1)}
    grown = progc.apply(program.replace(tensors={**program.tensors, **frozen}), "grow-depth{to=8},grow-width{mlp=*2}")
    assert [i for i in range(8) if not grown.tensors[f"w1_{i}"].requires_grad] == [0, 1, 2, 3]
    assert all(grown.tensors[f"w2_{i}"].requires_grad for i in range(8))


# --- on the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    Path("post.py").write_text(POST_NORM)
    return in_process(capsys)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_pipeline_that_fails_at_one_step_leaves_nothing(command: Command, tmp_path: Path, step: int) -> None:
    passes = ["grow-depth{to=4}", "grow-width{width=16}"]
    passes.insert(step - 1, "grow-width{axes=blocks.0.fc1:3}")
    outcome = command("apply", "net.py:Net", "--pipeline", ",".join(passes), "--out", "deep/out", "--json")
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"progc: error: pass {step} of 3, grow-width{{axes=blocks.0.fc1:3}}: ")
    assert files_below(tmp_path) == {"net.py", "post.py"}


def test_a_pipeline_that_cannot_be_exact_at_one_step_leaves_nothing(command: Command, tmp_path: Path) -> None:
    pipeline = "grow-width{axes=embed:8},grow-width{axes=embed:12},grow-depth"
    outcome = command("apply", "post.py:PostNorm", "--pipeline", pipeline, "--out", "out")
    assert (outcome.code, outcome.out) == (1, "")
    (line,) = outcome.err.splitlines()
    assert line.startswith(
        "progc: error: pass 2 of 3, grow-width{axes=embed:12}: grow-width cannot be exact: embed: 8 to"
    )
    assert files_below(tmp_path) == {"net.py", "post.py"}


def test_what_does_not_parse_fails_before_any_work(command: Command, tmp_path: Path) -> None:
    outcome = command("apply", "gone.py", "--pipeline", "grow-depth{to=4},grow-width{wdth=3}", "--out", "out")
    assert outcome.code == 2 and outcome.err.splitlines()[0].startswith("progc: error: grow-width has no option `wdth`")
    assert files_below(tmp_path) == {"net.py", "post.py"}
