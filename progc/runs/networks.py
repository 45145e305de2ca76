"""From the texts that name a model, its target and its samples to programs and a task, for planning and for training.

Names are checked when the texts are opened. Nothing is built, captured or loaded before it is needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from progc.errors import InputError
from progc.models.arguments import split
from progc.models.opening import open_source, open_target, resolve_target, with_drop_path
from progc.models.sizes import Sizes
from progc.models.source import Source

if TYPE_CHECKING:
    from progc.data.regularisation import Regularisation
    from progc.data.task import Task
    from progc.ir.program import Program
    from progc.runs.config import Config
    from progc.schedule.schedule import Schedule

Phase = Callable[[str], contextlib.AbstractContextManager[None]]
"""Shows that a phase of the work is running, such as `capture`."""
Note = Callable[[str], None]
"""Shows a sentence to the user."""


@dataclasses.dataclass(frozen=True)
class ModelAndData:
    """A source with its target and its samples, by name.

    Attributes:
        source: the model.
        to: text of the target; None: the source is the full network.
        target: what `to` names.
        weights: file with the weights of the source; None: as the source makes them.
        data: what names the samples (see `progc.data.opening.open_data`); None: the source's own file has them.
        seed: seed of the model's constructor and of grown weights.
        undropped: why the source was not built with a rate of drop-path that is wanted; None if it was, or if none is.
    """

    source: Source
    to: str | None
    target: Sizes | Source | None
    weights: Path | None = None
    data: str | None = None
    seed: int = 0
    undropped: str | None = None

    @classmethod
    def open(
        cls,
        source: str,
        *,
        to: str | None = None,
        weights: str | Path | None = None,
        data: str | None = None,
        seed: int = 0,
    ) -> ModelAndData:
        """Reads the texts.

        Raises:
            InputError: the source or the target does not exist.
        """
        return cls(
            open_source(source),
            to,
            open_target(to) if to is not None else None,
            Path(weights) if weights is not None else None,
            data,
            seed,
        )

    @property
    def trained(self) -> bool:
        """Whether the source has trained weights: from a file, or from the folder that it names."""
        return self.weights is not None or self.source.trained is not None

    def with_drop_path(self, rate: float | None, note: Note) -> ModelAndData:
        """Builds source and target with a rate of drop-path, if their constructors take one (see `with_drop_path`).

        Args:
            rate: largest rate that a plan asks for; None: it asks for none.
            note: gets a sentence for each that is built so.
        """
        source, reason = with_drop_path(self.source, rate)
        target, to = self.target, self.to
        if isinstance(target, Source):
            target, _ = with_drop_path(target, rate)
            to = target.text
        for old, new in ((self.source, source), (self.target, target)):
            if isinstance(old, Source) and isinstance(new, Source) and old.text != new.text:
                note(f"{old.text} is built as {new.text}, for the drop-path of the plan")
        return dataclasses.replace(self, source=source, target=target, to=to, undropped=reason)

    def not_set(self, full: Program, wanted: Sequence[Regularisation]) -> tuple[str, ...]:
        """Returns a note for each drop rate that stages ask for and the full network cannot have.

        Args:
            full: the full network.
            wanted: regularisation of the stages.
        """
        from progc.schedule.regularising import setting_for

        notes = dict.fromkeys(note for each in wanted[-1:] for note in setting_for(each, full).notes)
        more = f" ({self.undropped})" if self.undropped else ""
        return tuple(f"{note}{more}" for note in notes)

    @classmethod
    def of(cls, config: Config, schedule: Schedule | None = None) -> ModelAndData:
        """Reads what a configuration names; the target of a finished plan holds where the configuration has none.

        Raises:
            InputError: the source or the target does not exist.
        """
        to = config.to if config.to is not None or schedule is None else schedule.model.target
        source = _source_text(config, schedule)
        return cls.open(source, to=to, weights=config.weights, data=config.data, seed=config.settings.seed)

    def check_data(self, what: str) -> None:
        """Checks that samples are named, before anything is captured.

        Args:
            what: what needs the samples, such as `training net.py`, for the message.

        Raises:
            InputError: no samples are named.
        """
        from progc.data.taskfile import has_task

        file = self.source.file
        if self.data is not None or (file is not None and has_task(file)):
            return
        own = "write def datasets(): return train, validation and def loss(outputs, batch) in "
        where = f"{own}{file}, or give --data " if file is not None else "give --data "
        raise InputError(
            f"{what} needs samples and a loss; {where}digits, imagefolder:PATH, hf:PATH or FILE.py with datasets() and "
            "loss(outputs, batch)"
        )

    def task(self, full: Program) -> Task:
        """Opens samples and loss; images are made for the input size of the full network.

        Raises:
            InputError: the samples cannot be opened.
        """
        if self.data is not None:
            from progc.data.opening import open_data

            return open_data(self.data, full, self.source.images())
        from progc.data.taskfile import load_task

        assert self.source.file is not None
        return load_task(self.source.file)

    def captured(self, *, real: bool, phase: Phase, note: Note) -> Program:
        """Captures the source; see `captured`."""
        return captured(self.source, weights=self.weights, seed=self.seed, real=real, phase=phase, note=note)

    def grown(self, start: Program, *, real: bool, phase: Phase, note: Note) -> Program:
        """Returns the full network: the captured source grown to the target, or the source itself.

        Args:
            start: what `captured` returned.
            real: False: the grown network has shapes only, and growth is not checked by running it.

        Raises:
            InputError: the target cannot be built.
            CaptureError, TargetError: the target cannot be captured, or the source does not grow to it.
        """
        if self.to is None:
            return start
        from progc.growth.grow import grow_with_report

        notes: list[str] = []
        with phase("target"):
            aim = resolve_target(self.to, source=start, seed=self.seed, notes=notes)
        for text in notes:
            note(text)
        with phase("grow"):
            return grow_with_report(start, aim, seed=self.seed, check=real).program


def _source_text(config: Config, given: Schedule | None) -> str:
    """The source, with arguments that its plan was made with besides those that the run gives."""
    own, planned = config.model, None if given is None else given.model.source
    if planned is not None:
        (plain, args), (same, more) = split(own), split(planned)
        if plain == same and args.items() <= more.items():
            return planned
    return own


def captured(
    source: Source, *, weights: Path | None = None, seed: int = 0, real: bool = True, phase: Phase, note: Note
) -> Program:
    """Builds and captures a source; notes where its weights come from.

    Args:
        weights: file with its weights; None: as the source makes them.
        seed: seed of the model's constructor.
        real: False: no memory for weights is taken, and the program has shapes only.

    Raises:
        InputError: the model cannot be built, the weights do not fit, or example inputs are missing.
        CaptureError: the model cannot be captured.
    """
    from progc.capturing.capture import capture, capture_deferred

    with phase("build"):
        model = source.build(seed) if real else source.build_skeleton(seed, allocate=False)
        example = source.example(model)
        if real and weights is not None:
            from progc.files.weights import load_weights

            load_weights(model, weights)
    if real and weights is None:
        drawn = f"initialised by {type(model).__name__}, seed {seed} (no weights were given)"
        note(f"weights of {source.text}: {source.trained or drawn}")
    with phase("capture"):
        return (capture if real else capture_deferred)(model, *example)
