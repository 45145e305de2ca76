"""Changes the input size of a program: finds sizes by walking, rewrites graphs and example, lifts tables.

Also makes one network at several input sizes over one set of parameters (`at_sizes`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from progc.errors import TargetError
from progc.ir.graphs import copy_graph, drop_unread_sizes, propagate, set_literal
from progc.ir.notation import call_text
from progc.ir.operations import describe
from progc.ir.program import MODES, Program
from progc.lift.entry import TensorLift
from progc.lift.extents import Key
from progc.lift.lift import Lift
from progc.transforms.resolution.images import Image, find_images, parse_size, walk_inputs
from progc.transforms.resolution.images import resized as resized_example
from progc.transforms.resolution.solve import Solution, solve, structure
from progc.transforms.resolution.tables import resamples
from progc.transforms.resolution.values import Indivisible, SizeClash, SizedValue, SizeFacts

_FAR = 512
"""How far from the asked size the nearest ones that work are looked for, in pixels."""


@dataclasses.dataclass(frozen=True)
class Resized:
    """The result of `resize`.

    Attributes:
        program: the new program; the same object if the size does not change.
        lift: lift of the tensors that follow the image; None if nothing changed.
        size: height and width before and after, in pixels.
        edits: number of rewritten literals.
        moved: whether operations were replaced, or inputs other than the image changed their size.
        notes: notes for the user.
    """

    program: Program
    lift: Lift | None
    size: tuple[tuple[int, int], tuple[int, int]]
    edits: int
    notes: tuple[str, ...]
    moved: bool = False


def resize(
    program: Program,
    to: str | Sequence[str],
    *,
    input: str | None = None,
    windows: str | None = None,
    positions: str = "stretch",
) -> Resized:
    """Returns the program at another input size; the given program stays unchanged.

    Args:
        program: the program.
        to: `224`, `160x224` (height x width), `*1.5`, or a sequence `("160", "224")`.
        input: name of the image among the inputs, if the images have different sizes.
        windows: `keep` or `scale` the windows that the image is cut into; None: as the tables in them require.
        positions: for computed tables: `stretch` (the old range at another density) or `extend`.

    Raises:
        PassOptionError: `to` is not a size, or no input has that name.
        TargetError: a size that the network cannot take (with the nearest ones that work), an operation that cannot
            be rewritten (named), or windows for which nothing in the graph decides what stays.
    """
    images = find_images(program, input)
    old = images[0].size
    new = parse_size(to, old)
    if new == old:
        return Resized(program, None, (old, new), 0, ())
    facts, undecided = structure(program, _inputs_at(program, images), windows == "scale")
    if windows is None and undecided:
        raise TargetError(_ambiguous(program, undecided))
    try:
        found = _solved(program, images, new, facts)
    except Indivisible as odd:
        raise TargetError(
            f"grow-resolution: the network cannot take {_text(new)}: {odd}; {_nearest(program, images, new, facts)}"
        ) from odd
    except SizeClash as clash:
        near = _nearest(program, images, new, facts)
        if near == _NONE:
            raise TargetError(
                f"grow-resolution: {clash.where or 'the graph'} cannot follow the image: {clash}"
            ) from clash
        raise TargetError(
            f"grow-resolution: the network cannot take {_text(new)}: {clash.where}: {clash}; {near}"
        ) from clash
    return _rewritten(program, found, (old, new), positions == "stretch")


_NONE = "no other size works either"


def _inputs_at(program: Program, images: Sequence[Image]) -> Any:
    old = images[0].size

    def at(factor: int) -> Any:
        size = (old[0] * factor, old[1] * factor)
        return lambda facts: walk_inputs(program, images, size, facts)

    return at


def _solved(program: Program, images: Sequence[Image], size: tuple[int, int], facts: SizeFacts) -> Solution:
    return solve(program, lambda known: walk_inputs(program, images, size, known), facts)


def _rewritten(
    program: Program, found: Solution, size: tuple[tuple[int, int], tuple[int, int]], stretch: bool
) -> Resized:
    made, notes = resamples(program, found, stretch)
    entries = []
    for name, resample in made.items():
        names = [name, *(alias for alias, canonical in program.tied.items() if canonical == name)]
        entries += [TensorLift(item, item, resample=resample) for item in names]
    lift = Lift(tuple(entries))
    tensors = lift.apply(program.tensors)
    graphs, edits = {}, 0
    for mode in MODES:
        graph, walk = copy_graph(program.graphs[mode]), found.walks[mode]
        nodes = {node.name: node for node in graph.nodes}
        for (name, path), (before, after) in walk.edits.items():
            set_literal(nodes[name], path, before, after)
        for name, target in walk.retargets.items():
            nodes[name].target = target
        if walk.edits:
            drop_unread_sizes(graph)
        graphs[mode] = graph
        edits += len(walk.edits)
    example, shapes = _example(program, found)
    resized = program.replace(
        graphs=graphs,
        tensors={name: tensors[name] for name in program.tensors},
        example=example,
        signature=dataclasses.replace(program.signature, shapes=shapes),
    )
    for mode in MODES:
        propagate(resized, resized.graphs[mode], mode)
    (old, new), kinds = size, sorted({resample.kind for resample in made.values()})
    told = f"input {_text(old)} -> {_text(new)}: a network at another image size computes another function"
    many = "1 tensor follows" if len(entries) == 1 else f"{len(entries)} tensors follow"
    tables = [f"{many} the image ({', '.join(kinds)})"] if entries else []
    notes += _single_windows(program, found)
    moved = any(walk.retargets for walk in found.walks.values())
    moved |= any(owner[0] == "input" for owner, _ in found.facts.assigned)
    return Resized(resized, lift, size, edits, (told, *tables, *notes), moved)


def _single_windows(program: Program, found: Solution) -> list[str]:
    """Notes where one window covers the image at only one of the two sizes.

    Model classes shift windows only if there are several.
    """
    edits = found.walks["eval"].edits.items()
    odd = sorted({name for (name, _), (before, after) in edits if min(before, after) == 1})
    if not odd:
        return []
    node = next(node for node in program.graphs["eval"].nodes if node.name == odd[0])
    before, after = next(pair for (name, _), pair in edits if name == odd[0] and min(pair) == 1)
    more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
    return [
        f"{describe(node)}{more} cut the image into {before} along a side before and into {after} "
        "now; a model class that shifts windows only where there are several computes something else "
        "at this size; windows=scale keeps their number"
    ]


def _example(program: Program, found: Solution) -> tuple[Any, tuple[tuple[int, ...] | None, ...]]:
    walk = found.walks["eval"]
    leaves, spec = pytree.tree_flatten(program.example)
    made: list[Any] = []
    for leaf, value in zip(leaves, walk.inputs, strict=True):
        same = not isinstance(leaf, torch.Tensor) or not isinstance(value, SizedValue) or value.new == tuple(leaf.shape)
        made.append(leaf if same else resized_example(leaf, value.new))
    shapes = tuple(tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else None for leaf in made)
    return pytree.tree_unflatten(made, spec), shapes


def _ambiguous(program: Program, undecided: Sequence[Key]) -> str:
    chosen, name, _ = undecided[0]
    node = next(node for mode in MODES if mode == chosen for node in program.graphs[mode].nodes if node.name == name)
    more = f" (and {len(undecided) - 1} more)" if len(undecided) > 1 else ""
    return (
        f"grow-resolution: {call_text(node)}{more} cuts positions of the image into runs, and the "
        "graph does not show whether their size or their number stays; set windows=keep (their size) "
        "or windows=scale (their number)"
    )


# -- sizes that work -------------------------------------------------------------------------------------------------


def _nearest(program: Program, images: Sequence[Image], size: tuple[int, int], facts: SizeFacts) -> str:
    """The nearest sizes that work, in words: both sides together if the image and the wanted size are square."""
    old = images[0].size
    if old[0] == old[1] and size[0] == size[1]:
        near = _around(program, images, facts, size[0], lambda side: (side, side))
        return (
            f"the nearest sizes that work are {' and '.join(map(str, near))}" if near not in ([], [old[0]]) else _NONE
        )
    words = []
    for place, name in enumerate(("height", "width")):

        def at(side: int, place: int = place) -> tuple[int, int]:
            return (side, old[1]) if place == 0 else (old[0], side)

        near = _around(program, images, facts, size[place], at)
        if not near or near == [old[place]]:
            return _NONE
        words.append(f"{name} {' or '.join(map(str, near))}")
    return f"the nearest that work are {', '.join(words)}"


def _around(program: Program, images: Sequence[Image], facts: SizeFacts, wish: int, at: Any) -> list[int]:
    """The nearest side that works at or below `wish`, and the nearest one above."""
    found = []
    own = images[0].size
    if at(wish) != own and _works(program, images, at(wish), facts):
        return [wish]
    for sides in (range(wish - 1, max(0, wish - _FAR), -1), range(wish + 1, wish + _FAR)):
        found += _first(side for side in sides if at(side) == own or _works(program, images, at(side), facts))
    return sorted(found)


def working(program: Program, sizes: Sequence[tuple[int, int]], *, input: str | None = None) -> list[bool]:
    """Returns which of these heights and widths the network can take.

    Raises:
        TargetError: the network has no image, or nothing decides what stays where the image is cut into windows.
    """
    images = find_images(program, input)
    facts, undecided = structure(program, _inputs_at(program, images), False)
    if undecided:
        raise TargetError(_ambiguous(program, undecided))
    return [size == images[0].size or _works(program, images, size, facts) for size in sizes]


def _first(sides: Iterator[int]) -> list[int]:
    for side in sides:
        return [side]
    return []


def _works(program: Program, images: Sequence[Image], size: tuple[int, int], facts: SizeFacts) -> bool:
    with contextlib.suppress(SizeClash, Indivisible, TargetError):
        _solved(program, images, size, facts)
        return True
    return False


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def at_sizes(program: Program, sizes: Sequence[str], **options: Any) -> dict[str, Program]:
    """Returns the program at several sizes, to be trained in turns.

    Tensors that do not follow the image are the same objects in all programs, so one optimizer trains them at every
    size. If nothing in the graphs depends on the size (convolutions, norms, pooling over all positions), all sizes are
    one program, which takes images of any size: nothing is captured or compiled again.

    Args:
        program: the program.
        sizes: as option `to` of grow-resolution: `("160", "192x224")`.
        options: options of `progc.transforms.resolution.resize.resize`.

    Returns:
        A program per text in `sizes`.

    Raises:
        ProgcError: as for `resize`, for the first size that does not work.
    """
    made = {size: resize(program, size, **options) for size in sizes}
    if any(result.edits or result.moved or (result.lift and result.lift.tensors) for result in made.values()):
        return {size: result.program for size, result in made.items()}
    images = {image.index: image.dims for image in find_images(program, options.get("input"))}
    free = tuple(images.get(index, ()) for index in range(len(program.signature.shapes)))
    any_size = program.replace(signature=dataclasses.replace(program.signature, free_dims=free))
    return dict.fromkeys(sizes, any_size)
