"""A source: a model that can be built, and example inputs for it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progc.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from progc.ir.program import Program


FAMILIES = ("timm", "torchvision", "diffusers", "transformers")


FORMS = "path.py[:name], timm:NAME, torchvision:NAME, diffusers:NAME|PATH or transformers:PATH"


Example = tuple[tuple[Any, ...], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Source:
    """A model that can be built.

    Attributes:
        text: what the user wrote.
        family: `file`, or the library the model comes from.
        construct: builds the model.
        derive: example inputs of a built model, or None where they cannot be known.
        prepare: what has to run before any model is built (importing the user's file).
        trained: the checkpoint file or folder whose weights `construct` loads, if any.
        hint: how the user can supply example inputs.
        file: the user's Python file, if it is one.
    """

    text: str
    family: str
    construct: Callable[[], nn.Module]
    derive: Callable[[nn.Module], Example | None]
    prepare: Callable[[], Any] = lambda: None
    trained: str | None = None
    hint: str = ""
    file: Path | None = None

    def build(self, seed: int = 0) -> nn.Module:
        """The model, initialised as its class does it from `seed`; torch's own random state is left as it was.

        Raises:
            InputError: it cannot be built, with the reason.
        """
        with _seeded(seed):
            self.prepare()
            return self.construct()

    def build_skeleton(self, seed: int = 0, *, allocate: bool = True) -> nn.Module:
        """The model for its structure only: cheap to build, parameter values arbitrary (models/skeleton.py)."""
        from progc.models.skeleton import build_skeleton

        with _seeded(seed):
            self.prepare()  # outside the skeleton: an instance made on import stays what it is
        return build_skeleton(lambda: self.build(seed), allocate=allocate)

    def program(self, seed: int = 0, *, weights: bool = True) -> Program:
        """The model, captured on its own example inputs.

        Args:
            seed: for the constructor.
            weights: False: no memory for weights is taken; the program has shapes only and does not run.

        Raises:
            InputError: it cannot be built, or example inputs are missing.
            CaptureError: torch.export cannot follow it.
        """
        from progc.capturing.capture import capture, capture_deferred

        model = self.build(seed) if weights else self.build_skeleton(seed, allocate=False)
        return (capture if weights else capture_deferred)(model, *self.example(model))

    def example(self, model: nn.Module, fallback: Example | None = None) -> Example:
        """Example inputs `(args, kwargs)` of the built model, a batch of 2 where the library tells the shape.

        Args:
            model: what `build` returned.
            fallback: used where nothing else is known (a target is called like its source).

        Raises:
            InputError: none are given and none can be derived.
        """
        found = self.derive(model)
        if found is None:
            found = fallback
        if found is None:
            raise InputError(
                f"{self.text}: example inputs are missing and cannot be derived from {type(model).__name__}; "
                f"{self.hint}"
            )
        return found


def derive_example(model: nn.Module) -> Example | None:
    """Example inputs of a model that belongs to a library we know, wherever it was built; else None."""
    for cls in type(model).__mro__:
        family = cls.__module__.partition(".")[0]
        if family in FAMILIES:
            example: Example | None = adapter_of(family).example(model)
            return example
    return None


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's and torch's random state from `seed`, put back afterwards."""
    import torch

    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)


def adapter_of(family: str) -> Any:
    try:
        importlib.import_module(family)
    except ImportError as error:
        raise InputError(f"`{family}:` needs the package {family} ({error}); pip install {family}") from error
    return importlib.import_module(f"progc.models.{family}")
