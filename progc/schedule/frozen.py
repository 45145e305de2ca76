"""Chains that were captured frozen: a schedule must not cut their blocks, since nothing would train new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from progc.transforms.freezing.setting import fixed_parameters

if TYPE_CHECKING:
    from progc.analysis.chains import Chain
    from progc.ir.program import Program


def wholly_frozen(program: Program, chain: Chain) -> bool:
    """Returns whether no parameter of a chain trained when the program was captured."""
    return all(frozen := _frozen(program, chain)) and bool(frozen)


def partly_frozen(program: Program, chain: Chain) -> bool:
    """Returns whether a chain has a block of which no parameter trained when the program was captured."""
    return any(_frozen(program, chain))


def _frozen(program: Program, chain: Chain) -> list[bool]:
    """For each block with parameters, whether all of them were frozen."""
    fixed = fixed_parameters(program)
    own = [
        {program.tied.get(name, name) for name in block.tensors if program.specs[name].kind == "parameter"}
        for block in chain.blocks
    ]
    return [names <= fixed for names in own if names]
