"""What freezing saves, in numbers and words: a closed prefix costs what a graph cut by hand costs."""

from __future__ import annotations

import torch

import progc
from progc.analysis.costs.counting import count
from progc.ir.graphs import copy_graph, propagate
from progc.pipeline.manager import run
from progc.transforms.freezing import set_trainable, trainable
from progc.transforms.freezing.blocks import Blocks
from tests.transforms.freezing.networks import diffuser
from tests.zoo import captured


def test_a_closed_prefix_costs_what_a_graph_cut_by_hand_costs() -> None:
    """Nothing is left over for the pass to cut: below the frontier no gradient is computed and nothing is kept."""
    program = captured("own:einsum")[1]
    frozen = progc.apply(program, "freeze{prefix=2 stem=true measure=false}")
    (chain,) = program.chains
    graph = copy_graph(program.graphs["train"])
    (frontier,) = [node for node in graph.nodes if node.name == chain.carried["train"][2][0]]
    with graph.inserting_after(frontier):
        cut = graph.call_function(torch.ops.aten.detach.default, (frontier,))
    frontier.replace_all_uses_with(cut, delete_user_cb=lambda user: user is not cut)
    by_hand = program.replace(graphs={**program.graphs, "train": graph})
    propagate(by_hand, graph, "train")
    one, two, full = count(frozen), count(by_hand), count(program)
    assert one.backward_flops == two.backward_flops < 0.4 * full.backward_flops
    # Cut by hand, autograd records the blocks below before their results are thrown away: it keeps more, never less.
    assert one.activation_bytes <= two.activation_bytes and one.activation_bytes < 0.4 * full.activation_bytes
    assert one.forward_flops == full.forward_flops


def test_shapes_of_freezing_in_order_of_what_they_save() -> None:
    program = captured("timm:vit_tiny_patch16_224@64")[1]
    full = count(program)
    shares = {}
    for text in ("prefix=3 stem=true", "prefix=3", "level=1", "suffix=3"):
        now = count(progc.apply(program, f"freeze{{{text} measure=false}}"))
        shares[text] = now.backward_flops / full.backward_flops, now.activation_bytes / full.activation_bytes
    assert shares["prefix=3 stem=true"] < (0.27, 0.30) and shares["prefix=3 stem=true"][1] <= 0.30
    assert shares["level=1"][1] <= 0.80
    assert shares["prefix=3"] == shares["level=1"] == shares["suffix=3"], "place does not matter unless it is closed"


def test_the_report_is_data_and_words() -> None:
    program = diffuser()
    frozen, (said,) = run(program, "freeze{prefix=2 stem=true}")
    now, full = count(frozen), count(set_trainable(program, trainable(program)))
    for what, field in (("backward FLOPs", "backward_flops"), ("activation bytes", "activation_bytes")):
        assert said.counts[what] == getattr(now, field)
        assert said.counts[f"{what} with all trainable"] == getattr(full, field)
    assert said.counts["Adam bytes"] == 8 * sum(tensor.numel() for tensor in trainable(frozen).values())
    assert any(note.startswith("per step, compared with everything trainable: backward ") for note in said.notes)
    assert not any("warning" in note for note in said.notes)


def test_a_stem_that_trains_is_warned_of_with_its_price() -> None:
    program = diffuser()
    result, (said,) = run(program, "freeze{prefix=2}")
    (warning,) = [note for note in said.notes if note.startswith("warning: the stem trains (")]
    assert "stem=true freezes it" in warning
    closed = count(progc.apply(program, "freeze{prefix=2 stem=true measure=false}"))
    extra = count(result).backward_flops - closed.backward_flops
    assert 0 < extra and f"{extra / count(result).backward_flops:.0%}" in warning
    (quiet,) = run(program, "freeze{prefix=2 measure=false}")[1]
    assert any(note.startswith("warning") for note in quiet.notes)
    for text in ("freeze{level=1}", "freeze{train=patches}", "freeze{only=modulation}", "freeze{suffix=2}"):
        assert not any("warning" in note for note in run(program, text)[1][0].notes), text


def test_conditioning_alone_keeps_the_backward_alive() -> None:
    _, (said,) = run(diffuser(), "freeze{prefix=2 freeze=patches,positions}")
    assert any("the stem trains (time.0.weight" in note for note in said.notes)


def test_what_cannot_be_counted_is_said() -> None:
    class Asks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    program = progc.capture(Asks(), (torch.randn(2, 3),))
    graph = copy_graph(program.graphs["train"])
    first = next(node for node in graph.nodes if node.op == "call_function")
    with graph.inserting_after(first):
        graph.call_function(torch.ops.aten.item.default, (first,))
    broken = program.replace(graphs={**program.graphs, "train": graph})
    from progc.transforms.freezing.report import report

    said = report(broken, Blocks(program), measure=True)
    assert not said.counts and "savings were not counted: " in said.notes[0]
