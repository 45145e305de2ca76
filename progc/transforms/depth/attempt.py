"""Chooses the chains that get deeper, and leaves out those that cannot.

A depth for all chains applies to every chain that can take it. The others keep their depth, each with a note that gives
the reason. A chain that the user names is refused instead, and so is a depth that no chain can take.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from progc.analysis.chains import Chain, chains_of
from progc.errors import LOSSY, NotLosslessError, ProgcError
from progc.ir.program import Program
from progc.lift.entry import TensorLift
from progc.transforms.depth.grow import CannotGrow, GrownChains
from progc.transforms.depth.identity import Identity, identity, lossy_reason
from progc.transforms.depth.insertion import Inserted, joined, units
from progc.transforms.depth.naming import BlockPlace, arranged
from progc.transforms.depth.targets import DepthChoice, DepthSize, choose

Growing = Sequence[tuple[Chain, Sequence[BlockPlace]]]


@dataclasses.dataclass(frozen=True)
class InsertionOptions:
    """The options of `grow-depth`."""

    sizes: Sequence[DepthSize]
    names: Sequence[str]
    init: Literal["identity", "interpolate", "stack", "random"]
    lossy: bool


@dataclasses.dataclass(frozen=True)
class Deeper:
    """A depth growth whose tensors are not made yet.

    Attributes:
        grown: the draft of the deeper program; None if nothing grows.
        growing: the chains that grow and the places of their blocks.
        reasons: why the growth is not exact, where the user accepts that.
        notes: chains that keep their depth, and properties of the new blocks.
        eval_only: new blocks that are the identity only in eval mode.
    """

    grown: GrownChains | None
    growing: Growing
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    eval_only: tuple[str, ...] = ()


def deepened(program: Program, options: InsertionOptions) -> Deeper:
    """Grows every selected chain that can grow.

    Raises:
        PassOptionError, TargetError: as for `choose`, or a chain that cannot take more blocks.
        NotLosslessError: with init `identity` and without `lossy`: a named chain, or every chain, cannot grow exactly.
    """
    return _Attempts(program, options).run()


class _Attempts:
    """Repeats the growth without each chain that turns out not to grow, and keeps what it found for the others."""

    def __init__(self, program: Program, options: InsertionOptions) -> None:
        self.program, self.options = program, options
        self.left: dict[str, str] = {}
        self.first: ProgcError | None = None
        self.known: dict[tuple[str, int, int], tuple[dict[str, TensorLift], Identity]] = {}

    def run(self) -> Deeper:
        while True:
            choice = choose(chains_of(self.program), self.options.sizes, self.options.names, self.left)
            growing = [
                (chain, arranged(len(chain.blocks), blocks, chain.period, self._init(chain)))
                for chain, blocks in choice.blocks
                if blocks > len(chain.blocks)
            ]
            if not growing:
                if self.first is not None:
                    raise self.first
                return Deeper(None, (), (), choice.notes)
            done = self._attempt(choice, growing)
            if done is not None:
                return done

    def _init(self, chain: Chain) -> Literal["identity", "interpolate", "stack", "random"]:
        return "random" if chain.kind == "dense" else self.options.init

    def _attempt(self, choice: DepthChoice, growing: Growing) -> Deeper | None:
        """Returns the growth of these chains, or None if a chain has to keep its depth; that one is then in `left`."""
        try:
            grown = GrownChains(self.program, growing, random=self.options.init == "random")
        except CannotGrow as error:
            self._leave(choice, error.chain, error, str(error))
            return None
        if self.options.init != "identity":
            return Deeper(grown, growing, (), choice.notes)
        reasons: list[str] = []
        made: dict[str, list[Identity]] = {}
        for unit in units(grown.inserted):
            block = unit[0]
            if block.chain.name in self.left:
                continue
            try:
                made.setdefault(block.chain.name, []).extend(self._identities(grown, unit))
            except NotLosslessError as error:
                label = block.chain.blocks[block.source].label
                reason = f"a copy of {label} cannot be the identity: {error}"
                if not self.options.lossy:
                    advice = f"; use init=interpolate, or {LOSSY} (plain copies)"
                    self._leave(choice, block.chain, NotLosslessError(reason + advice), reason)
                reasons.append(reason)
        for chain, _ in growing:
            reason_ = lossy_reason(made.get(chain.name, ()))
            if reason_ and not self.options.lossy and chain.name not in self.left:
                refusal = NotLosslessError(f"{reason_}; {LOSSY}, or use init=interpolate")
                self._leave(choice, chain, refusal, reason_)
            reasons += [reason_] if reason_ else []
        self._leave_plain(choice, growing, made)
        if any(chain.name in self.left for chain, _ in growing):
            return None
        notes = [*choice.notes, *(f"{name} keeps its depth: {reason}" for name, reason in self.left.items())]
        return Deeper(grown, growing, tuple(dict.fromkeys(reasons)), tuple(notes), tuple(_eval_only(made)))

    def _leave(self, choice: DepthChoice, chain: Chain, error: ProgcError, reason: str) -> None:
        if chain.name not in choice.unnamed:
            raise error
        self.first = self.first or error
        self.left[chain.name] = reason

    def _leave_plain(self, choice: DepthChoice, growing: Growing, made: dict[str, list[Identity]]) -> None:
        """Leaves out layers without a skip path if another chain has one.

        Such layers are the blocks of a plain network, but stems and transitions of a residual one.
        """
        plain = {name: next((one.plain for one in found if one.plain), None) for name, found in made.items()}
        residual = [
            chain
            for chain, _ in growing
            if chain.name not in self.left and not plain.get(chain.name) and len(chain.blocks)
        ]
        for name, layer in plain.items():
            if layer and residual and name in choice.unnamed and name not in self.left:
                self.left[name] = (
                    f"{layer} is on the network's only path, and {residual[0].name} has a skip path; name it to grow it"
                )

    def _identities(self, grown: GrownChains, unit: Sequence[Inserted]) -> list[Identity]:
        """Identities of the blocks of one period, or of the whole period where a single block cannot be one."""
        try:
            before = dict(grown.lifts)
            return [self._identity(grown, block) for block in unit]
        except NotLosslessError:
            if len(unit) == 1:
                raise
            grown.lifts.update(before)
            return [self._identity(grown, joined(unit))]

    def _identity(self, grown: GrownChains, block: Inserted) -> Identity:
        """Returns the identity of a block and stores its lifts; reuses an earlier attempt where nothing changed."""
        key = (block.chain.name, block.place, len(block.nodes["eval"]))
        if key in self.known:
            before, found = self.known[key]
            if all(lift.fresh and grown.lifts.get(name) == lift for name, lift in before.items()):
                grown.lifts.update(found.lifts)
                return found
        found = identity(grown.draft, block, grown.lifts)
        self.known[key] = ({name: grown.lifts[name] for name in found.lifts}, found)
        grown.lifts.update(found.lifts)
        return found


def _eval_only(made: dict[str, list[Identity]]) -> list[str]:
    """Describes the blocks that are the identity only in eval mode."""
    norms = {name: next((one.eval_only for one in found if one.eval_only), None) for name, found in made.items()}
    return [
        f"new blocks of {name} are the identity in eval mode; in train mode {norm} normalises by batch statistics"
        for name, norm in norms.items()
        if norm
    ]
