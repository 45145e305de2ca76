"""Which sites analysis finds, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import progc
from progc.errors import TargetError
from progc.ir.program import Program
from progc.transforms.sid.sites import Site, choose_site, find_sites
from tests import zoo
from tests.transforms.sid import nets


def captured(model: nn.Module, *args: torch.Tensor) -> Program:
    return progc.capture(zoo.perturb(model), args)


def adaptive() -> Program:
    return captured(nets.Adaptive(), torch.randn(2, 5, 6), torch.tensor([3, 70]), torch.tensor([1, 4]))


def crossed(project: bool = True) -> Program:
    return captured(nets.Crossed(project), torch.randn(2, 4, 6), torch.randn(2, 3, 5))


def shown(program: Program) -> dict[str, tuple[str, ...]]:
    """Sites with the parameters that take the row over."""
    return {site.name: tuple(name for name, _ in site.fold.targets) for site in find_sites(program)}


def values(site: Site) -> list[str]:
    return [place.nodes["eval"] for place in site.places]


def test_conditioning_is_the_sum_of_embeddings() -> None:
    program = adaptive()
    site = choose_site(program, "auto")
    assert site.name == "conditioning" and site.width == 8
    (name,) = values(site)
    node = next(node for node in program.graphs["eval"].nodes if node.name == name)
    assert str(node.target) == "aten.add.Tensor" and len(node.users) == 2  # one activation per block
    assert site.fold.targets == (("time.2.bias", 0),)
    assert shown(program) == {"conditioning": ("time.2.bias",), "tokens": ("enter.bias",)}


def test_blocks_with_embedders_of_their_own_share_a_row() -> None:
    """The first block's embedder serves the last layer too: its bias takes the row over for both."""
    _, program = zoo.captured("diffusers:dit")
    site = choose_site(program, "conditioning")
    assert len(site.places) == 3 and site.width == 32
    blocks = [f"transformer_blocks.{i}.norm1.emb.timestep_embedder.linear_2.bias" for i in range(2)]
    assert [name for name, _ in site.fold.targets] == blocks


def test_a_time_embedding_and_a_context() -> None:
    _, program = zoo.captured("diffusers:unet")
    assert shown(program) == {
        "conditioning": ("time_embedding.linear_2.bias",),
        "tokens": ("down_blocks.0.attentions.0.proj_in.bias",),
        "context": (),
    }
    assert values(choose_site(program, "context")) == ["encoder_hidden_states"]


@pytest.mark.parametrize(
    ("name", "site", "parameter"),
    [
        ("timm:vit_tiny_patch16_224@64", "tokens", "pos_embed"),
        ("timm:resnet18@64", "features", "bn1.bias"),  # before the activation and the pooling
        ("timm:convnext_atto@64", "features", "stem.1.bias"),
        ("timm:mobilenetv3_small_100@64", "features", "blocks.1.0.bn3.bias"),
        ("transformers:gpt2", "tokens", "transformer.wpe.weight"),  # not the tied table
        ("own:conv", "features", "stem_norm.bias"),
        ("own:flat", "features", "stem_b"),
    ],
)
def test_without_conditioning_it_is_the_stream(name: str, site: str, parameter: str) -> None:
    _, program = zoo.captured(name)
    assert shown(program) == {site: (parameter,)}


def test_a_gate_made_of_the_image_is_no_conditioning() -> None:
    assert shown(captured(nets.Gated(), torch.randn(2, 3, 8, 8))) == {"features": ("stem.bias",)}


def test_a_projected_context_can_be_folded_and_an_input_cannot() -> None:
    assert shown(crossed())["context"] == ("project.bias",)
    (site,) = (site for site in find_sites(crossed(project=False)) if site.name == "context")
    assert not site.fold.targets and "context is an input" in site.fold.reason


def test_modules_and_nodes_are_sites_by_name() -> None:
    program = adaptive()
    assert choose_site(program, "blocks.1.modulate").fold.targets == (("blocks.1.modulate.bias", 0),)
    assert choose_site(program, "blocks.1.modulate").width == 24
    assert values(choose_site(program, "gelu")) == ["gelu"]
    assert not choose_site(program, "gelu").fold.targets


@pytest.mark.parametrize("name", ["context", "enter.weight", "time", "sym_size_int", "nonsense"])
def test_a_site_that_is_none_is_refused_with_those_found(name: str) -> None:
    if name == "time":  # the input and the module have one name: the input has no channels
        name = "label"
    with pytest.raises(TargetError) as refused:
        choose_site(captured(nets.Gated(), torch.randn(2, 3, 8, 8)), name)
    message = str(refused.value)
    assert f"site={name}: the network has no such site" in message and "\n" not in message
    assert "sites found: features" in message
    assert refused.value.exit_code == 2


def test_a_close_name_is_suggested() -> None:
    with pytest.raises(TargetError, match=r"site=blocks.1.modulat: the network has no such site.*blocks.1.modulate"):
        choose_site(adaptive(), "blocks.1.modulat")


def test_nothing_to_be_found() -> None:
    class Table(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    with pytest.raises(TargetError, match="found no site for a stage identifier"):
        choose_site(captured(Table(), torch.randn(3)), "auto")


def test_memory_that_is_written_to_through_a_view_is_no_site() -> None:
    """The value that is read in the end is the stem's, changed through its view."""
    program = captured(nets.Viewed(), torch.randn(3, 6))
    with pytest.raises(TargetError, match="site=view: the network has no such site"):
        choose_site(program, "view")
    assert "view" in {node.name for node in program.graphs["eval"].nodes}
