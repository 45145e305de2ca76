"""Chains of a network that did not train when it was captured: a schedule must not cut and make again their blocks."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from progc.transforms.freezing.setting import fixed_parameters

if TYPE_CHECKING:
    from progc.analysis.chains import Chain
    from progc.ir.program import Program


def wholly_frozen(program: Program, chain: Chain) -> bool:
    """Whether no parameter of a chain trained when the program was captured."""
    own = [_parameters(program, block.tensors) for block in chain.blocks]
    fixed = fixed_parameters(program)
    return any(own) and all(names <= fixed for names in own)


def partly_frozen(program: Program, chain: Chain) -> bool:
    """Whether no parameter of some block of a chain trained when the program was captured."""
    own = [_parameters(program, block.tensors) for block in chain.blocks]
    fixed = fixed_parameters(program)
    return any(names and names <= fixed for names in own)


def _parameters(program: Program, names: Collection[str]) -> set[str]:
    return {program.tied.get(name, name) for name in names if program.specs[name].kind == "parameter"}
