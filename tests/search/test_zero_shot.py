"""The zero-shot search on real tasks: determinism, what it leaves alone, both modes, and its errors."""

from __future__ import annotations

import functools
import gc
import json
import math
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import progc
from progc.ir.program import Program
from progc.ir.untouched import same_bits
from progc.schedule import Decision, Index, Point, Space
from progc.search import zero_shot
from progc.search.zero_shot import decide, search
from tests.ranks.test_agreeing import run_ranks
from tests.schedule.small import (
    DENOISING,
    INTERLEAVED,
    SHAPES,
    Planted,
    convolutional,
    digits,
    fresh,
    levels,
    more,
    plant_scores,
    transformer,
)
from tests.zoo import captured

ROOT = Path(__file__).resolve().parents[2]
Plant = Callable[..., dict[str, Planted]]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """`plant_scores` for one test."""
    return functools.partial(plant_scores, monkeypatch)


def plain(decisions: list[Decision]) -> list[dict[str, Any]]:
    """What of decisions has to be the same in every run."""
    data = json.loads(json.dumps([decision.to_json() for decision in decisions]))
    for item in data:
        item["seconds"] = None
    return list(data)


# -- the default mode on real tasks -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched() -> tuple[list[Index], list[Decision]]:
    return search(transformer(), SHAPES, digits(), stages=3, batch=32, seed=3)


def test_default_search_on_digits(searched: tuple[list[Index], list[Decision]]) -> None:
    places, decisions = searched
    assert len(places) == 3 and len(decisions) == 2 and places[-1] == SHAPES.last
    shares = [SHAPES.unfreeze[place.unfreeze].share for place in places]
    assert shares == sorted(shares)
    for place, decision in zip(places, decisions, strict=False):
        assert decision.candidates[decision.winner].point == SHAPES.point(place)
        if len(decision.candidates) == 1:
            continue
        assert set(decision.candidates[0].scores) == {"ntk", "zico", "time", "end_to_end"}
        for candidate in decision.candidates:
            assert all(math.isfinite(score) for score in candidate.scores.values())
            assert 0.5 < candidate.scores["end_to_end"] <= 1
        assert decision.candidates[decision.winner].total == min(c.total for c in decision.candidates)
        assert str(decision.candidates[decision.winner].point) in decision.reason
        assert decision.settings["proxies"] == ["ntk", "zico"] and decision.settings["time"] == "predicted"
        assert decision.settings["price"] >= 1.1 and decision.settings["online"] is False


def test_all_shapes_of_the_trainable_set_are_candidates(searched: tuple[list[Index], list[Decision]]) -> None:
    first = {candidate.point.unfreeze for candidate in searched[1][0].candidates}
    assert {level.shape for level in first if level is not None} == {"interleave", "prefix", "suffix"}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_schedule_also_in_another_process(
    searched: tuple[list[Index], list[Decision]],
) -> None:
    code = """
import json, random, torch
torch.manual_seed(77), random.seed(77)
from progc.search.zero_shot import search
from tests.schedule.small import SHAPES, digits, transformer
program = transformer()
torch.rand(7)
places, decisions = search(program, SHAPES, digits(), stages=3, batch=32, seed=3)
print(json.dumps([[list(place) for place in places], [decision.to_json() for decision in decisions]]))
"""
    environment = {**os.environ, "PYTHONHASHSEED": "5", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    places, decisions = json.loads(done.stdout.splitlines()[-1])
    assert [Index(*place) for place in places] == searched[0]
    assert plain([Decision.from_json(item) for item in decisions]) == plain(searched[1])


def test_another_seed_draws_other_samples() -> None:
    first, second = (
        decide(transformer(), INTERLEAVED, None, digits(), stage=0, stages=3, seed=seed)[1] for seed in (0, 1)
    )
    assert [c.scores["zico"] for c in first.candidates] != [c.scores["zico"] for c in second.candidates]
    assert [c.scores["time"] for c in first.candidates] == [c.scores["time"] for c in second.candidates]


def test_deciding_one_stage_is_a_step_of_the_search(searched: tuple[list[Index], list[Decision]]) -> None:
    places, decisions = searched
    index, decision = decide(transformer(), SHAPES, places[0], digits(), stage=1, stages=3, batch=32, seed=3)
    assert index == places[1]
    (online,), (offline,) = plain([decision]), plain([decisions[1]])
    assert online["settings"].pop("online") is True and offline["settings"].pop("online") is False
    assert online == offline


def test_a_decision_sees_the_weights_of_the_moment() -> None:
    program = fresh(transformer())
    before = decide(program, INTERLEAVED, None, digits(), stage=0, stages=4)[1]
    with torch.no_grad():
        for _, tensor in program.parameters():
            tensor.mul_(1.3)
    after = decide(program, INTERLEAVED, None, digits(), stage=0, stages=4)[1]
    assert [c.scores["ntk"] for c in before.candidates] != [c.scores["ntk"] for c in after.candidates]


def test_denoising_with_a_stage_identifier() -> None:
    program = progc.apply(captured("diffusers:dit")[1], "inject-sid{stages=3 init=normal}")
    space = Space(unfreeze=levels("interleave", "prefix", of=2))
    places, decisions = search(program, space, DENOISING, stages=3, seed=1, settings={"samples": 8})
    assert places[-1] == space.last and [decision.stage for decision in decisions] == [0, 1]
    assert all(math.isfinite(score) for d in decisions for c in d.candidates for score in c.scores.values())


# -- what a search leaves alone ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["default", "reference"])
def test_a_search_changes_nothing(mode: str) -> None:
    program = fresh(convolutional())
    module = program.module().train()
    parameter = next(module.parameters())
    parameter.grad = torch.full_like(parameter, 3.0)
    tensors = {name: tensor.detach().clone() for name, tensor in program.tensors.items()}
    flags = {name: tensor.requires_grad for name, tensor in program.parameters()}
    state = torch.get_rng_state()
    search(program, Space(unfreeze=levels("interleave", of=2)), digits(), stages=2, mode=mode, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(same_bits(program.tensors[name], before) for name, before in tensors.items())
    assert {name: tensor.requires_grad for name, tensor in program.parameters()} == flags
    assert parameter.grad is not None and bool((parameter.grad == 3).all()) and module.training
    assert all(other.grad is None for other in list(module.parameters())[1:])


def test_training_goes_on_as_if_there_had_been_no_search(plant: Plant) -> None:
    plant(ntk=more, zico=more)

    def losses(searching: bool) -> list[float]:
        torch.manual_seed(5)
        program = fresh(transformer())
        module = program.module().train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        found = []
        for step, batch in enumerate(digits().batches(16, seed=4, count=4)):
            if searching and step == 2:
                search(program, INTERLEAVED, digits(), stages=3, seed=4)
            noisy = batch[0] + 0.1 * torch.randn(batch[0].shape)  # augmentation from the global generator
            loss = torch.nn.functional.cross_entropy(module(noisy), batch[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    assert losses(True) == losses(False)


def test_a_candidate_is_built_once_and_gone_before_the_next(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(ntk=more, zico=more)
    built: list[Point] = []
    alive: list[weakref.ref[Program]] = []
    real = zero_shot.stage_program

    def watched(full: Program, point: Point) -> Program:
        assert not any(ref() is not None for ref in alive), f"{built[-1]} is still in memory"
        program = real(full, point)
        built.append(point)
        alive.append(weakref.ref(program))
        return program

    monkeypatch.setattr(zero_shot, "stage_program", watched)
    gc.disable()
    try:
        search(transformer(), SHAPES, digits(), stages=4)
    finally:
        gc.enable()
    assert len(built) == len(set(built)) > 6  # also over stages: the weights are the same


# -- several ranks ----------------------------------------------------------------------------------------------------

RANKS = """
import json, sys
import torch.distributed as dist
import progc.schedule.timing
from progc.search import probing
from progc.search.zero_shot import search
from tests.schedule.small import INTERLEAVED, Planted, digits, transformer

rank, port = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
planted = {"ntk": Planted(), "zico": Planted()}
probing.proxies_of = lambda names, mode: planted
ticks = iter([0.1, 0.2, 0.3, 0.4, 0.5] * 9 if rank else [0.5, 0.4, 0.9, 0.2, 0.1] * 9)
progc.schedule.timing.step_time = lambda program, task, **options: next(ticks)
places, decisions = search(
    transformer(2 + 2 * (rank == 0)), INTERLEAVED, digits(), stages=4, settings={"time": "measured"}
)
print(json.dumps([places, [decision.to_json() for decision in decisions], len(planted["ntk"].seen)]))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_with_different_clocks_and_even_other_networks_choose_the_same() -> None:
    first, second = run_ranks(RANKS)
    assert first[:2] == second[:2] and first[2] > 0 and second[2] == 0
