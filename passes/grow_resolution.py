"""`grow-resolution`: changes the input size of networks on images."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from progc.errors import PassOptionError
from progc.ir.program import Program
from progc.pipeline.base import Pass, PassResult, option


@dataclasses.dataclass(frozen=True)
class GrowResolution(Pass):
    """Changes the size of the images that a network takes, up or down.

    Idea: both graphs are walked at the old and at the new size side by side. Every dim is a product or a concatenation
    of parts with a size before and after (class tokens, rows, columns, windows). Literals made of such parts are
    rewritten, and tensors over positions are resampled: learned tables by antialiased bicubic interpolation on their
    grid (Dosovitskiy et al. 2021), relative tables at geometrically spaced differences (Bao et al. 2022). Tables of
    sines and cosines, index tables and masks are computed again. The kind of a tensor follows from its values and its
    use.
    Preserved: nothing; on larger images the function is a different one. All other weights stay unchanged.
    Needs: an image among the inputs, and sizes that patches and windows divide. Other sizes are refused with the
    nearest ones that work.
    Leaves behind: a program with the same tensors and operations, example inputs of the new size, and one tensor lift
    per table.
    """

    name: ClassVar[str] = "grow-resolution"
    to: tuple[str, ...] = option(
        (), help="size of the image in pixels: 224, 160x224 or 160,224 (height, width), or a factor such as *1.5"
    )
    input: str | None = option(None, help="name of the input image, if the inputs have images of several sizes")
    windows: str = option(
        "auto",
        help="windows that the image is cut into: keep or scale their size; auto: keep it if a weight or "
        "a table requires it",
        choices=("auto", "keep", "scale"),
    )
    positions: str = option(
        "stretch",
        help="tables of sines and cosines: stretch the old range over the new positions, or extend the range",
        choices=("stretch", "extend"),
    )

    def run(self, program: Program) -> PassResult:
        """Resizes `program`.

        Raises:
            PassOptionError: an invalid size, or an input that does not exist.
            TargetError: a size that the network cannot take, or an operation that cannot follow.
        """
        from progc.transforms.resolution.resize import resize

        if not self.to:
            raise PassOptionError("grow-resolution: to is missing: expected a size such as 224, 160x224 or *1.5")
        windows = None if self.windows == "auto" else self.windows
        done = resize(program, self.to, input=self.input, windows=windows, positions=self.positions)
        if done.lift is None:
            return PassResult(program, False)
        counts = {"literals rewritten": done.edits, "tables resampled": len(done.lift.tensors)}
        return PassResult(done.program, True, counts, done.lift, done.notes, lossless=False)
