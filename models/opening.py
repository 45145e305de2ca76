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
from typing import TYPE_CHECKING

from progc.errors import CaptureError, InputError, did_you_mean
from progc.models.sizes import Sizes, looks_like_sizes, parse_sizes
from progc.models.source import FAMILIES, FORMS, Example, Source, adapter_of

if TYPE_CHECKING:
    from progc.ir.program import Program


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
        adapter = adapter_of(family)
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
    from progc.models.sizes import PRESETS

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


def _is_file(text: str) -> bool:
    return text.endswith(".py") or ".py:" in text
