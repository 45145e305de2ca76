"""Finds chains by the module stack: containers with numbered children."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import fx

from progc.analysis.chains.assemble import assemble
from progc.analysis.chains.canonical import View, canonical_form
from progc.analysis.chains.closing import MISFIT, nested_calls, odd_entry, residual, stretch
from progc.analysis.chains.dense import dense_chain
from progc.analysis.chains.filling import completed
from progc.analysis.chains.names import Container, block_tensors, plain_path, split_number
from progc.analysis.chains.runs import Links, Run, RunPiece, find_runs, link, turned
from progc.analysis.chains.table import Chain, Refused
from progc.ir.program import MODES, Mode, Program

LONELY = "a single block"


@dataclasses.dataclass(frozen=True)
class Modules:
    """The modules in the module stacks of both graphs.

    Attributes:
        kinds: module path to class name.
        nodes: per mode, path of a numbered module to its call nodes in graph order.
        containers: container to the numbers of its children, in ascending order.
    """

    kinds: Mapping[str, str]
    nodes: Mapping[Mode, Mapping[str, Sequence[fx.Node]]]
    containers: Mapping[Container, Sequence[int]]


def read_stacks(views: Mapping[Mode, View]) -> Modules:
    """Collects module paths, classes and numbered modules from `nn_module_stack`."""
    kinds: dict[str, str] = {}
    nodes: dict[Mode, dict[str, list[fx.Node]]] = {}
    numbered: dict[str, bool] = {}
    for mode in MODES:
        nodes[mode] = {}
        for node in views[mode].nodes:
            if node.op != "call_function":
                continue
            for raw, kind in node.meta.get("nn_module_stack", {}).values():
                path = plain_path(str(raw))
                if not path:
                    continue
                if path not in numbered:
                    kinds[path] = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
                    numbered[path] = split_number(path) is not None
                if numbered[path]:
                    nodes[mode].setdefault(path, []).append(node)
    numbers: dict[Container, set[int]] = {}
    for path, is_numbered in numbered.items():
        split = split_number(path) if is_numbered else None
        if split is not None:
            numbers.setdefault(split[0], set()).add(split[1])
    # Children that only hold tensors or sizes do not appear in a stack, but count as siblings.
    for name in next(iter(views.values())).program.tensors:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            split = split_number(".".join(parts[:cut]))
            if split is not None and split[0] in numbers:
                numbers[split[0]].add(split[1])
    return Modules(kinds, nodes, {container: sorted(found) for container, found in numbers.items()})


def chains_by_modules(views: Mapping[Mode, View]) -> tuple[list[Chain], list[Chain], list[Refused]]:
    """Finds chains whose blocks are numbered modules, starting with the innermost containers.

    Returns:
        Chains; runs of single layers (`Sequential(Linear, ReLU, Linear, ReLU)`), which are chains in a plain network
        and only stems or heads in any other; refusals.
    """
    program = views["eval"].program
    modules = read_stacks(views)
    search = _ModuleSearch(program, views, modules)
    for container in sorted(modules.containers, key=lambda c: -len(c.path(0).split("."))):
        search.visit(container)
    return search.result()


class _ModuleSearch:
    def __init__(self, program: Program, views: Mapping[Mode, View], modules: Modules) -> None:
        self.program = program
        self.views = views
        self.modules = modules
        self.chains: list[Chain] = []
        self.refused: list[Refused] = []
        self.weak: set[str] = set()
        self.layers: set[str] = set()
        self.parents = {path[:cut] for path in modules.kinds for cut, sign in enumerate(path) if sign == "."}

    def visit(self, container: Container) -> None:
        """Decides one container."""
        numbers = self.modules.containers[container]
        pieces = [piece for number in numbers if (piece := self.piece(container, number)) is not None]
        if not pieces:
            return
        dense = dense_chain(self.views, container, numbers, pieces)
        if dense is not None:
            self.accept(dense)
            return
        links: list[Links | str] = []
        for one, two in zip(pieces, pieces[1:], strict=False):
            if one.index + 1 != two.index:
                links.append(f"{container.path(one.index + 1)} computes nothing")
            else:
                links.append(link(one, two))
        runs = [run for run in find_runs(pieces, links) if self.is_series(container, pieces, run)]
        runs = [run if self.composite(pieces[run.start]) else turned(pieces, links, run) for run in runs]
        taken = {k for run in runs for k in range(run.start, run.stop)}
        runs += self.one_period(pieces, links, taken)
        taken = {k for run in runs for k in range(run.start, run.stop)}
        reasons: list[Refused] = []
        for k, piece in enumerate(pieces):
            if k in taken or not self.composite(piece):
                continue
            answer = self.single(container, pieces, links, k, taken)
            if isinstance(answer, Run):
                runs.append(answer)
            elif not self.is_stage(piece.label) and not (container.prefix and ", not by " in answer):
                reasons.append(Refused(piece.label, answer))
        self.tell(reasons, bool(runs))
        for run in sorted(runs, key=lambda run: run.start):
            chain = assemble(container, numbers, pieces, run, alone=len(runs) == 1)
            form = pieces[run.start].forms["eval"]
            if len(chain.blocks) == 1 and not residual(form, run.tails["eval"][0], run.heads["eval"][0][0]):
                self.weak.add(chain.name)
            if not any(self.composite(piece) for piece in pieces[run.start : run.stop]):
                self.layers.add(chain.name)
            self.accept(chain)

    def tell(self, reasons: list[Refused], beside_runs: bool) -> None:
        """Keeps the refusals of a container that add information.

        A module that changes the width is reported if its siblings are blocks of a chain. Modules inside a refused
        module are reported only if the refused module has no such siblings.
        """
        for one in reasons:
            inner = [old for old in self.refused if old.name.startswith(one.name + ".")]
            if beside_runs:
                self.refused = [old for old in self.refused if old not in inner]
            if beside_runs or not (inner or one.reason.startswith((MISFIT, LONELY))):
                self.refused.append(one)

    def piece(self, container: Container, number: int) -> RunPiece | None:
        """Returns the numbered module as a candidate block; None if a graph has no nodes of it."""
        path = container.path(number)
        tensors, patterns = block_tensors(self.program, path, number, container.stem)
        local = dict(zip(tensors, patterns, strict=True))
        forms = {}
        for mode in MODES:
            view = self.views[mode]
            nodes = completed(view, self.modules.nodes[mode].get(path, ()))
            if not any(node not in view.hidden for node in nodes):
                return None
            form = canonical_form(view, nodes, local.get)
            if nested_calls(view, form):
                self.refused.append(Refused(path, "it is called more than once"))
                return None
            forms[mode] = form
        return RunPiece(path, number, self.modules.kinds.get(path, ""), tensors, patterns, forms)

    def composite(self, piece: RunPiece) -> bool:
        """Returns whether the block is a module with submodules."""
        return piece.label in self.parents

    def is_series(self, container: Container, pieces: Sequence[RunPiece], run: Run) -> bool:
        """Returns whether a run is a series: names such as `conv1, conv2` are roles unless the blocks are residual."""
        if not container.prefix:
            return True
        period = [pieces[k].forms["eval"] for k in range(run.start, run.start + run.period)]
        return run.period == 1 and all(
            residual(period[0], place, slot)
            for place, slot in zip(run.tails["eval"], run.heads["eval"][0], strict=True)
        )

    def one_period(self, pieces: Sequence[RunPiece], links: Sequence[Links | str], taken: set[int]) -> list[Run]:
        """Finds pairs such as (plain, shifted) that occur once: same class, same parameters, different graph."""
        runs: list[Run] = []
        k = 0
        while k + 1 < len(pieces):
            one, two = pieces[k], pieces[k + 1]
            if {k, k + 1} & taken or not self.twins(one, two):
                k += 1
                continue
            run = stretch(pieces, links, k, k + 2)
            if isinstance(run, str):
                k += 1
                continue
            runs.append(run)
            k += 2
        return runs

    def twins(self, one: RunPiece, two: RunPiece) -> bool:
        """Returns whether two blocks have the same class and parameters, and only one of them shifts windows."""
        if one.kind != two.kind or not self.composite(one) or one.isomorphic(two):
            return False
        shifts = [any(what == "window shift" for what, _ in piece.forms["eval"].soft) for piece in (one, two)]
        return shifts[0] != shifts[1] and self.parameters(one) == self.parameters(two)

    def parameters(self, piece: RunPiece) -> dict[str, tuple[int, ...]]:
        """Maps the pattern of each parameter of the block to its shape."""
        tensors = self.program.tensors
        return {
            pattern: tuple(tensors[name].shape)
            for name, pattern in zip(piece.tensors, piece.patterns, strict=True)
            if self.program.specs[name].kind == "parameter"
        }

    def single(
        self, container: Container, pieces: Sequence[RunPiece], links: Sequence[Links | str], k: int, taken: set[int]
    ) -> Run | str:
        """Returns a block as a chain of one, or the reason why it is not one; `taken` are the pieces in a run."""
        piece = pieces[k]
        for j, neighbour in ((k - 1, k - 1), (k, k + 1)):
            if not 0 <= neighbour < len(pieces):
                continue
            step = links[j]
            if pieces[neighbour].isomorphic(piece):
                return step if isinstance(step, str) else "its neighbours read different values from outside"
            if isinstance(step, str) and neighbour < k and "also read" in step:
                return step
        run = stretch(pieces, links, k, k + 1)
        if isinstance(run, str):
            return run
        for j, neighbour in ((k - 1, k - 1), (k, k + 1)):
            if neighbour in taken and not isinstance(links[j], str):
                return f"its graph differs from that of {pieces[neighbour].label}, which has the same shapes"
        form = piece.forms["eval"]
        straight = residual(form, run.tails["eval"][0], run.heads["eval"][0][0])
        if not straight and (container.prefix or len(pieces) < 2 or len({other.kind for other in pieces}) > 1):
            return f"{LONELY} without a residual path and without siblings of its class"
        if self.is_stage(piece.label) if straight else self.holds_blocks(piece.label):
            return "it is a stage: it contains numbered blocks"
        return odd_entry(self.views["eval"], form, form.slots[run.heads["eval"][0][0]]) or run

    def is_stage(self, path: str) -> bool:
        """Returns whether a module contains a chain of several blocks or of one residual block."""
        return any(
            block.label.startswith(path + ".") and chain.name not in self.weak
            for chain in self.chains
            for block in chain.blocks
        )

    def holds_blocks(self, path: str) -> bool:
        """Returns whether a module contains a chain, or several numbered modules of one class with submodules."""
        if any(block.label.startswith(path + ".") for chain in self.chains for block in chain.blocks):
            return True
        for container, numbers in self.modules.containers.items():
            if container.prefix or not container.stem.startswith(path + "."):
                continue
            paths = [container.path(number) for number in numbers]
            kinds = [self.modules.kinds.get(child, "") for child in paths if child in self.parents]
            if len(kinds) > len(set(kinds)):
                return True
        return False

    def accept(self, chain: Chain) -> None:
        """Adds a chain and removes the chains and refusals inside its blocks."""
        roots = tuple(block.label + "." for block in chain.blocks)
        self.chains = [old for old in self.chains if not old.blocks[0].label.startswith(roots)]
        self.refused = [old for old in self.refused if not (old.name + ".").startswith(roots)]
        self.chains.append(chain)

    def result(self) -> tuple[list[Chain], list[Chain], list[Refused]]:
        """Returns chains, runs of single layers, and refusals."""
        plain = [chain for chain in self.chains if chain.name in self.layers]
        return [chain for chain in self.chains if chain.name not in self.layers], plain, self.refused
