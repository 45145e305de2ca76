"""Finds the role of each parameter by analysis, never by its name: attention, MLP, normalisation, modulation, ...

A parameter may have several kinds (the bias of an attention projection is of `attention` and of `biases`) or none (the
factor of a layer scale).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from progc.analysis.axes import axes_of
from progc.analysis.axes import dims as D
from progc.analysis.chains import chains_of
from progc.ir.operations import op_name
from progc.ir.program import Program
from progc.transforms.freezing.blocks import Blocks
from progc.transforms.freezing.conditioning import modulation, streams
from progc.transforms.freezing.flow import Affine, affine, bias_of, nearest, weights_of

KINDS = ("attention", "mlp", "convolutions", "norms", "modulation", "embeddings", "biases", "head")


class Kinds:
    """Kind to canonical names of parameters.

    Attributes:
        found: every kind of `KINDS`:
            attention: parameters that make or read heads: projections, their biases, relative position tables.
            mlp: contractions that make or read a hidden width inside one block, with their biases.
            convolutions: kernels and their biases.
            norms: gain and shift of normalisations, also of those written out as products and means.
            modulation: parameters that turn a conditioning vector into scales, shifts and gates.
            embeddings: embedding tables, and parameters before the first block.
            biases: parameters that are added to the result of a contraction or a normalisation.
            head: parameters after the last block.
    """

    def __init__(self, program: Program, blocks: Blocks) -> None:
        self.program, self.blocks = program, blocks
        self._nodes = [node for node in program.graphs["train"].nodes if node.op == "call_function"]
        self._affines = [found for node in self._nodes if (found := affine(node)) is not None]
        norms = set(_names(self._affines))
        self.found: dict[str, frozenset[str]] = {kind: frozenset() for kind in KINDS}
        self.found["norms"] = frozenset(norms)
        self.found["modulation"] = modulation(program) - norms
        self.found["biases"] = self._biases()
        self.found["attention"] = self._with_biases(self._heads() - norms)
        tables = {name for node in self._nodes if op_name(node).startswith("embedding") for name in weights_of(node)}
        taken = norms | tables | self.found["attention"] | self.found["modulation"]
        self.found["mlp"] = self._with_biases(self._hidden() - taken)
        self.found["convolutions"] = self._with_biases(self._kernels())
        self.found["embeddings"] = frozenset(tables | (blocks.stem - norms))
        self.found["head"] = blocks.behind if blocks.units else self._last()

    def _biases(self) -> frozenset[str]:
        contracted = {name for node in self._nodes for name in bias_of(node)}
        return frozenset(contracted | {norm.shift for norm in self._affines if norm.shift is not None})

    def _with_biases(self, weights: Iterable[str]) -> frozenset[str]:
        """These weights and the biases that are added where they are contracted."""
        own = set(weights)
        for node in self._nodes:
            if own & set(weights_of(node)):
                own.update(bias_of(node))
        return frozenset(own)

    def _heads(self) -> set[str]:
        """Parameters with a dim of heads or of channels of a head, unless that is what flows from block to block."""
        axes = axes_of(self.program)
        streams = {
            atom
            for chain in chains_of(self.program)
            for name in chain.carried["train"][0]
            for dim in getattr(axes.values.get(("train", name)), "dims", ())
            for atom in D.leaves(D.resolve(dim))
        }
        found: set[str] = set()
        for axis in axes.axes:
            if axis.meaning in ("heads", "head dim") and axis.atom not in streams:
                found.update(span.tensor for span in axis.spans)
        return found & {name for name, _ in self.program.parameters()}

    def _hidden(self) -> set[str]:
        """Weights at both ends of a hidden width that stays inside one block and is computed from the stream."""
        found: set[str] = set()
        stream = set().union(*(nodes for _, nodes in streams(self.program)))
        aside = {name for node in self._nodes if stream and node not in stream for name in weights_of(node)}
        scopes = [unit.parameters for unit in self.blocks.units] or [
            frozenset(name for name, _ in self.program.parameters())
        ]
        for axis in axes_of(self.program).axes:
            spans = [span for span in axis.spans if self.program.specs[span.tensor].kind == "parameter"]
            names = {span.tensor for span in spans}
            sides = {side for span in spans for side in span.sides}
            if axis.meaning == "hidden width" and sides == {"producer", "consumer"}:
                if not names & aside and any(names <= scope for scope in scopes):
                    found |= {name for name in names if len(self.program.tensors[name].shape) > 1}
        return found

    def _kernels(self) -> set[str]:
        return {name for node in self._nodes if "conv" in op_name(node) for name in weights_of(node)}

    def _last(self) -> frozenset[str]:
        """The contractions whose result is an output, in a network without blocks."""
        output = next(node for node in reversed(self.program.graphs["train"].nodes) if node.op == "output")
        return self._with_biases(nearest(output))


def _names(affines: Iterable[Affine]) -> Iterator[str]:
    for norm in affines:
        yield from (name for name in (norm.gain, norm.shift) if name is not None)
