"""What a one-shot search is done with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from progc.errors import InputError
from progc.files.suggestions import did_you_mean

Time = Literal["predicted", "measured"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options of one-shot search; those that are None have a value by the mode.

    Attributes:
        epochs: S, how long the supernet trains at each stage; any positive number, inside the stage's budget.
        batches: that every candidate is evaluated on. Published: 50; default: 8, or as many as there are.
        evaluations: how often, from the start of the last search epoch to its end. Published: 5; default: 3.
        time: of a step: `predicted` from counted operations (repeatable), or `measured`. Published: measured.
        validation: evaluate on the validation samples instead of training samples.
        decay: of the average that is evaluated. Published: .998; default: .998, or faster where the search is short.
        growth: how new blocks are made (init of grow-depth). Published: mogrow; default: identity, or interpolate where
            no exact identity exists.
        lr, weight_decay: of AdamW, where no optimizer is given.
        clip: largest norm of the gradients, None: not clipped.
        between: epochs that `search` trains the winner for, after each search.
    """

    epochs: float = 2.0
    batches: int | None = None
    evaluations: int | None = None
    time: Time | None = None
    validation: bool = False
    decay: float | None = None
    growth: str | None = None
    lr: float = 1e-3
    weight_decay: float = 0.05
    clip: float | None = 1.0
    between: float = 0.0

    @classmethod
    def of(cls, given: Mapping[str, Any] | Settings | None) -> Settings:
        """The settings of a mapping.

        Raises:
            InputError: an unknown key, or a value out of range.
        """
        if isinstance(given, Settings):
            return given
        names = [field.name for field in dataclasses.fields(cls)]
        for name in given or {}:
            if name not in names:
                hint = did_you_mean(name, names) or f"; settings are {', '.join(names)}"
                raise InputError(f"one-shot search: there is no setting `{name}`{hint}")
        return cls(**(given or {}))

    def __post_init__(self) -> None:
        for name, least, words in (
            ("epochs", 0, "above 0"),
            ("batches", 0, "a whole number above 0"),
            ("evaluations", 0, "a whole number above 0"),
            ("lr", 0, "above 0"),
            ("clip", 0, "above 0, or None"),
            ("weight_decay", -1, "at least 0"),
            ("between", -1, "at least 0"),
        ):
            value = getattr(self, name)
            if value is None and name in ("batches", "evaluations", "clip"):
                continue
            whole = name in ("batches", "evaluations")
            number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not number or not (value > least if least == 0 else value >= 0) or value == float("inf"):
                raise InputError(f"one-shot search: {name} is {words}, not {value!r}")
        if self.time not in (None, "predicted", "measured"):
            raise InputError(f"one-shot search: time is predicted or measured, not {self.time!r}")
        if self.growth not in (None, "identity", "interpolate", "mogrow", "stack", "random"):
            raise InputError(
                "one-shot search: growth is identity, interpolate, mogrow, stack or random, not "
                f"{self.growth!r}"
            )  # fmt: skip
        if self.decay is not None and not 0 <= self.decay < 1:
            raise InputError(f"one-shot search: decay is at least 0 and below 1, not {self.decay!r}")

    def filled(self, mode: str, available: int) -> Settings:
        """These settings with everything that depends on the mode filled in.

        Args:
            available: how many batches there are to evaluate on.
        """
        reference = mode == "reference"
        return dataclasses.replace(
            self,
            batches=self.batches or (50 if reference else max(1, min(8, available))),
            evaluations=self.evaluations or (5 if reference else 3),
            time=self.time or ("measured" if reference else "predicted"),
            growth=self.growth or ("mogrow" if reference else "identity"),
        )

    def marks(self, steps_per_epoch: int) -> tuple[int, tuple[int, ...]]:
        """Steps of the search, and before which of them candidates are evaluated (the number of steps: after all).

        The evaluations are spread over the last epoch, or over all of a shorter search.
        """
        assert self.evaluations is not None
        steps = max(1, round(self.epochs * steps_per_epoch))
        window = min(steps, steps_per_epoch)
        if self.evaluations == 1:
            return steps, (steps,)
        gaps = self.evaluations - 1
        return steps, tuple(steps - window + window * i // gaps for i in range(self.evaluations))
