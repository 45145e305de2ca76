"""Weight files that are accepted: formats, wrappers, prefixes, tied names, dtypes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from progc.errors import InputError
from progc.files.weights import load_weights, read_weights


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth", "w.weights"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_both_formats_with_and_without_wrapper_prefixes(tmp_path: Path, name: str, prefix: str) -> None:
    wanted = nn.Linear(3, 4)
    state = {prefix + key: value for key, value in wanted.state_dict().items()}
    (save_file if name == "w.safetensors" else torch.save)(state, tmp_path / name)
    model = nn.Linear(3, 4)
    load_weights(model, tmp_path / name)
    assert torch.equal(model.weight, wanted.weight) and torch.equal(model.bias, wanted.bias)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_a_training_checkpoint_is_unwrapped(tmp_path: Path, key: str) -> None:
    state = nn.Linear(3, 4).state_dict()
    content: dict[str, Any] = {key: state, "epoch": 3, "optimizer": {"step": 1}, "model_ema": {"ema": torch.ones(1)}}
    torch.save(content, tmp_path / "w.pt")
    assert set(read_weights(tmp_path / "w.pt")) == {"weight", "bias"}
    assert set(read_weights(tmp_path / "w.pt", ema=True)) == {"ema"}


def test_a_tied_name_may_be_missing_but_not_both(tmp_path: Path) -> None:
    state = {"embed.weight": torch.ones(6, 4), "head.bias": torch.zeros(6)}
    save_file(state, tmp_path / "w.safetensors")
    model = Tied()
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model.head.weight, torch.ones(6, 4)) and model.head.weight is model.embed.weight
    save_file({"head.bias": torch.zeros(6)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"2 missing \(embed.weight, head.weight\)"):
        load_weights(model, tmp_path / "w.safetensors")


def test_the_model_keeps_its_dtype(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(4, 3).half(), "bias": torch.ones(4).half()}, tmp_path / "w.safetensors")
    model = nn.Linear(3, 4)
    load_weights(model, tmp_path / "w.safetensors")
    assert model.weight.dtype == torch.float32 and model.weight.requires_grad and bool((model.weight == 1).all())
