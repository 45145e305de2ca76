"""One-shot search: what it trains, what it decides, what it leaves behind."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import progc
from progc.data.task import Task
from progc.errors import CheckError, InputError
from progc.ir.program import Program
from progc.lift.averages import Averages
from progc.schedule import Index, Space
from progc.schedule.point import Point
from progc.search import one_shot_stage
from progc.search.elastic import draws
from progc.search.one_shot import Searched, copied, decide, search, search_stage, stage_rates, train_on
from progc.search.one_shot_stage import OneShotSettings
from progc.search.supernet import Supernet
from tests import nets, zoo

DEPTHS = Space(depths=tuple({"blocks": depth} for depth in (2, 3, 4)))
BOTH = Space(depths=tuple({"blocks": depth} for depth in (2, 3, 4)), resolutions=((16, 16), (32, 32)))
SMALL = Space(depths=({"blocks": 2}, {"blocks": 4}), resolutions=((16, 16), (32, 32)))
QUICK = {"batches": 2, "epochs": 1.0, "time": "predicted"}


class Samples:
    """Images of seven kinds, told apart by their mean; drawn again each time, from the index alone."""

    def __init__(self, number: int = 24) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return 0.1 * image + 0.3 * (index % 7), index % 7


@functools.cache
def _captured() -> Program:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return progc.capture(zoo.perturb(nets.ImageTransformer(width=8)), (zoo.image(32),))


def program() -> Program:
    return copied(_captured())


def values(tensors: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in dict(tensors).items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def searched(space: Space = DEPTHS, current: Index | None = None, mode: str = "default", **more: Any) -> Searched:
    own = more.pop("program", None) or program()
    settings = {**QUICK, **more.pop("settings", {})}
    more = {"stage": 0 if current is None else 1, "stages": 4, "batch": 4, **more}
    return search_stage(own, space, current, Task(Samples()), mode=mode, settings=settings, **more)


@pytest.fixture(autouse=True)
def quick_times(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Counting takes longer than training these networks; tests of what is counted take the real thing."""
    if "counted" not in request.node.name:
        monkeypatch.setattr(
            "progc.schedule.costing.predicted_seconds", lambda own, *, batch: own.num_parameters() * batch * 1e-6
        )


# -- draws -----------------------------------------------------------------------------------------------------------


def test_draws_are_uniform_independent_and_follow_from_the_numbers_alone() -> None:
    torch.manual_seed(1)
    first = draws(3, 5, 9000, 9)
    torch.manual_seed(2)
    assert draws(3, 5, 9000, 9) == first and draws(3, 6, 9000, 9) != first and draws(4, 5, 9000, 9) != first
    assert all(900 < first.count(member) < 1100 for member in range(9))
    again = sum(a == b for a, b in zip(first, first[1:], strict=False))
    assert 900 < again < 1100


def test_ranks_train_the_same_and_go_by_what_the_first_one_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    results = []
    for rank, times in enumerate(([3.0, 2.0, 1.0], [1.0, 2.0, 3.0])):
        monkeypatch.setattr("progc.schedule.timing.step_times", lambda *args, own=times, **more: own)

        def agreed(question: str, answer: Any, rank: int = rank) -> Any:
            if rank == 0:
                told.append(answer())
            return told[0]

        monkeypatch.setattr(one_shot_stage, "agreed", agreed)
        torch.manual_seed(rank)
        results.append(searched(settings={"time": "measured"}))
    first, second = results
    assert [c.scores["time"] for c in second.decision.candidates] == [3.0, 2.0, 1.0]
    assert first.index == second.index and first.decision.reason == second.decision.reason
    assert equal(values(first.program.tensors), values(second.program.tensors))


# -- what happens ------------------------------------------------------------------------------------------------------


def test_a_search_trains_and_hands_everything_over() -> None:
    own = program()
    before = values(own.tensors)
    optimizer = torch.optim.AdamW([t for _, t in own.parameters()], lr=0.01)
    ema = Averages(own, (0.9, 0.99))
    found = searched(BOTH, program=own, optimizer=optimizer, ema=ema)
    assert found.steps == 6 and found.optimizer is optimizer and found.ema is ema
    assert found.decision.settings["steps"] == 6 and len(found.decision.candidates) == 6
    held = [t for group in optimizer.param_groups for t in group["params"]]
    assert [id(t) for t in held] == [id(t) for _, t in found.program.parameters()]
    assert all(optimizer.state[t]["exp_avg"].shape == t.shape for t in held if t in optimizer.state)
    ema.update(found.program)
    point = BOTH.point(found.index)
    assert len(found.program.chains["blocks"].blocks) == point.depths["blocks"]
    assert found.program.example[0][0].shape[2:] == point.resolution
    assert not equal(values(found.program.tensors), {n: before[n] for n in found.program.tensors if n in before})
    found.program.module().train()(torch.randn(2, 3, *(point.resolution or ())))
    numbers: list[int] = []
    more: Any = {"epochs": 0.5, "batch": 4, "stage": 0, "done": 6, "before_step": numbers.append, "ema": ema}
    assert train_on(found.program, optimizer, Task(Samples()), **more) == 3 and numbers == [6, 7, 8]
    assert ema.num_updates == 1 + 6 + 3


def test_candidates_of_a_later_stage_start_equal_at_the_present_resolution() -> None:
    point = Point({"blocks": 2}, resolution=(16, 16))
    small = Supernet(program(), [point])
    own = small.recycled(small.members[0])
    expected = own.module().eval()(torch.ones(2, 3, 16, 16))
    optimizer = torch.optim.SGD([t for _, t in own.parameters()], lr=0.0)
    found = searched(BOTH, Index(), program=own, optimizer=optimizer, settings={"evaluations": 2})
    assert found.decision.settings["growth"] == "identity"
    scores = {str(c.point): c.scores["loss"] for c in found.decision.candidates}
    assert list(scores) == [f"blocks:{depth} {size}" for size in (16, 32) for depth in (2, 3, 4)]
    for size in (16, 32):
        assert [scores[f"blocks:{depth} {size}"] for depth in (3, 4)] == pytest.approx([scores[f"blocks:2 {size}"]] * 2)
    assert scores["blocks:2 16"] != pytest.approx(scores["blocks:2 32"], rel=1e-3)
    if found.index.resolution == 0:
        torch.testing.assert_close(found.program.module().eval()(torch.ones(2, 3, 16, 16)), expected)


def test_where_no_exact_identity_exists_new_blocks_are_copies() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4))
            self.head = nn.Linear(6, 7)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    class Rows(Samples):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.randn(6, generator=torch.Generator().manual_seed(index)), index % 7

    own = progc.capture(Plain(), (torch.randn(2, 6),))
    space = Space(depths=tuple({"layers": depth} for depth in (2, 3, 4)))
    small = Supernet(own, [Point({"layers": 2})])
    more: Any = {"stage": 1, "stages": 4, "batch": 4, "settings": QUICK}
    found = search_stage(small.recycled(small.members[0]), space, Index(), Task(Rows()), **more)
    assert (
        found.decision.settings["growth"]
        == "interpolate, because new blocks cannot be exact identities in this network"
    )
    with pytest.raises(CheckError, match="cannot|identity"):
        strict = {**more, "settings": {**QUICK, "growth": "identity"}}
        search_stage(small.recycled(small.members[0]), space, Index(), Task(Rows()), **strict)


def test_width_is_searched_like_depth() -> None:
    space = Space(widths=({"mlp": 8}, {"mlp": 16}))
    places, decisions = search(program(), space, Task(Samples()), stages=3, batch=4, settings=QUICK)
    assert places[-1] == space.last and len(decisions[0].candidates) == 2
    assert places[0].width <= places[1].width <= 1


@pytest.mark.parametrize(
    "name, chain, mode", [("resnet", "layer1", "reference"), ("dit", "transformer_blocks", "default")]
)
def test_other_networks(name: str, chain: str, mode: str) -> None:
    from tests.search import test_supernet as other

    samples = [{"image": image} for image in other.batch(name)["image"].repeat(4, 1, 1, 1)]
    data = dataclasses.replace(other.task(name), samples=samples)
    space = Space(depths=({chain: 2}, {chain: 4}))
    places, (decision,) = search(other.program(name), space, data, stages=2, batch=2, mode=mode, settings=QUICK)
    assert places[-1] == space.last and decision.settings["steps"] == 4
    assert all(candidate.scores["loss"] > 0 for candidate in decision.candidates)


def test_each_stage_trains_with_its_own_rates_of_dropping_or_as_published_the_last_ones() -> None:
    from progc.transforms.dropping import find_drops

    class Dropping(nets.ImageTransformer):
        def __init__(self) -> None:
            super().__init__(width=8)
            self.drop = nn.Dropout(0.4)

        def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
            return super().forward(self.drop(x))

    own = progc.capture(Dropping(), (zoo.image(32),))
    assert [rate.dropout for rate in stage_rates(own, 4, "default")] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [rate.dropout for rate in stage_rates(own, 4, "reference")] == pytest.approx([0.4] * 4)
    found = searched(program=own, regularisation=stage_rates(own, 4, "default")[0])
    assert [drop.rate for drop in find_drops(found.program.graphs["train"])] == pytest.approx([0.1])


def test_time_is_counted_by_default_and_measured_on_request() -> None:
    counted, measured = searched(), searched(settings={"time": "measured"})
    for found, kind in ((counted, "predicted"), (measured, "measured")):
        times = [candidate.scores["time"] for candidate in found.decision.candidates]
        assert found.decision.settings["time"] == kind and all(seconds > 0 for seconds in times)
    assert counted.decision.candidates[0].scores["time"] < counted.decision.candidates[-1].scores["time"]


# -- nothing is lost -----------------------------------------------------------------------------------------------


def test_with_one_candidate_nothing_is_trained() -> None:
    own = program()
    before = values(own.tensors)
    optimizer = torch.optim.AdamW([t for _, t in own.parameters()], lr=0.01)
    found = searched(DEPTHS, Index(depth=2), program=own, optimizer=optimizer)
    assert found.steps == 0 and found.index == Index(depth=2) and equal(values(found.program.tensors), before)
    assert found.decision.reason == "blocks:4: the only candidate, so no search was needed"


def test_the_last_stage_is_the_full_network() -> None:
    first = searched(SMALL)
    found = searched(SMALL, first.index, program=first.program, stage=3, optimizer=first.optimizer)
    assert found.index == SMALL.last and found.steps == 0
    assert found.program.example[0][0].shape[2:] == (32, 32)
    assert len(found.program.chains["blocks"].blocks) == 4


@pytest.mark.parametrize("epochs, evaluations, marks", [
    (2, 5, (12, (6, 7, 9, 10, 12))), (1, 5, (6, (0, 1, 3, 4, 6))), (0.5, 3, (3, (0, 1, 3))), (0.01, 2, (1, (0, 1))),
    (1, 1, (6, (6,))),
])  # fmt: skip
def test_any_length_of_search(epochs: float, evaluations: int, marks: tuple[int, tuple[int, ...]]) -> None:
    assert OneShotSettings(epochs=epochs, evaluations=evaluations).marks(6) == marks
    found = searched(settings={"epochs": epochs, "evaluations": evaluations})
    assert found.steps == marks[0]
    names = [name for name in found.decision.candidates[0].scores if name.startswith("loss at")]
    assert names == [f"loss at step {step}" for step in marks[1]]


# -- determinism -----------------------------------------------------------------------------------------------------


def _told(decisions: list[Any]) -> str:
    return json.dumps([{**decision.to_json(), "seconds": None} for decision in decisions])


@pytest.mark.parametrize("mode", ["default", "reference"])
def test_a_seed_gives_one_schedule_and_nothing_else_changes(mode: str) -> None:
    own = program()
    before, flags = values(own.tensors), [t.requires_grad for t in own.tensors.values()]
    torch.manual_seed(11)
    random.seed(11)
    states = torch.get_rng_state(), random.getstate()
    more: Any = {"stages": 3, "batch": 4, "mode": mode, "settings": {**QUICK, "between": 0.5}}
    places, decisions = search(own, SMALL, Task(Samples()), seed=1, **more)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert equal(values(own.tensors), before) and [t.requires_grad for t in own.tensors.values()] == flags
    assert all(tensor.grad is None for tensor in own.tensors.values())
    assert len(places) == 3 and len(decisions) == 2 and places[-1] == SMALL.last
    torch.manual_seed(5)
    again, same = search(own, SMALL, Task(Samples()), seed=1, **more)
    assert again == places and _told(same) == _told(decisions)
    assert _told(search(own, SMALL, Task(Samples()), seed=2, **more)[1]) != _told(decisions)


def test_decide_is_a_search_on_copies() -> None:
    own = program()
    before = values(own.tensors)
    more: Any = {"stage": 1, "stages": 4, "batch": 4, "seed": 3, "settings": QUICK}
    index, decision = decide(own, BOTH, Index(resolution=0, depth=1), Task(Samples()), **more)
    assert equal(values(own.tensors), before)
    assert BOTH.point(index) == decision.candidates[decision.winner].point
    assert {c.point.depths["blocks"] for c in decision.candidates} == {3, 4}


# -- errors ----------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_nan_names_stage_candidate_and_step() -> None:
    calls: Iterator[int] = iter(range(1000))

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        scale = float("nan") if next(calls) == 8 else 1.0
        return outputs.square().mean() * scale

    with pytest.raises(CheckError, match=r"^one-shot search, stage 0, candidate blocks:\d, step 2: the loss is nan; "):
        search_stage(
            program(), DEPTHS, None, Task(Samples(), loss), stage=0, stages=4, batch=4,
            settings={**QUICK, "evaluations": 2, "batches": 2},
        )  # fmt: skip


def test_too_few_samples_and_wrong_settings_are_one_line() -> None:
    with pytest.raises(InputError, match="batches of 25 are needed, but 24 samples give 0"):
        searched(batch=25)
    with pytest.raises(InputError, match="7 batches of 4 are needed, but 24 samples give 6"):
        searched(settings={"batches": 7})
    with pytest.raises(InputError, match="no validation samples"):
        searched(settings={"validation": True})
    for given, message in (
        ({"epoch": 1}, "unknown setting `epoch`"),
        ({"epochs": 0}, "epochs: expected a number above 0, got 0"),
        ({"batches": 1.5}, "batches: expected an integer above 0, got 1.5"),
        ({"time": "guessed"}, "time: expected predicted or measured, got 'guessed'"),
        ({"growth": "magic"}, "growth: expected identity, interpolate, mogrow, stack or random, got 'magic'"),
        ({"decay": 1.0}, "decay: expected a number of at least 0 and below 1, got 1.0"),
        ({"clip": float("nan")}, "clip: expected a number above 0, or None, got nan"),
    ):
        with pytest.raises(InputError, match=message):
            OneShotSettings.of(given)


def test_a_size_that_the_network_cannot_have_is_one_line() -> None:
    space = Space(resolutions=((20, 20), (32, 32)))
    with pytest.raises(InputError, match="cannot take 20"):
        searched(space)


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.test_docs import ROOT, blocks, execute

    page = ROOT / "docs/one-shot.md"
    (code,) = blocks(page, "python")
    execute(page, code)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2"]
    assert lines[-1] == "2 blocks:4: the only candidate, so no search was needed"


def test_the_page_names_every_setting() -> None:
    from tests.test_docs import ROOT

    text = (ROOT / "docs/one-shot.md").read_text(encoding="utf-8")
    assert all(f"`{field.name}`" in text for field in dataclasses.fields(OneShotSettings))
