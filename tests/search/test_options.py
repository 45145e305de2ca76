"""Options of a plan: checked when they are made, the same as the keywords of `progc.plan`, and kept in the schedule."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from progc.data.regularisation import Regularisation
from progc.errors import InputError
from progc.search.options import PlanOptions, run_length
from progc.search.plan import plan


def test_the_keywords_of_plan_are_the_options_with_their_defaults() -> None:
    keywords = {name: parameter.default for name, parameter in inspect.signature(plan).parameters.items()}
    keywords["settings"] = keywords["settings"] or {}
    fields = {
        field.name: {} if field.name == "settings" else field.default for field in dataclasses.fields(PlanOptions)
    }
    assert fields == {name: keywords[name] for name in fields}
    assert keywords.keys() - fields.keys() == {"program", "space", "task", "source", "target", "start", "progress"}


def test_regularisation_is_read_from_text() -> None:
    assert PlanOptions(regularise="none").regularise is False
    assert PlanOptions(regularise=None).regularise is True
    assert PlanOptions(regularise="mixup=0.2").regularise == Regularisation(mixup=0.2)


def test_what_is_recorded_makes_the_same_options() -> None:
    same: dict[str, Any] = {"resolutions": "16,32", "batch": 8, "init": "depth=stack"}
    options = PlanOptions("zero-shot", depths=[1, 4], settings={"samples": 4}, sid=True, **same)
    recorded = options.recorded
    assert recorded == {"depths": "1,4", "samples": 4, "sid": True, **same}
    again = PlanOptions("zero-shot", depths="1,4", settings={"samples": 4, "sid": True}, **same)
    assert again.recorded == recorded and again.numbers_stages and again.search_settings == options.search_settings


def test_an_identifier_starts_at_zero_or_as_published() -> None:
    assert "sid_init" not in PlanOptions(sid=True).recorded and "sid_init" not in PlanOptions(mode="reference").recorded
    assert PlanOptions(sid=True, sid_init="normal").recorded["sid_init"] == "normal"
    assert PlanOptions(sid=True, mode="reference").recorded["sid_init"] == "normal"
    assert "sid_init" not in PlanOptions(sid=True, mode="reference", sid_init="zero").recorded


def test_the_number_of_stages() -> None:
    assert (
        PlanOptions().stages == 4 and PlanOptions(shares="late").stages == 4 and PlanOptions(shares="1,1").stages == 2
    )
    automatic = PlanOptions("one-shot", stages="auto", shares="late")
    assert automatic.searching and automatic.num_stages is None
    assert automatic.with_levels(3).stage_shares == (0.5, 0.25, 0.25) and not automatic.with_levels(1).searching
    assert PlanOptions(stages=2).with_levels(3).stages == 2
    with pytest.raises(InputError, match="2 steps are too few for 3 stages"):
        PlanOptions(stages="auto", total=2, unit="steps").with_levels(3)


def test_a_search_and_measured_steps_need_a_task() -> None:
    assert not PlanOptions().needs_task and not PlanOptions("one-shot", stages=1).needs_task
    assert PlanOptions("one-shot").needs_task and PlanOptions(measure=True).needs_task


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "liner"}, "unknown strategy `liner`; did you mean linear?"),
        ({"strategy": None}, "unknown strategy `None`; expected linear, one-shot or zero-shot"),
        ({"stages": True}, "stages: expected an integer of at least 1, got True"),
        (
            {"stages": 3, "shares": [1, 1]},
            "2 shares are given for 3 stages; give one share per stage, or leave out the",
        ),
        ({"shares": "0.5,0.2"}, "plan: shares `0.5,0.2`: they sum to 0.7"),
        ({"shares": [1, 9], "total": 3}, "3 epochs are too few for 2 stages of these shares: stage 0 would have none"),
        ({"rules": "plato"}, "plan: rule `plato`: unknown kind"),
        ({"rules": "plateau", "stages": 1}, "a rule ends a stage before the last, and one stage is planned"),
        ({"total": 3, "unit": "steps"}, "3 steps are too few for 4 stages"),
        ({"regularise": "drop=1"}, "`drop`"),
        ({"sid": True, "sid_init": "ones"}, "sid_init: expected zero or normal, got 'ones'"),
        ({"sid_init": "normal"}, "sid_init normal is for a stage identifier; give sid as well (--sid)"),
        ({"init": "depth=mogrow,source=old"}, "init `source=old`: expected new or all"),
        ({"settings": {"price": 2, "sid": True}}, "the linear strategy has no setting `price`"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        PlanOptions(**options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_length_of_a_run() -> None:
    assert [run_length(*given) for given in ((3, None), (None, 9), (None, None))] == [
        (3, "epochs"), (9, "steps"), (None, "epochs"),
    ]  # fmt: skip
    with pytest.raises(InputError, match="`epochs` and `steps` are both given"):
        run_length(3, 9)
