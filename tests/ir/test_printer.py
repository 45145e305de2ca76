"""The printer's text: notation, golden files, equal bytes in every process."""

from __future__ import annotations

import operator
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import progc
from progc.ir.notation import argument_text, meta_text, target_text
from progc.ir.printer import print_graph
from progc.ir.program import PassRecord, TensorMeta
from tests import golden_files, nets


def conv_net() -> progc.Program:
    return progc.capture(nets.ConvNet(), (torch.zeros(2, 3, 8, 8),))


def test_short_text_of_a_small_network(golden: Callable[[str, str], None]) -> None:
    golden("printer/conv_net_eval.txt", print_graph(conv_net()))


def test_full_text_of_a_small_network(golden: Callable[[str, str], None]) -> None:
    record = PassRecord("grow-depth{to=4}", False, "", "", {})
    golden("printer/conv_net_train_full.txt", print_graph(conv_net().replace(history=(record,)), "train", full=True))


def test_structured_outputs_and_tied_weights(golden: Callable[[str, str], None]) -> None:
    structured = progc.capture(nets.StructuredOutput(), (torch.zeros(2, 6),))
    tied = progc.capture(nets.TiedWeights(), (torch.zeros(2, 5, dtype=torch.int64),))
    golden("printer/structured_and_tied.txt", print_graph(structured) + "\n" + print_graph(tied, full=True))


SCRIPT = """
import sys, torch, progc
sys.path.insert(0, sys.argv[1])
from tests import nets
from progc.ir.printer import print_graph
program = progc.capture(nets.EinsumTransformer(), (torch.zeros(2, 6, 10),))
sys.stdout.write(print_graph(program, "train", full=True) + print_graph(program))
"""


@pytest.mark.slow
def test_two_processes_print_equal_bytes() -> None:
    program = progc.capture(nets.EinsumTransformer(), (torch.zeros(2, 6, 10),))
    first = print_graph(program, "train", full=True) + print_graph(program)
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[2])]
    second = subprocess.run(command, capture_output=True, check=True).stdout
    assert second.decode() == first
    assert "einsum" in first and "0x" not in first


@pytest.mark.parametrize(
    ("meta", "text"),
    [
        (TensorMeta((2, 197, 192), torch.float32), "f32[2, 197, 192]"),
        (TensorMeta((), torch.int64), "i64[]"),
        (TensorMeta((1,), torch.bfloat16), "bf16[1]"),
        (TensorMeta((1,), torch.float8_e5m2), "float8_e5m2[1]"),
        ((TensorMeta((1,), torch.bool), 3), "(bool[1], int 3)"),
        (None, "none"),
    ],
)
def test_notation_of_values(meta: object, text: str) -> None:
    assert meta_text(meta) == text


def test_notation_of_operations_and_arguments() -> None:
    assert target_text(torch.ops.aten.add.Tensor) == "aten.add.Tensor"
    assert target_text(torch.ops.aten.add.Tensor, full=False) == "add"
    assert target_text(operator.getitem) == "operator.getitem"
    assert target_text(torch.sym_max) == "torch.sym_max"
    argument = [1, (2,), (3, None), torch.float16, 0.5, slice(0, 4, None), {"a": True}]
    assert argument_text(argument) == "[1, [2,], [3, None], f16, 0.5, 0:4:None, {a: True}]"


def test_every_golden_file_is_used() -> None:
    sources = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    for path in golden_files.FOLDER.rglob("*"):
        name = path.relative_to(golden_files.FOLDER).as_posix()
        assert path.is_dir() or f'"{name}"' in sources, f"no test reads {name}"
