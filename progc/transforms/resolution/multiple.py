"""One network at several input sizes, over one set of parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from progc.ir.program import Program
from progc.transforms.resolution.images import find_images
from progc.transforms.resolution.resize import resize


def at_sizes(program: Program, sizes: Sequence[str], **options: Any) -> dict[str, Program]:
    """The program at several sizes, to be trained in turns.

    All tensors that do not follow the image are the same objects, so that one optimizer trains them at every size.
    Where nothing in the graphs depends on the size (convolutions, norms, pooling over all positions), all sizes are one
    program, which takes images of any size: nothing is captured or compiled anew.

    Args:
        sizes: as option `to` of grow-resolution: `("160", "192x224")`.
        options: of `progc.transforms.resolution.resize.resize`.

    Returns:
        A program per text in `sizes`.

    Raises:
        ProgcError: as `resize`, for the first size that does not work.
    """
    made = {size: resize(program, size, **options) for size in sizes}
    if any(result.edits or result.moved or (result.lift and result.lift.tensors) for result in made.values()):
        return {size: result.program for size, result in made.items()}
    images = {image.index: image.dims for image in find_images(program, options.get("input"))}
    free = tuple(images.get(index, ()) for index in range(len(program.signature.shapes)))
    any_size = program.replace(signature=dataclasses.replace(program.signature, free_dims=free))
    return dict.fromkeys(sizes, any_size)
