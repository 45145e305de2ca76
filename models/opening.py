"""Opens sources (texts that name a model) and targets (texts that name the model to grow into).

    path.py[:name]                    a Python file; `name` is a class, a function or an instance
    timm:NAME   torchvision:NAME      an untrained model of that library
    diffusers:NAME|PATH               a preset of progc, a config.json, or a checkpoint folder
    transformers:PATH                 a config.json or a checkpoint folder
    ...?name=value&name=value         any of these with arguments for its constructor, or entries of its config

A target is any of these, a size preset, or sizes (`depth=12,width=768`). Nothing is downloaded from a hub.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from progc.errors import CaptureError, InputError, did_you_mean, one_line
from progc.models.arguments import joined, split
from progc.models.sizes import Sizes, looks_like_sizes, parse_sizes
from progc.models.source import FAMILIES, FORMS, Example, Source, adapter_of, of_library

if TYPE_CHECKING:
    from progc.ir.program import Program


def open_source(text: str) -> Source:
    """Reads the text of a source. Names are checked, but nothing is built.

    Raises:
        InputError: the text is not a source, the file does not exist, or the library does not have the name.
    """
    plain, args = split(text)
    family, colon, rest = plain.partition(":")
    if _is_file(plain):
        from progc.models.file import file_source

        return file_source(text)
    if of_library(text):
        if not rest:
            raise InputError(f"`{text}`: expected the name of a model after the colon; the forms are {FORMS}")
        adapter = adapter_of(family)
        construct, trained = adapter.locate(rest, args)
        hint = "write a file with build() and example_inputs(), and give its path instead"
        return Source(
            text, family, construct, adapter.example, trained=trained, hint=hint,
            images=lambda: adapter.images(rest, args),
            drop_path=() if args.keys() & set(names := adapter.drop_path(rest)) else names,
        )  # fmt: skip
    meant = did_you_mean(family, FAMILIES) if colon else ""
    raise InputError(f"`{text}` is not a source{meant or ';'} expected {FORMS}")


def with_drop_path(source: Source, rate: float | None) -> tuple[Source, str | None]:
    """Returns the source with an argument for a rate of drop-path (stochastic depth).

    A network that is built with a rate of 0 has no such operation, so a plan could not set its rate later.

    Args:
        source: the source.
        rate: largest rate; None or 0: none is wanted.

    Returns:
        The source, and None; the source itself with the reason if its constructor takes no such argument.
    """
    reason = None
    for name in source.drop_path if rate else ():
        changed = open_source(joined(source.text, {name: rate}))
        try:
            changed.build_skeleton(allocate=False)
        except InputError as error:
            reason = reason or one_line(error)
        else:
            return changed, None
    return source, reason


def open_target(text: str) -> Sizes | Source:
    """Reads the text of a target. Names are checked, but nothing is built.

    Raises:
        InputError: the text is not a size preset, sizes or a source.
    """
    from progc.models.sizes import PRESETS

    if text in PRESETS:
        return parse_sizes(PRESETS[text])
    if _is_file(split(text)[0]) or of_library(text):
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
    """Resolves the text of `--to`: sizes for the network of the user, or the program of another model.

    A target model is captured from a skeleton: names, shapes, graph and buffers are those of the model, but the values
    of its parameters are arbitrary. If the target has another input size than the source (456 pixels and 240), it is
    called with the inputs of the source if possible, so that both can be compared.

    Args:
        text: a size preset, sizes, or a source.
        source: the program to grow. A target without example inputs is called with those of the source.
        seed: seed for the constructor of the target, in case it draws more than weights.
        notes: receives a sentence if the target was called with other input sizes than its own.

    Raises:
        InputError: the text is not a target, or the target cannot be built.
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
        with contextlib.suppress(CaptureError):  # usually because the model supports a single size
            program = capture(model, *source.example)
            if notes is not None:
                notes.append(f"{text} is called with the source's input sizes; its own are {sizes}")
            return program
    return capture(model, *own)


def _other_sizes(own: Example, other: Example) -> str:
    """Returns the shapes of `own` as text if the examples differ only in tensor shapes, other than the batch size."""
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
