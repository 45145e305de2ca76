"""`--explain AXIS`: why axes grow or do not, for growths that succeed and for those that are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from progc.errors import ProgcError

if TYPE_CHECKING:
    from progc.growth.explain.reasons import Explanation
    from progc.growth.grow import Growth
    from progc.ir.program import Program

ALL = "all"


@dataclasses.dataclass(frozen=True)
class ReasonChain:
    """The reasons for some axes, as text and as JSON."""

    axes: tuple[Explanation, ...]

    @staticmethod
    def of(program: Program, pattern: str) -> ReasonChain:
        """Explains the axes that match `pattern`, without a growth.

        Raises:
            InputError: no axis matches.
        """
        from progc.growth.explain.reasons import axis_names, explain

        return ReasonChain(explain(program, names=None if pattern == ALL else axis_names(program, pattern)))

    def to_json(self) -> list[dict[str, Any]]:
        """Returns plain data."""
        return [item.to_json() for item in self.axes]

    def __str__(self) -> str:
        from progc.growth.explain.text import explanation_text

        return explanation_text(self.axes) or "no axis grows"


class Explainer:
    """Observes one growth and explains it, whether it succeeds or is refused."""

    def __init__(self, program: Program, pattern: str, init: str) -> None:
        self._program, self._pattern, self._init = program, pattern, init
        self._sizes: Mapping[str, int] = {}

    def watch(self, program: Program, sizes: Mapping[str, int]) -> None:
        """Records the program before it is widened.

        Raises:
            InputError: no axis has the name.
        """
        self._program, self._sizes = program, sizes
        self._names()

    def grown(self, growth: Growth) -> ReasonChain:
        """Explains a growth that succeeded."""
        if not growth.axes:
            return ReasonChain(()) if self._pattern == ALL else ReasonChain.of(self._program, self._pattern)
        names = self._names(growth.plan.axes)
        return ReasonChain(tuple(item for item in growth.axes if item.axis in names))

    def refused(self) -> ReasonChain:
        """Explains a growth that was refused, up to the obstacle.

        Raises:
            InputError: no axis has the name.
        """
        from progc.analysis.axes import axes_of
        from progc.growth.explain.reasons import explain
        from progc.transforms.width.plan import plan_widths

        self._names()
        try:
            plan = plan_widths(self._program, self._sizes, init=self._init)
        except ProgcError:  # an axis may not grow at all, and its own line gives the reason
            asked = [name for name in self._sizes if not axes_of(self._program)[name].growable]
            return ReasonChain(explain(self._program, names=asked if self._pattern == ALL else self._names()))
        return ReasonChain(explain(self._program, plan.growths, plan.lift, plan.obstacles, self._names(plan.growths)))

    def _names(self, growths: Sequence[Any] = ()) -> list[str]:
        from progc.growth.explain.reasons import axis_names

        if self._pattern == ALL:
            return [growth.axis for growth in growths]
        return axis_names(self._program, self._pattern)
