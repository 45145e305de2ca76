"""Rules that end a stage early or late: their options, what they remember of a stage, and how they decide."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from progc.errors import InputError, did_you_mean
from progc.files.values import literal


@dataclasses.dataclass(frozen=True)
class _Rule:
    least: float = 0.5
    most: float = 2.0

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not (_number(self.least) and _number(self.most) and 0 < self.least <= 1 <= self.most):
            raise InputError(
                f"rule {self.kind}: expected least above 0 and at most 1, and most at least 1 (parts of a stage's "
                f"share), got {self.least!r} and {self.most!r}"
            )

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON object."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class Plateau(_Rule):
    """Ends a stage when its training loss stops falling.

    The loss is smoothed exponentially. The stage is over when the smoothed loss fell by less than `threshold` of its
    value over the last `window` observations.

    Attributes:
        window: number of observations, at least 1.
        threshold: relative improvement.
        smoothing: weight of the past, at least 0 and below 1.
        least, most: smallest and largest length of a stage, as parts of its share.

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
                "rule plateau: expected a number for threshold and smoothing of at least 0 and below 1, got "
                f"{self.threshold!r} and {self.smoothing!r}"
            )


@dataclasses.dataclass(frozen=True)
class Gain(_Rule):
    """Ends a stage when its validation result improves too little per second.

    Attributes:
        window: number of validations over which the gain is computed, at least 1.
        fraction: the stage is over when the gain per second is below this part of the one it is compared with.
        against: `best` compares with the best gain per second of this stage. `next` compares with a prediction for the
            next stage: the best gain per second of this stage divided by how much longer a step of the next one takes.
        higher: whether higher validation results are better.
        least, most: smallest and largest length of a stage, as parts of its share.

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
                "rule gain: expected fraction of at least 0, and best or next for against, got "
                f"{self.fraction!r} and {self.against!r}"
            )
        if not isinstance(self.higher, bool):
            raise InputError(f"rule gain: higher: expected true or false, got {self.higher!r}")


Rule = Plateau | Gain
RULES: Mapping[str, type[Plateau] | type[Gain]] = {"plateau": Plateau, "gain": Gain}


def rule_from_json(data: Any) -> Rule:
    """Reads a rule that `to_json` wrote.

    Raises:
        InputError: an unknown kind or key, or a value out of range.
    """
    if not isinstance(data, Mapping) or data.get("kind") not in RULES:
        raise InputError(f"rule: expected an object with the kind {' or '.join(RULES)}, got {data!r}")
    cls = RULES[data["kind"]]
    names = [field.name for field in dataclasses.fields(cls)]
    unknown = data.keys() - {*names, "kind"}
    if unknown:
        raise InputError(f"rule {cls.kind}: unknown key `{sorted(unknown)[0]}`; keys are {', '.join(names)}")
    return cls(**{name: value for name, value in data.items() if name != "kind"})


Rules = str | Rule | Mapping[str, Any] | Sequence[Any]
"""Rules as users give them: texts such as `gain{window=2}`, rules, objects with a `kind`, or several of these."""
_TEXT = re.compile(r"\s*([\w-]+)\s*(?:\{([^{}]*)\}\s*)?")
_OPTION = re.compile(r"\s*([\w-]+)\s*=\s*([^\s,=]+)\s*,?")


def rules_of(given: Rules) -> tuple[Rule, ...]:
    """Returns the rules that a user gives.

    Raises:
        InputError: an unknown kind or option, a value out of range, or a text that cannot be read.
    """
    if isinstance(given, (Plateau, Gain)):
        return (given,)
    if isinstance(given, str):
        return (rule_from_text(given),)
    if isinstance(given, Sequence):
        return tuple(rule for item in given for rule in rules_of(item))
    return (rule_from_json(given),)


def rule_from_text(text: str) -> Rule:
    """Reads a rule such as `plateau` or `gain{window=2 fraction=0.2}`; spaces or commas separate options.

    Raises:
        InputError: as for `rules_of`.
    """
    whole = _TEXT.fullmatch(text)
    if whole is None:
        raise InputError(f"rule `{text}`: expected a kind and its options: plateau or gain{{window=2 fraction=0.2}}")
    kind, options = whole[1], whole[2] or ""
    if kind not in RULES:
        hint = did_you_mean(kind, RULES) or f"; expected {' or '.join(RULES)}"
        raise InputError(f"rule `{text}`: unknown kind `{kind}`{hint}")
    if _OPTION.sub("", options).strip():
        raise InputError(f"rule `{text}`: expected options key=value in the braces, such as {kind}{{window=2}}")
    data: dict[str, Any] = {"kind": kind}
    for name, value in _OPTION.findall(options):
        if name in data:
            raise InputError(f"rule `{text}`: `{name}` is given twice; give it once")
        data[name] = literal(value)
    return rule_from_json(data)


# --- what rules remember, and how they decide -----------------------------------------------------------------------

Memory = dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The decision of a rule that has enough observations: whether the stage is over, what it measured, and why."""

    over: bool
    value: float
    reason: str


def memory(rule: Rule) -> Memory:
    """Returns the memory of a rule at the start of a stage: lists of numbers, which JSON can hold."""
    return {"smooth": [], "values": []} if rule.kind == "plateau" else {"values": [], "seconds": [], "best": []}


def remember(rule: Rule, memory: Memory, loss: float | None, validation: float | None, seconds: float | None) -> None:
    """Adds an observation to `memory`."""
    if isinstance(rule, Plateau):
        if loss is None or not math.isfinite(loss):
            return
        past, weight = memory["smooth"] or [0.0, 0.0]  # the sum and its weight: corrects the bias of the first values
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
    """Returns the decision of a rule; None while it does not have enough observations.

    Args:
        ratio: cost of a step of the next stage divided by the cost of a step of this one.
    """
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
        raise InputError(f"rule {rule.kind}: window: expected an integer of at least 1, got {rule.window!r}")
