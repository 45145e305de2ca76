"""Compiles regions for another process: `python -m progc.emit.compile_child FOLDER`.

FOLDER holds `recipe.json`. Inductor writes to the cache folder that the environment names. Exit code 0 means that every
region was compiled and ran forward and backward.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config
from torch._inductor import config

from progc.emit.specs import made, region_from_json


def main(folder: Path) -> None:
    """Compiles every region of the recipe, and runs each once."""
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    with contextlib.suppress(OSError, AttributeError):
        os.nice(int(recipe.get("nice", 0)))
    if recipe.get("threads"):
        torch.set_num_threads(int(recipe["threads"]))
    for name, value in recipe["config"].items():
        if getattr(config, name, None) != value:
            setattr(config, name, value)
    torch._functorch.config.force_non_lazy_backward_lowering = bool(recipe.get("backward"))
    for item in recipe["regions"]:
        function, given = region_from_json(item)
        compiled = torch.compile(function, **recipe["options"])
        with _autocast(recipe.get("autocast")):
            outputs = compiled(*made(given))
        leaves = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        ends = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
        if ends:
            torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])


def _autocast(setting: dict[str, Any] | None) -> contextlib.AbstractContextManager[Any]:
    if setting is None:
        return contextlib.nullcontext()
    return torch.autocast(setting["device"], dtype=getattr(torch, setting["dtype"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
