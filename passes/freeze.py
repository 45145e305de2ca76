"""`freeze`: sets which parameters train (AutoProg-Zero; progc/transforms/freezing, docs/adr/0011-freeze.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch

from progc.errors import PassOptionError
from progc.ir import norms as norm_statistics
from progc.ir.program import Program
from progc.pipeline.base import Pass, PassResult, option
from progc.transforms.freezing import Selection, set_trainable, trainable
from progc.transforms.freezing import select as select_parameters
from progc.transforms.freezing.blocks import Blocks
from progc.transforms.freezing.report import report, still_written
from progc.transforms.freezing.setting import can_train


@dataclasses.dataclass(frozen=True)
class Freeze(Pass):
    """Sets which parameters train.

    Idea: an early stage of fine-tuning trains a part of the network, and a later stage trains more of it
    (AutoProg-Zero). Levels are interleaved: block b trains if b mod `of` is less than `level`. A closed prefix (the
    first blocks, the layers between them, and with `stem` everything before them) saves more, because the backward
    stops where the prefix ends: nothing inside it needs a gradient, and its activations are not saved. Parameters by
    kind (attention, norms, modulation, ...) are found by analysis of the graph. The pass describes the whole trainable
    set: a second one replaces the first, and `freeze` without options makes everything trainable again.
    Preserved: the function in eval mode, and every value: tensors share the same memory. In train mode too, unless
    normalisations with running statistics are frozen. Those use their running statistics, as in eval mode, and do not
    update them.
    Needs: chains, if options count blocks.
    Leaves behind: new parameter objects where the set changed. Create the optimizer again, or re-point it by name.
    """

    name: ClassVar[str] = "freeze"

    level: int | None = option(None, help="block b trains if b mod OF is less than this; 1 to OF")
    of: int = option(4, help="number of levels, at least 1; at the last level all blocks train")
    prefix: int | None = option(
        None, help="number of frozen blocks from the start, with the layers between them; at least 0"
    )
    suffix: int | None = option(None, help="number of frozen blocks from the end, at least 0")
    only: tuple[str, ...] = option(
        (),
        help="train only these kinds: attention, mlp, convolutions, norms, modulation, embeddings, biases, head",
    )
    rest: str | None = option(
        None,
        help="whether parameters outside of blocks train; by default they do, or with `only` those of its kinds",
        choices=("trainable", "frozen"),
    )
    stem: bool = option(
        False, help="freeze everything before the first block: patch embedding, positions, conditioning"
    )
    freeze: tuple[str, ...] = option(
        (), help="further parameters to freeze: names, modules, globs, chains, or blocks of a chain such as blocks[0:3]"
    )
    train: tuple[str, ...] = option(
        (), help="parameters that train nevertheless, selected in the same way; if given alone, nothing else trains"
    )
    measure: bool = option(True, help="count the FLOPs and bytes saved, by one step on shapes only")

    def __post_init__(self) -> None:
        for field in ("only", "freeze", "train"):
            if isinstance(getattr(self, field), str):
                object.__setattr__(self, field, (getattr(self, field),))
        super().__post_init__()

    @property
    def selection(self) -> Selection:
        """The options that select parameters."""
        fields = [field.name for field in dataclasses.fields(Selection)]
        return Selection(**{name: getattr(self, name) for name in fields})

    def run(self, program: Program) -> PassResult:
        """Sets the trainable set.

        Raises:
            PassOptionError: a number out of range, a selector or kind that matches nothing, or nothing left to train.
        """
        blocks = Blocks(program)
        selected = select_parameters(program, self.selection, blocks)
        result = set_trainable(program, selected.names)
        if result is program:
            return PassResult(program, False, lossless=True, notes=selected.notes)
        training = trainable(result)
        frozen = [tensor for name, tensor in result.parameters() if name not in training]
        counts = {
            "trainable tensors": len(training),
            "trainable parameters": sum(tensor.numel() for tensor in training.values()),
            "frozen tensors": len(frozen),
            "frozen parameters": sum(tensor.numel() for tensor in frozen),
        }
        still = sum(norm_statistics.is_still(norm) for norm, _ in norm_statistics.norms(result.graphs["train"]))
        if still:
            counts["still normalisations"] = still
        eval_only = ("frozen normalisation layers use their running statistics in train mode",) if still else ()
        saved = report(result, blocks, measure=self.measure)
        notes = (*selected.notes, *eval_only, *still_written(result), *saved.notes)
        return PassResult(result, True, {**counts, **saved.counts}, None, notes, lossless=True, eval_only=eval_only)


def freeze(program: Program, select: Callable[[str, torch.Tensor], bool]) -> Program:
    """Returns the program in which exactly the parameters train for which `select(name, tensor)` is true.

    Args:
        program: the program.
        select: called with the canonical name of each floating parameter, and the parameter (deferred while a network
            grows).

    Raises:
        PassOptionError: it is true for no parameter.
    """
    from progc.pipeline.manager import apply

    chosen = tuple(name for name, tensor in program.parameters() if can_train(tensor) and select(name, tensor))
    if not chosen:
        raise PassOptionError("freeze: the function selects no parameter; it must return True for at least one")
    return apply(program, [Freeze(train=chosen, measure=False)])
