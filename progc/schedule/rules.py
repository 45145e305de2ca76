"""Rules by which a stage ends early or late: what they are, what they remember, what they say of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from progc.errors import InputError


@dataclasses.dataclass(frozen=True)
class _Rule:
    least: float = 0.5
    most: float = 2.0

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not (_number(self.least) and _number(self.most) and 0 < self.least <= 1 <= self.most):
            raise InputError(
                f"rule {self.kind}: least is above 0 and at most 1, most at least 1 (parts of a stage's share), "
                f"not {self.least!r} and {self.most!r}"
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class Plateau(_Rule):
    """A stage is over once its loss stands still.

    The loss is smoothed exponentially; the stage is over when it fell by less than `threshold` of its value over the
    last `window` observations.

    Attributes:
        window: observations, at least 1.
        threshold: relative improvement.
        smoothing: weight of the past, at least 0 and below 1.
        least, most: how short and how long a stage can get, in parts of its share.

    Raises:
        InputError: a value out of range.
    """

    window: int = 100
    threshold: float = 0.01
    smoothing: float = 0.98

    kind: ClassVar[str] = "plateau"

    def __post_init__(self) -> None:
        super().__post_init__()
        _window(self)
        if not (_number(self.threshold) and _number(self.smoothing) and 0 <= self.smoothing < 1):
            raise InputError(
                f"rule plateau: threshold is a number and smoothing at least 0 and below 1, not {self.threshold!r} and "
                f"{self.smoothing!r}"
            )


@dataclasses.dataclass(frozen=True)
class Gain(_Rule):
    """A stage is over once validation gains too little per second.

    Attributes:
        window: validations over which the gain is taken, at least 1.
        fraction: the stage is over below this part of what it is compared with.
        against: `best`: the best gain per second of this stage; `next`: what the next stage is predicted to give, the
            best gain per second of this one divided by how much longer a step of the next one takes.
        higher: whether higher values of the validation are better.
        least, most: how short and how long a stage can get, in parts of its share.

    Raises:
        InputError: a value out of range.
    """

    window: int = 1
    fraction: float = 0.1
    against: str = "best"
    higher: bool = True

    kind: ClassVar[str] = "gain"

    def __post_init__(self) -> None:
        super().__post_init__()
        _window(self)
        if not _number(self.fraction) or self.fraction < 0 or self.against not in ("best", "next"):
            raise InputError(
                f"rule gain: fraction is at least 0 and against is best or next, not {self.fraction!r} and "
                f"{self.against!r}"
            )


Rule = Plateau | Gain
RULES: Mapping[str, type[Plateau] | type[Gain]] = {"plateau": Plateau, "gain": Gain}


def rule_from_json(data: Any) -> Rule:
    """What `to_json` of a rule gave.

    Raises:
        InputError: an unknown kind or key, or a value out of range.
    """
    if not isinstance(data, Mapping) or data.get("kind") not in RULES:
        raise InputError(f"rule: expected an object whose kind is {' or '.join(RULES)}, not {data!r}")
    cls = RULES[data["kind"]]
    names = [field.name for field in dataclasses.fields(cls)]
    unknown = data.keys() - {*names, "kind"}
    if unknown:
        raise InputError(f"rule {cls.kind}: unknown key `{sorted(unknown)[0]}`; keys are {', '.join(names)}")
    return cls(**{name: value for name, value in data.items() if name != "kind"})


# --- what rules remember and say ------------------------------------------------------------------------------------

Memory = dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a rule says once it has seen enough."""

    over: bool
    value: float
    reason: str


def memory(rule: Rule) -> Memory:
    """What a rule knows at the start of a stage: lists of numbers, as JSON has them."""
    return {"smooth": [], "values": []} if rule.kind == "plateau" else {"values": [], "seconds": [], "best": []}


def remember(rule: Rule, memory: Memory, loss: float | None, validation: float | None, seconds: float | None) -> None:
    """Takes an observation into `memory`."""
    if isinstance(rule, Plateau):
        if loss is None or not math.isfinite(loss):
            return
        past, weight = memory["smooth"] or [0.0, 0.0]  # the sum and its weight, so that the start counts right
        past, weight = rule.smoothing * past + (1 - rule.smoothing) * loss, rule.smoothing * weight + 1 - rule.smoothing
        memory["smooth"] = [past, weight]
        memory["values"] = [*memory["values"], past / weight][-rule.window - 1 :]
    elif validation is not None and seconds is not None and math.isfinite(validation):
        memory["values"] = [*memory["values"], validation if rule.higher else -validation][-rule.window - 1 :]
        memory["seconds"] = [*memory["seconds"], seconds][-rule.window - 1 :]
        rate = _rate(memory, rule.window)
        if rate is not None:
            best, count = memory["best"] or [rate, 0.0]
            memory["best"] = [max(rate, best), count + 1]


def _rate(memory: Memory, window: int) -> float | None:
    """Gain per second over the window."""
    values, seconds = memory["values"], memory["seconds"]
    if len(values) <= window or seconds[-1] <= seconds[0]:
        return None
    return (values[-1] - values[0]) / (seconds[-1] - seconds[0])


def judge(rule: Rule, memory: Memory, ratio: float) -> Verdict | None:
    """None while the rule has not seen enough. `ratio`: cost of a step of the next stage over this one's."""
    if isinstance(rule, Plateau):
        values = memory["values"]
        if len(values) <= rule.window:
            return None
        fell = (values[0] - values[-1]) / abs(values[0]) if values[0] else 0.0
        return Verdict(
            fell < rule.threshold,
            fell,
            f"the loss fell by {fell:.3g} of its value in {rule.window} observations, less than {rule.threshold:g}",
        )
    rate = _rate(memory, rule.window)
    if rate is None or not memory["best"] or memory["best"][1] < 2:
        return None
    bar = rule.fraction * memory["best"][0] / (ratio if rule.against == "next" else 1.0)
    compared = "the next stage is predicted to give" if rule.against == "next" else "it gave at best"
    return Verdict(
        rate < bar or memory["best"][0] <= 0,
        rate,
        f"validation gains {rate:.3g} per second, less than {rule.fraction:g} of what {compared}",
    )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _window(rule: Rule) -> None:
    if not isinstance(rule.window, int) or isinstance(rule.window, bool) or rule.window < 1:
        raise InputError(f"rule {rule.kind}: window is a whole number from 1 on, not {rule.window!r}")
