"""Networks of our own at another size: what follows the image, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import progc
from progc.errors import PassOptionError, TargetError
from progc.ir.check import compare
from progc.ir.program import Program
from progc.lift.lift import Lift
from progc.lift.resampling import Resample
from progc.lift.revert import revert
from progc.pipeline.manager import run
from progc.transforms.resolution import at_sizes
from tests import zoo
from tests.command import in_process
from tests.transforms.resolution import nets


def captured(model: nn.Module, size: int = 16) -> Program:
    return progc.capture(zoo.perturb(model).eval(), (zoo.image(size),))


def same(program: Program, model: nn.Module) -> float:
    """Largest difference to a network that takes the tensors of `program`."""
    model.load_state_dict(program.state_dict())
    image = torch.randn(2, 3, *program.flat_example()[0].shape[-2:], generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return float((program.module().eval()(image) - model.eval()(image)).abs().max())


@pytest.mark.parametrize("size", [(24, 24), (8, 20), (32, 16)])
def test_decomposed_tables(size: tuple[int, int]) -> None:
    program = captured(nets.Axial())
    grown, (result,) = run(program, f"grow-resolution{{to={size[0]}x{size[1]}}}")
    side = (size[0] // 4, size[1] // 4)
    assert grown.tensors["row_table"].shape == (2 * side[0] - 1, 8)
    assert same(grown, nets.Axial(side)) < 1e-5
    assert result.lift is not None and len(result.lift.tensors) == (2 if size[1] == 16 else 4)


def test_tables_by_rows_columns_and_counts() -> None:
    program = captured(nets.Sums())
    grown = progc.apply(program, "grow-resolution{to=24x32}")
    assert same(grown, nets.Sums((6, 8))) < 1e-5
    table = program.tensors["table.weight"].detach().T.reshape(1, 8, 4, 4)
    expected = nn.functional.interpolate(table, size=(6, 8), mode="bicubic", antialias=True).reshape(8, 48).T
    assert torch.allclose(grown.tensors["table.weight"], expected)
    back = progc.apply(grown, "grow-resolution{to=16}")
    assert back.signature.shapes == program.signature.shapes


def test_windows_that_nothing_speaks_for_are_asked_about() -> None:
    program = captured(nets.Windows())
    with pytest.raises(TargetError, match="set windows=keep .* or windows=scale"):
        progc.apply(program, "grow-resolution{to=32}")
    kept = progc.apply(program, "grow-resolution{to=32 windows=keep}")
    assert same(kept, nets.Windows()) < 1e-5
    scaled = progc.apply(program, "grow-resolution{to=24 windows=scale}")
    assert any("36" in str(node.args) for node in scaled.graphs["eval"].nodes)  # windows of 6 x 6
    with pytest.raises(TargetError, match="cannot take 28x28: .* the nearest sizes that work are 24 and 32"):
        progc.apply(program, "grow-resolution{to=28 windows=keep}")


def test_a_weight_over_all_positions_is_refused() -> None:
    with pytest.raises(TargetError, match=r"linear.* cannot follow the image: .*weights are for 64"):
        progc.apply(captured(nets.Flattened()), "grow-resolution{to=32}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("to=big", "to=big: expected a size such as"),
        ("to=0", "to=0: expected a size such as"),
        ("to=24 input=y", "input=y: the network has no such input"),
        ("windows=keep", "to is missing"),
    ],
)
def test_bad_options(text: str, message: str) -> None:
    with pytest.raises(PassOptionError, match=message):
        progc.apply(captured(nets.Pyramid()), f"grow-resolution{{{text}}}")


def test_text_has_no_image() -> None:
    with pytest.raises(TargetError, match="no input is an image"):
        progc.apply(zoo.captured("transformers:gpt2")[1], "grow-resolution{to=24}")


def test_a_wrong_size_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.embed = torch.nn.Conv2d(3, 4, 4, 4)\n"
        "    def forward(self, x):\n        return self.embed(x).mean((2, 3))\n"
        "def example_inputs():\n    return (torch.randn(2, 3, 16, 16),)\n"
    )
    command = in_process(capsys)
    source = f"{tmp_path / 'net.py'}:Net"
    done = command("apply", source, "--pipeline", "grow-resolution{to=18}", "--out", tmp_path / "out")
    assert done.code == 2 and "the nearest sizes that work are 16 and 20" in done.err
    assert not (tmp_path / "out").exists()
    done = command("apply", source, "--pipeline", "grow-resolution{to=20}")
    assert done.code == 0 and "input 16x16 -> 20x20" in done.out


def test_averaged_copies_and_moments_follow() -> None:
    program = captured(nets.Sums())
    _, (result,) = run(program, "grow-resolution{to=24}")
    lift = result.lift
    assert lift is not None and Lift.from_json(lift.to_json()) == lift
    tensors = {name: tensor.detach() for name, tensor in program.tensors.items()}
    twice = lift.apply({name: 2 * tensor for name, tensor in tensors.items() if tensor.is_floating_point()} | {
        "places": tensors["places"]
    })  # fmt: skip
    once = lift.apply(tensors)
    assert torch.allclose(twice["table.weight"], 2 * once["table.weight"])
    assert twice["head.bias"].shape == (5,)
    first = torch.randn(16, 8)
    state = {"table.weight": {"step": torch.tensor(3.0), "exp_avg": first, "exp_avg_sq": first.square()}}
    grown = lift.moments(state)["table.weight"]
    assert grown["exp_avg"].shape == grown["exp_avg_sq"].shape == (36, 8) and float(grown["step"]) == 3
    assert torch.equal(grown["exp_avg"], lift.apply(tensors | {"table.weight": first})["table.weight"])
    assert float(grown["exp_avg_sq"].min()) >= float(first.square().min()) > 0
    with pytest.raises(progc.errors.InputError, match="was grown with resample"):
        revert(lift, once)


def test_deferred_tensors_follow_too() -> None:
    program = captured(nets.Sums())
    early = progc.apply(program, "grow-resolution{to=24}")
    late = progc.apply(program.deferred, "grow-resolution{to=24}").complete()
    assert all(torch.equal(late.tensors[name], tensor) for name, tensor in early.tensors.items())


def test_sizes_share_what_does_not_follow_the_image() -> None:
    programs = at_sizes(captured(nets.Sums()), ["16", "24", "16x32"])
    small, large, wide = programs.values()
    assert small.tensors["embed.weight"] is large.tensors["embed.weight"] is wide.tensors["embed.weight"]
    assert small.tensors["table.weight"].shape != large.tensors["table.weight"].shape


def test_convolutions_are_one_program_at_every_size() -> None:
    model = zoo.perturb(stack()).eval()
    program = progc.capture(model, (zoo.image(16),))
    programs = at_sizes(program, ["24", "32x40"])
    assert len(set(map(id, programs.values()))) == 1
    module = programs["24"].module().eval()
    for size in (16, 24, 40):
        image = zoo.image(size)
        assert torch.allclose(module(image), model(image), atol=1e-5)
    with pytest.raises(progc.errors.InputError, match=r"expected \[batch, 3, any, any\]"):
        module(zoo.image(16, channels=4))


def stack() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


def test_a_size_taken_from_another_value_follows_it() -> None:
    program = captured(nets.Pyramid())
    grown = progc.apply(program, "grow-resolution{to=24x32}")
    assert same(grown, nets.Pyramid()) < 1e-5
    assert at_sizes(program, ["24"])["24"].signature.free_dims == ()


def test_a_resample_that_is_not_square_to_its_tensor_fails() -> None:
    from progc.lift.extents import Leaf

    resample = Resample("grid", ((Leaf(4, 6),), (Leaf(3, 3),)))
    assert resample.apply(torch.randn(4, 3)).shape == resample.shape == (6, 3)
    with pytest.raises(RuntimeError):
        resample.apply(torch.randn(5, 3))


def test_the_input_program_stays() -> None:
    program = captured(nets.Axial())
    before = copy.deepcopy(program.state_dict())
    progc.apply(program, "grow-resolution{to=24}")
    assert all(torch.equal(value, before[name]) for name, value in program.state_dict().items())


def test_a_mean_written_as_a_sum_follows() -> None:
    program = captured(nets.Sum())
    assert same(progc.apply(program, "grow-resolution{to=24x32}"), nets.Sum()) < 1e-5


def test_positions_compared_with_a_size_are_refused() -> None:
    with pytest.raises(TargetError, match="cannot follow the image: positions are counted, and 4 may be their number"):
        progc.apply(captured(nets.Counted()), "grow-resolution{to=32}")


def test_it_commutes_with_lossless_growth() -> None:
    program = captured(nets.Sums())
    resized = progc.apply(program, "grow-resolution{to=24}")
    for text in ("grow-resolution{to=24},grow-width{width=*2}", "grow-width{width=*2},grow-resolution{to=24}"):
        grown = progc.apply(program, text)
        assert grown.tensors["embed.weight"].shape[0] == 16
        assert compare(resized, grown, seed=0).max_rel < 1e-6, text


def test_frozen_tables_stay_frozen() -> None:
    model = nets.Sums()
    model.rows.requires_grad_(False)
    grown = progc.apply(captured(model), "grow-resolution{to=24}")
    assert not grown.tensors["rows"].requires_grad and grown.tensors["columns"].requires_grad
