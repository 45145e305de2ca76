"""What a program says about its stage identifier."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class StageIdentifier:
    """The stage identifier of a program; `Program.sid` holds it.

    Attributes:
        table: name of the parameter `[stages + 1, width]`; the last row is the null row.
        stages: number of stages K; K is also the index of the null row.
        site: name of the site where the row is added.
        stage: the stage that is fixed in both graphs; None if it is an input.
        input: name of the keyword input; None if the stage is fixed.
        dropout: probability with which the train graph gives a sample the null row.
        form: `add`: the row is added to the values; `token`: it is one more token behind the others.
    """

    table: str
    stages: int
    site: str
    stage: int | None
    input: str | None
    dropout: float
    form: str = "add"

    @property
    def null(self) -> int:
        """Index of the null row."""
        return self.stages
