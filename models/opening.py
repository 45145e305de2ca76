"""Sources: the texts that name a model, and targets: the texts that name what it shall become.

    path.py[:name]                    a file of the user's; `name` is a class, a function or an instance
    timm:NAME   torchvision:NAME      a model of that library, untrained
    diffusers:NAME|PATH               a preset of ours, a config.json, or a checkpoint folder
    transformers:PATH                 a config.json or a checkpoint folder

A target is any of these, a size preset, or sizes (`depth=12,width=768`). Nothing is ever fetched
from a hub.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progc.errors import CaptureError, InputError
from progc.files.suggestions import did_you_mean
from progc.models.sizes import Sizes, looks_like_sizes, parse_sizes

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


def open_source(text: str) -> Source:
    """Reads the text of a source. Names are checked, nothing is built yet.

    Raises:
        InputError: not a source, no such file, or a name that the library does not have.
    """
    family, colon, rest = text.partition(":")
    if _is_file(text):
        from progc.models.file import file_source

        return file_source(text)
    if colon and family in FAMILIES:
        if not rest:
            raise InputError(f"`{text}` names no model; expected {FORMS}")
        adapter = _adapter(family)
        construct, trained = adapter.locate(rest)
        hint = "write a file with build() and example_inputs() and give path.py instead"
        return Source(text, family, construct, adapter.example, trained=trained, hint=hint)
    meant = did_you_mean(family, FAMILIES) if colon else ""
    raise InputError(f"`{text}` is not a source{meant or ';'} expected {FORMS}")


def open_target(text: str) -> Sizes | Source:
    """Reads the text of a target. Names are checked, nothing is built yet.

    Raises:
        InputError: neither a size preset, nor sizes, nor a source.
    """
    from progc.models.presets import PRESETS

    if text in PRESETS:
        return parse_sizes(PRESETS[text])
    if _is_file(text) or text.partition(":")[0] in FAMILIES:
        return open_source(text)
    if looks_like_sizes(text):
        return parse_sizes(text)
    raise InputError(
        f"unknown target `{text}`{did_you_mean(text, PRESETS) or ';'} expected a size preset ({', '.join(PRESETS)}), "
        f"sizes such as depth=12,width=768,heads=12, or a model: {FORMS}"
    )


def resolve_target(
    text: str, source: Program | None = None, *, seed: int = 0, notes: list[str] | None = None
) -> Sizes | Program:
    """What `--to` means: sizes for the user's own network, or the program of another model.

    A target model is captured from a skeleton: names, shapes, graph and buffers are its own, the values of its
    parameters are arbitrary. A target that is called with other input sizes by itself (240 pixels and 456) is called
    like the source where it can be, so that the two can be compared.

    Args:
        text: a size preset, sizes, or a source.
        source: what is to be grown; a target without example inputs of its own is called like it.
        seed: for the target's constructor, where it draws more than weights.
        notes: gets a sentence where the target was called with other sizes than its own.

    Raises:
        InputError: the text means nothing known, or the target cannot be built.
        CaptureError: the target cannot be captured.
    """
    target = open_target(text)
    if isinstance(target, Sizes):
        return target
    from progc.capturing.capture import capture

    model = target.build_skeleton(seed)
    own = target.example(model, fallback=source.example if source is not None else None)
    sizes = _other_sizes(own, source.example) if source is not None else ""
    if source is not None and sizes:
        with contextlib.suppress(CaptureError):  # most often: a model that is built for one size
            program = capture(model, *source.example)
            if notes is not None:
                notes.append(f"{text} is called with the source's input sizes; its own are {sizes}")
            return program
    return capture(model, *own)


def _other_sizes(own: Example, other: Example) -> str:
    """The shapes of `own` as text, if the two examples differ in their tensors' shapes only (not in the batch)."""
    from torch import Tensor
    from torch.utils import _pytree as pytree

    (mine, spec), (theirs, wanted) = pytree.tree_flatten(own), pytree.tree_flatten(other)
    if spec != wanted or not all(
        type(a) is type(b) and (not isinstance(a, Tensor) or (a.dtype == b.dtype and a.dim() == b.dim()))
        for a, b in zip(mine, theirs, strict=True)
    ):
        return ""
    tensors = [(a, b) for a, b in zip(mine, theirs, strict=True) if isinstance(a, Tensor)]
    shapes = ["x".join(map(str, a.shape[1:])) for a, b in tensors if a.shape[1:] != b.shape[1:]]
    return ", ".join(shapes)


def derive_example(model: nn.Module) -> Example | None:
    """Example inputs of a model that belongs to a library we know, wherever it was built; else None."""
    for cls in type(model).__mro__:
        family = cls.__module__.partition(".")[0]
        if family in FAMILIES:
            example: Example | None = _adapter(family).example(model)
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


def _is_file(text: str) -> bool:
    return text.endswith(".py") or ".py:" in text


def _adapter(family: str) -> Any:
    try:
        importlib.import_module(family)
    except ImportError as error:
        raise InputError(f"`{family}:` needs the package {family} ({error}); pip install {family}") from error
    return importlib.import_module(f"progc.models.{family}")
