"""A source: a model that can be built, and its example inputs."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progc.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from progc.ir.program import Program
    from progc.models.images import ImageConfig


FAMILIES = ("timm", "torchvision", "diffusers", "transformers")
FORMS = "path.py[:name], timm:NAME, torchvision:NAME, diffusers:NAME|PATH or transformers:PATH"

Example = tuple[tuple[Any, ...], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Source:
    """A model that can be built.

    Attributes:
        text: the text given by the user.
        family: `file`, or the library of the model.
        construct: builds the model.
        derive: returns example inputs of a built model, or None if they are unknown.
        prepare: runs before any model is built (imports the file of the user).
        trained: the checkpoint file or folder whose weights `construct` loads, if any.
        hint: how the user can provide example inputs.
        file: the Python file of the user, if the source is a file.
        images: returns how the model wants its images; None if that is not known.
        drop_path: names of arguments of the constructor, one of which may set the largest rate of drop-path; empty if
            the text gives one of them.
    """

    text: str
    family: str
    construct: Callable[[], nn.Module]
    derive: Callable[[nn.Module], Example | None]
    prepare: Callable[[], Any] = lambda: None
    trained: str | None = None
    hint: str = ""
    file: Path | None = None
    images: Callable[[], ImageConfig | None] = lambda: None
    drop_path: tuple[str, ...] = ()

    def build(self, seed: int = 0) -> nn.Module:
        """Builds the model, initialised by its class with the given seed; the random state of torch is restored.

        Raises:
            InputError: the model cannot be built; the message gives the reason.
        """
        from progc.ir.random_state import seeded

        with seeded(seed):
            self.prepare()
            return self.construct()

    def build_skeleton(self, seed: int = 0, *, allocate: bool = True) -> nn.Module:
        """Builds the model for its structure only: cheap, with arbitrary parameter values (models/skeleton.py)."""
        from progc.ir.random_state import seeded
        from progc.models.skeleton import build_skeleton

        with seeded(seed):
            self.prepare()  # outside the skeleton: an instance created on import keeps its weights
        return build_skeleton(lambda: self.build(seed), allocate=allocate)

    def program(self, seed: int = 0, *, weights: bool = True) -> Program:
        """Captures the model on its example inputs.

        Args:
            seed: seed for the constructor.
            weights: if False, no memory is allocated for weights; the program has shapes only and cannot run.

        Raises:
            InputError: the model cannot be built, or example inputs are missing.
            CaptureError: torch.export cannot capture the model.
        """
        from progc.capturing.capture import capture, capture_deferred

        model = self.build(seed) if weights else self.build_skeleton(seed, allocate=False)
        return (capture if weights else capture_deferred)(model, *self.example(model))

    def example(self, model: nn.Module, fallback: Example | None = None) -> Example:
        """Returns example inputs `(args, kwargs)` of the built model, with batch size 2 if the library defines them.

        Args:
            model: the result of `build`.
            fallback: used if nothing else is known (a target is called like its source).

        Raises:
            InputError: no example inputs are given, and none can be derived.
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


def of_library(text: str) -> bool:
    """Returns whether a text is a source of a model library by its form, such as `diffusers:PATH/config.json`."""
    family, colon, _ = text.partition(":")
    return bool(colon) and family in FAMILIES


def derive_example(model: nn.Module) -> Example | None:
    """Returns example inputs of a model of a supported library, or None for any other model."""
    for cls in type(model).__mro__:
        family = cls.__module__.partition(".")[0]
        if family in FAMILIES:
            example: Example | None = adapter_of(family).example(model)
            return example
    return None


def adapter_of(family: str) -> Any:
    """Returns the adapter module of a library.

    Raises:
        InputError: the library cannot be imported.
    """
    try:
        importlib.import_module(family)
    except ImportError as error:
        raise InputError(f"`{family}:` needs the package {family} ({error}); pip install {family}") from error
    return importlib.import_module(f"progc.models.{family}")
