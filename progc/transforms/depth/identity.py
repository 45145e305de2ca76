"""Makes inserted blocks compute the identity: silences their branches, and moves the affine of post-norm blocks.

A pre-norm or post-activation block is the identity when every branch that is added to its skip path is zero. The demand
solver finds the parameters that silence them (docs/growth.md section 2). A post-norm block, LN(LN(x + a) + m), also
applies its norms to the skip path. With silent branches, their input was already normalised by the previous norm, and a
norm with gain 1 and shift 0 does not change it. The gain and shift of that previous norm therefore move into the last
norm of the inserted block. This is exact up to the eps of the norms.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping

from torch import fx

from progc.analysis.demand import Demand, solve
from progc.errors import NotLosslessError
from progc.ir.operations import argument, describe, op_name
from progc.ir.program import MODES, Mode, Program
from progc.lift.entry import TensorLift
from progc.transforms.depth.insertion import Inserted
from progc.transforms.depth.layers import identity_layers
from progc.transforms.depth.skips import Skip, check_identity, skips

EXACT_EPS = 1e-11
"""Norms with at most this eps reproduce a normalised value to better than 1e-9."""

_PAIRS = 8


@dataclasses.dataclass(frozen=True)
class Identity:
    """How one inserted block becomes the identity.

    Attributes:
        lifts: the lifts that change, by canonical name after growth.
        inexact: norms with too large an eps, as `eps of operation`; the block is then not exactly the identity.
        plain: the layer that is the identity itself, because the block adds nothing to its entry.
        eval_only: the BatchNorm that is the identity in eval mode only; in train mode it uses batch statistics.
    """

    lifts: Mapping[str, TensorLift]
    inexact: tuple[str, ...] = ()
    plain: str | None = None
    eval_only: str | None = None


def identity(program: Program, block: Inserted, lifts: Mapping[str, TensorLift]) -> Identity:
    """Returns the lifts with which an inserted block computes the identity.

    Args:
        program: the grown program. Only names, kinds and whether a tensor is all zero are read from its tensors.
        block: the inserted block.
        lifts: by canonical name after growth.

    Raises:
        NotLosslessError: the block cannot be the identity; the message gives the reason.
    """
    parts: list[Identity] = []
    for k, exit_ in enumerate(block.exits["eval"]):
        if all(block.entries[mode][k] is block.exits[mode][k] for mode in MODES):
            continue
        known = {**lifts, **{name: lift for part in parts for name, lift in part.lifts.items()}}
        failure: NotLosslessError | None = None
        for paths in _paths(block, k):
            try:
                parts.append(_silenced(program, block, paths, known))
            except NotLosslessError as error:
                if failure is None and paths["eval"].layers:
                    error = NotLosslessError(f"{_no_skip(exit_)}; {error}")
                failure = failure or error
            else:
                break
        else:
            raise failure or NotLosslessError(_no_skip(exit_))
    return Identity(
        {name: lift for part in parts for name, lift in part.lifts.items()},
        tuple(text for part in parts for text in part.inexact),
        next((part.plain for part in parts if part.plain), None),
        next((part.eval_only for part in parts if part.eval_only), None),
    )


def _no_skip(exit_: fx.Node) -> str:
    return f"its exit, {describe(exit_)}, is not its entry plus branches"


def _paths(block: Inserted, k: int) -> Iterable[Mapping[Mode, Skip]]:
    """Skip paths of exit k that both graphs share; those that need no layer to be the identity come first."""
    for layers in (False, True):
        found = {
            mode: list(
                itertools.islice(
                    skips(block.entries[mode][k], block.exits[mode][k], layers, others=block.entries[mode]), _PAIRS
                )
            )
            for mode in MODES
        }
        for train, eval_ in itertools.product(found["train"], found["eval"]):
            same = all(
                len(getattr(train, kind)) == len(getattr(eval_, kind)) for kind in ("branches", "norms", "layers")
            )
            if same and bool(eval_.layers) == layers:
                yield {"train": train, "eval": eval_}


def _silenced(
    program: Program, block: Inserted, paths: Mapping[Mode, Skip], lifts: Mapping[str, TensorLift]
) -> Identity:
    for path in paths.values():
        check_identity(program, path)
    path = paths["eval"]
    changed = identity_layers(program, {mode: paths[mode].layers for mode in MODES}, lifts)
    branches = zip(*(paths[mode].branches for mode in MODES), strict=True)
    demands = [Demand({mode: node.name for mode, node in zip(MODES, pair, strict=True)}, 0.0) for pair in branches]
    layers = set(changed)
    for name, scale in solve(program, demands):
        if name not in lifts or not lifts[name].fresh:
            raise NotLosslessError(f"its branch ends in {name}, which is not the block's own")
        if name in layers:
            raise NotLosslessError(f"{name} would have to be zero and the identity at the same time")
        known = changed.get(name, lifts[name])
        changed[name] = dataclasses.replace(known, scales=(*known.scales, scale))
    if path.norms:
        changed.update(_with_moved_affine(program, block, paths, {**lifts, **changed}))
    norms = [layer.node for layer in path.layers if op_name(layer.node) == "batch_norm"]
    plain = path.layers and not path.branches
    return Identity(
        changed,
        tuple(_inexact_norms(path)),
        describe(path.layers[0].node) if plain else None,
        describe(norms[0]) if norms else None,
    )


def _with_moved_affine(
    program: Program, block: Inserted, paths: Mapping[Mode, Skip], lifts: Mapping[str, TensorLift]
) -> dict[str, TensorLift]:
    """Lifts of the norms on the skip path.

    All but the last get gain 1 and shift 0. The last one gets the gain and shift of the norm before the block.
    """
    before, norms = paths["eval"].entry, paths["eval"].norms
    for mode, path in paths.items():
        _check_producer(path, set(block.nodes[mode].values()), mode)
        names = [_affine(path.entry), *(_affine(norm) for norm in path.norms)]
        if names != [_affine(before), *(_affine(norm) for norm in norms)]:
            raise NotLosslessError(f"the train graph and the eval graph normalise differently in {block.chain.name}")
    changed: dict[str, TensorLift] = {}
    for position, (kind, neutral) in enumerate((("weight", 1.0), ("bias", 0.0))):
        giver, takers = _affine(before)[position], [_affine(norm)[position] for norm in norms]
        if giver is not None and takers[-1] is None:
            raise NotLosslessError(f"{describe(norms[-1])} has no {kind} that can replace that of {describe(before)}")
        for name in (giver, *takers):
            if name is not None:
                _check_unshared(program, name)
                changed[name] = dataclasses.replace(lifts[name], fill=neutral, fresh=True, scales=())
        if giver is not None and takers[-1] is not None:
            last = takers[-1]
            changed[last] = dataclasses.replace(lifts[giver], name=last)
    return changed


def _check_producer(path: Skip, readers: set[fx.Node], mode: Mode) -> None:
    norm, entry = path.norms[0], path.entry
    if entry.target != norm.target or argument(entry, "normalized_shape") != argument(norm, "normalized_shape"):
        raise NotLosslessError(
            f"{describe(norm)} normalises the value that a silent block should pass on, and that value "
            f"({describe(entry)}) is not the output of such a norm"
        )
    outside = [user.name for user in entry.users if user not in readers]
    if outside:
        raise NotLosslessError(
            f"{describe(entry)} is read outside the chain too (by {', '.join(sorted(outside))} in the {mode} graph), "
            "so its gain and shift cannot move into the inserted block"
        )


def _affine(norm: fx.Node) -> tuple[str | None, str | None]:
    """Names of gain and shift."""
    found = []
    for kind in ("weight", "bias"):
        node = argument(norm, kind)
        if isinstance(node, fx.Node) and node.op != "get_attr":
            raise NotLosslessError(f"{describe(norm)} has a {kind} that is computed")
        found.append(str(node.target) if isinstance(node, fx.Node) else None)
    return found[0], found[1]


def _check_unshared(program: Program, name: str) -> None:
    for mode in MODES:
        uses = sum(
            len(node.users) for node in program.graphs[mode].nodes if node.op == "get_attr" and node.target == name
        )
        if uses != 1 or name in program.tied.values():
            raise NotLosslessError(f"{name} is used more than once, so it cannot move into the inserted block")


def _inexact_norms(path: Skip) -> Iterable[str]:
    """Norms on the skip path whose eps is too large to call the block an identity, as `eps of operation`."""
    for norm in (path.entry, *path.norms) if path.norms else ():
        eps = argument(norm, "eps")
        if eps is None or eps > EXACT_EPS:
            yield f"eps {eps} of {describe(norm)}"


def lossy_reason(blocks: Iterable[Identity]) -> str | None:
    """Returns why silent blocks are not exactly the identity; None if they are."""
    found = [text for block in blocks for text in block.inexact]
    if not found:
        return None
    return f"a normalised value is normalised again, which is exact only for a vanishing eps; here {found[0]}"
