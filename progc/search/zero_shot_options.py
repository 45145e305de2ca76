"""Settings of the zero-shot search, checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from progc.errors import InputError
from progc.files.suggestions import did_you_mean

TIMES = ("predicted", "measured")
BATCHES = 2


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the zero-shot search. None: what the mode has.

    Attributes:
        mode: `default` or `reference`.
        proxies: names of proxies, or a text such as ntk,zico; these two.
        weights: of proxies in the vote, by name, or as a text such as ntk:1,zico:0.5; in `reference` of `time` too.
        time: `predicted` from the graph, or `measured`, which is noisy: a search may then choose otherwise the next
            time. `reference` measures.
        samples: per batch that proxies see; 16.
        batches: such batches; 2. `reference` takes two for each proxy and six for the time.
        price: factor of time that a rank of quality is worth, at least 1; `default` only, see `vote.worth`.

    Raises:
        InputError: a value that is none, or that the mode has no use for.
    """

    mode: str = "default"
    proxies: tuple[str, ...] = ("ntk", "zico")
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    time: str | None = None
    samples: int = 16
    batches: int | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("default", "reference"):
            raise InputError(f"zero-shot search: mode is default or reference, not {self.mode!r}")
        proxies: Any = self.proxies.split(",") if isinstance(self.proxies, str) else self.proxies
        if not isinstance(proxies, Iterable) or not all(isinstance(name, str) for name in proxies):
            raise InputError(f"zero-shot search: proxies are names, such as ntk,zico, not {proxies!r}")
        names = tuple(dict.fromkeys(name.strip() for name in proxies if name.strip()))
        if not names:
            raise InputError("zero-shot search: no proxy is given; expected one or more, such as ntk,zico")
        object.__setattr__(self, "proxies", names)
        object.__setattr__(self, "time", self.time or ("measured" if self.reference else "predicted"))
        if self.time not in TIMES:
            hint = did_you_mean(str(self.time), TIMES) or "; give predicted or measured"
            raise InputError(f"zero-shot search: time is not {self.time!r}{hint}")
        for what, value in (("samples", self.samples), ("batches", self.count)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"zero-shot search: {what} is a whole number from 1 on, not {value!r}")
        if self.reference and (self.batches is not None or self.price is not None):
            what = "batches" if self.batches is not None else "price"
            raise InputError(f"zero-shot search: mode reference has no {what}; leave it out or use mode default")
        if self.price is not None and not (_number(self.price) and self.price >= 1):
            raise InputError(f"zero-shot search: price is a number from 1 on, not {self.price!r}")
        self._check_weights()

    def _check_weights(self) -> None:
        given = _pairs(self.weights) if isinstance(self.weights, str) else self.weights
        if not isinstance(given, Mapping):
            raise InputError(f"zero-shot search: weights are such as ntk:1,zico:0.5, not {self.weights!r}")
        object.__setattr__(self, "weights", dict(given))
        known = {*self.proxies, "time"} if self.reference else set(self.proxies)
        for name, value in self.weights.items():
            if name == "time" and not self.reference:
                raise InputError("zero-shot search: time has a price, not a weight; set price, or use mode reference")
            if name not in known:
                hint = did_you_mean(str(name), known) or f"; names are {', '.join(sorted(known))}"
                raise InputError(f"zero-shot search: there is no score `{name}` to weigh{hint}")
            if not _number(value) or value < 0:
                raise InputError(f"zero-shot search: weight of {name} is a number from 0 on, not {value!r}")
        if not any(self.weights.get(name, 1) for name in self.proxies):
            raise InputError("zero-shot search: every proxy has weight 0; give one a weight above 0")

    @property
    def reference(self) -> bool:
        """Whether the published procedure is followed."""
        return self.mode == "reference"

    @property
    def count(self) -> int:
        """Batches that proxies see by default."""
        return BATCHES if self.batches is None else self.batches

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None, mode: str) -> Options:
        """From the settings of a plan.

        Raises:
            InputError: an unknown name, or a value that is none.
        """
        names = [field.name for field in dataclasses.fields(cls) if field.name != "mode"]
        for name in settings or {}:
            if name not in names:
                hint = did_you_mean(str(name), names) or f"; settings are {', '.join(names)}"
                raise InputError(f"zero-shot search: there is no setting `{name}`{hint}")
        return cls(mode=mode, **dict(settings or {}))

    def to_json(self) -> dict[str, Any]:
        """What a decision records."""
        data = dataclasses.asdict(self) | {"proxies": list(self.proxies), "weights": dict(self.weights)}
        data["batches"] = self.count
        if self.reference:
            del data["batches"], data["price"]
        return data


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _pairs(text: str) -> dict[str, float] | None:
    """`ntk:1,zico:0.5` as a mapping; None for another text."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition(":")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            return None
    return found
