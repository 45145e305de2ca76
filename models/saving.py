"""Writes a model of a library as the folder that the library's own `from_pretrained` reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from progc.errors import CheckError, InputError, one_line
from progc.models.source import FAMILIES, Source, adapter_of

if TYPE_CHECKING:
    from torch import nn

_HAS = "only models of diffusers and transformers have one"


def check_folder(source: Source) -> None:
    """Checks, without building it, that the model of a source may have a folder of its library.

    Raises:
        InputError: its library has no such folder.
    """
    if source.family in FAMILIES and not hasattr(adapter_of(source.family), "save"):
        raise InputError(f"{source.text}: {source.family} has no folder format, {_HAS}; export safetensors")


def save_folder(model: nn.Module, folder: Path, source: Source) -> None:
    """Writes config and weights, and reads them back.

    Args:
        model: the built model of `source`, which has a class of the library itself: of a class that the user derived
            from it, `from_pretrained` would not find the code.
        folder: an empty folder. Not atomic: it is a temporary one.

    Raises:
        InputError: the class has no such folder, or the library refuses.
        CheckError: what the library reads back has other weights.
    """
    family = type(model).__module__.partition(".")[0]
    adapter = adapter_of(family) if family in FAMILIES else None
    if not hasattr(adapter, "save"):
        raise InputError(f"{type(model).__name__} of {source.text} has no folder format, {_HAS}; export safetensors")
    assert adapter is not None
    name = source.text.partition(":")[2] if source.family == family else None
    try:
        adapter.save(model, folder, name if name is not None and Path(name).exists() else None)
    except OSError:
        raise
    except Exception as error:  # each library raises different exceptions
        raise InputError(
            f"{type(model).__name__} cannot be written as a folder: {one_line(error, 300)}; export safetensors"
        ) from error
    construct, _ = adapter.locate(str(folder), {})
    found, expected = construct().state_dict(), model.state_dict()
    odd = sorted(found.keys() ^ expected.keys())
    odd = odd or [name for name, value in expected.items() if not torch.equal(found[name], value)]
    if odd:
        raise CheckError(f"{family} reads {odd[0]} back with other values; nothing was written; export safetensors")
