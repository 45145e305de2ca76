"""Published ramps to the digit, ramps that follow the size of the network, and what they become in programs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from progc.errors import InputError
from progc.pipeline.manager import run
from progc.schedule import Point, Regularisation
from progc.schedule.regularising import (
    FLAG_STARTS,
    PUBLISHED,
    dropping_everywhere,
    passes_for,
    ramp,
    setting_for,
    sizes_of,
    timm_options,
)
from progc.transforms.dropping import find_drops
from tests import zoo


def column(found: list[Regularisation], name: str) -> list[float]:
    return [getattr(item, name) for item in found]


def test_published_values_of_four_stages() -> None:
    found = ramp(4, PUBLISHED, "reference")
    assert column(found, "rand_augment") == [4, 6, 7, 9]
    assert [f"{rate:.3f}" for rate in column(found, "drop_path")] == ["0.000", "0.033", "0.067", "0.100"]
    assert [f"{rate:.3f}" for rate in column(found, "random_erasing")] == ["0.000", "0.083", "0.167", "0.250"]
    assert column(found, "mixup") == column(found, "dropout") == [None] * 4


def test_the_published_programs_own_defaults_are_clipped_at_zero() -> None:
    found = ramp(4, PUBLISHED, "reference", starts=FLAG_STARTS)
    assert column(found, "rand_augment") == [0, 3, 6, 9]
    assert column(found, "drop_path") == pytest.approx([0, 0, 0.05, 0.1])
    assert column(found, "random_erasing") == pytest.approx([0, 0, 0.125, 0.25])


@pytest.mark.parametrize("stages", range(1, 9))
def test_reference_is_linear_for_any_number_of_stages(stages: int) -> None:
    final = Regularisation(drop_path=0.3, dropout=0.2, rand_augment=9, random_erasing=0.25, mixup=0.8)
    found = ramp(stages, final, "reference")
    assert len(found) == stages and found[-1] == final
    for name, end in (("drop_path", 0.3), ("dropout", 0.2), ("random_erasing", 0.25), ("mixup", 0.8)):
        expected = torch.linspace(0, end, stages).tolist() if stages > 1 else [end]
        assert column(found, name) == pytest.approx(expected)


def published_magnitudes(stages: int, magnitude: int, start: float) -> list[int]:
    """Magnitudes from `start` times the last one, evenly spaced, each rounded to the nearest integer (halves: even)."""
    return [round(part * magnitude) for part in np.linspace(start, 1.0, stages).tolist()]


def test_reference_rounds_magnitudes_as_published() -> None:
    cases = [(k, m, start) for k in range(2, 9) for m in range(1, 11) for start in (0.0, 0.25, 0.5)]
    found = {}
    for stages, magnitude, start in cases:
        final = Regularisation(rand_augment=magnitude)
        values = column(ramp(stages, final, "reference", starts={"rand_augment": start}), "rand_augment")
        assert values == published_magnitudes(stages, magnitude, start)
        found[stages, magnitude, start] = values
    assert found[4, 9, 0.5] == [4, 6, 7, 9] and found[3, 9, 0.5] == [4, 7, 9]
    floors = {
        (k, m, start): [math.floor(m * (start + (1 - start) * i / (k - 1)) + 1e-9) for i in range(k)]
        for k, m, start in cases
    }
    assert sum(found[case] != floors[case] for case in cases) == 148  # rounding down would be noticed


def test_default_follows_the_sizes_of_the_networks() -> None:
    points = [Point({"blocks": d}, {"width": w}, (r, r)) for d, w, r in ((6, 24, 112), (6, 48, 224), (12, 48, 224))]
    sizes = sizes_of(points)
    assert sizes == pytest.approx([0.125, 0.5, 1.0])
    found = ramp(3, Regularisation(drop_path=0.2, rand_augment=8), sizes=sizes)
    assert column(found, "drop_path") == pytest.approx([0.025, 0.1, 0.2])
    assert column(found, "rand_augment") == pytest.approx([4.5, 6.0, 8.0])
    assert ramp(2, PUBLISHED, sizes=[1.0, 1.0]) == [PUBLISHED, PUBLISHED]
    assert column(ramp(4, Regularisation(mixup=0.8)), "mixup") == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_what_a_point_leaves_out_is_as_in_the_last_one() -> None:
    assert sizes_of([Point(), Point({"a": 2}), Point({"a": 4, "b": 4})]) == pytest.approx([1.0, 0.75, 1.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": 0}, "at least 1, got 0"),
        ({"stages": 2, "mode": "fast"}, "mode: expected default or reference, got 'fast'"),
        ({"stages": 2, "sizes": [0.5]}, "expected 2 numbers"),
        ({"stages": 2, "sizes": [0.0, 1.0]}, "expected 2 numbers"),
    ],
)
def test_bad_input(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ramp(final=PUBLISHED, **arguments)  # type: ignore[arg-type]


def test_passes_set_the_rates_of_a_program() -> None:
    _, program = zoo.captured("own:dropping")
    (item,) = passes_for(Regularisation(drop_path=0.1, dropout=0.05), program)
    assert str(item) == "set-drop{path=0.1 dropout=0.05 ramp=linear}"
    after, _ = run(program, [item])
    drops = find_drops(after.graphs["train"])
    assert max(drop.rate for drop in drops if drop.kind == "path") == pytest.approx(0.1)
    assert max(drop.rate for drop in drops if drop.kind == "dropout") == 0.05
    assert passes_for(Regularisation(rand_augment=9), program) == []
    assert str(passes_for(Regularisation(drop_path=0.1), program, linear=False)[0]) == "set-drop{path=0.1}"


def test_a_network_that_drops_nothing_gets_no_passes_and_a_note() -> None:
    _, program = zoo.captured("own:flat")
    setting = setting_for(Regularisation(drop_path=0.1, dropout=0.0), program)
    assert setting.passes == () and len(setting.notes) == 1 and "captured with a rate of 0" in setting.notes[0]
    assert dropping_everywhere(program) == []


def test_options_are_those_that_timm_takes() -> None:
    from timm.data import Mixup, create_transform

    published = {"color_jitter": None, "re_mode": "pixel"}
    options = timm_options(Regularisation(rand_augment=6, random_erasing=0.1, mixup=0.3))
    assert options == {
        "create_transform": {"auto_augment": "rand-m6-mstd0.5-inc1", "re_prob": 0.1, **published},
        "Mixup": {"mixup_alpha": 0.3},
    }
    create_transform(32, is_training=True, **options["create_transform"])
    assert Mixup(**options["Mixup"]).mixup_alpha == 0.3
    quiet = timm_options(Regularisation(rand_augment=0, mixup=0))
    assert quiet == {"create_transform": {"auto_augment": None, **published}}
    assert timm_options(Regularisation()) == {"create_transform": published}
