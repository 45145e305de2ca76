"""Folders of model libraries: what `from_pretrained` reads back, of runs whose source is a model of the library."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import progc.models.saving
from progc.errors import CheckError, InputError
from progc.models.opening import open_source
from progc.models.saving import check_folder, save_folder
from progc.runs.exporting.export import Request, export
from progc.runs.exporting.own_class import OwnClass
from progc.runs.trained import TrainedNetwork
from tests.stored_runs import finished_run

DENOISER = {
    "_class_name": "DiTTransformer2DModel", "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 4,
    "in_channels": 4, "out_channels": 8, "sample_size": 4, "patch_size": 2, "num_embeds_ada_norm": 5,
}  # fmt: skip
LANGUAGE = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 8, "n_layer": 2, "n_head": 2,
    "vocab_size": 19, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    yield


def exported(run: Path, **options: Any) -> Path:
    request = Request.make(TrainedNetwork.open(run), form="folder", **options)
    return Path(export(request, phase=phase, note=lambda text: None)["path"])


def config(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_a_denoiser_of_diffusers(tmp_path: Path) -> None:
    import diffusers

    source = f"diffusers:{config(tmp_path / 'source', DENOISER)}"
    last = finished_run(tmp_path / "run", source, sid=True, resolutions="none")
    folder = exported(tmp_path / "run")
    assert folder == tmp_path / "run" / "export"
    model = diffusers.DiTTransformer2DModel.from_pretrained(folder, local_files_only=True).eval()
    x, t, c = torch.randn(3, 4, 4, 4), torch.tensor([3, 500, 999]), torch.tensor([0, 4, 2])
    module = last.module().eval()
    call = {"hidden_states": x, "timestep": t, "class_labels": c}
    found = model(**call).sample
    assert (found - module(**call, stage=torch.full((3,), 1)).sample).abs().max() < 1e-5
    assert (found - module(**call, stage=torch.full((3,), 0)).sample).abs().max() > 1e-3
    assert open_source(f"diffusers:{folder}").trained == str(folder)


def test_a_language_model_of_transformers(tmp_path: Path) -> None:
    import transformers

    source = f"transformers:{config(tmp_path / 'source', LANGUAGE)}"
    last = finished_run(tmp_path / "run", source)
    model = transformers.GPT2LMHeadModel.from_pretrained(exported(tmp_path / "run"), local_files_only=True)
    assert model.config.use_cache is True  # progc turns it off for training
    ids = torch.randint(0, 19, (3, 16))
    expected = last.module().double().eval()(input_ids=ids).logits
    assert (model.double().eval()(input_ids=ids, use_cache=False).logits - expected).abs().max() < 1e-9


def test_the_cache_stays_off_if_the_source_turns_it_off(tmp_path: Path) -> None:
    source = open_source(f"transformers:{config(tmp_path / 'source', {**LANGUAGE, 'use_cache': False})}")
    (tmp_path / "out").mkdir()
    save_folder(source.build(), tmp_path / "out", source)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["use_cache"] is False


USERS = """
import transformers

CONFIG = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)

def build():
    return transformers.BertModel(CONFIG)

class Own(transformers.BertModel):
    def __init__(self):
        super().__init__(CONFIG)
"""


def test_a_file_may_build_a_model_of_the_library_itself_but_not_a_class_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(USERS)
    check_folder(open_source(f"{tmp_path / 'net.py'}:Own"))  # known only once it is built
    for name, fits in (("build", True), ("Own", False)):
        source = open_source(f"{tmp_path / 'net.py'}:{name}")
        folder = tmp_path / name
        folder.mkdir()
        if fits:
            save_folder(source.build(), folder, source)
            assert (folder / "config.json").is_file()
            continue
        with pytest.raises(InputError, match=r"Own of .* has no folder format, only models of diffusers and transform"):
            save_folder(source.build(), folder, source)


def test_libraries_without_folders_are_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_run(tmp_path / "run", "torchvision:squeezenet1_1", resolutions="64,224")
    monkeypatch.setattr(TrainedNetwork, "program", lambda *args, **more: pytest.fail("built"))
    with pytest.raises(InputError, match=r"torchvision:squeezenet1_1: torchvision has no folder format, only models"):
        exported(tmp_path / "run")


def test_a_library_that_loses_a_weight_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = progc.models.saving.adapter_of("transformers")
    real = adapter.save

    def losing(model: nn.Module, folder: Path, name: str | None) -> None:
        with torch.no_grad():
            next(model.parameters()).zero_()
        real(model, folder, name)
        with torch.no_grad():
            next(model.parameters()).add_(1)

    monkeypatch.setattr(adapter, "save", losing)
    source = open_source(f"transformers:{config(tmp_path / 'source', LANGUAGE)}")
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckError, match=r"transformers reads .* back with other values; nothing was written"):
        save_folder(source.build(), tmp_path / "out", source)


def test_an_exported_folder_is_replaced_only_by_force(tmp_path: Path) -> None:
    finished_run(tmp_path / "run", f"transformers:{config(tmp_path / 'source', LANGUAGE)}")
    folder = config(tmp_path / "out", {})
    (folder / "model.safetensors").touch()
    with pytest.raises(InputError, match="out exists; add --force"):
        exported(tmp_path / "run", to=folder)
    exported(tmp_path / "run", to=folder, force=True)
    assert json.loads((folder / "config.json").read_text())["n_layer"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run", "source"]
    (folder / "thesis.tex").touch()
    with pytest.raises(InputError, match="out holds more than an exported network, so it is not replaced"):
        exported(tmp_path / "run", to=folder, force=True)


def test_a_replacement_that_fails_leaves_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(model: nn.Module, folder: Path, name: str | None) -> None:
        (folder / "config.json").write_text("half")
        raise ValueError("no reason")

    monkeypatch.setattr(progc.models.saving.adapter_of("transformers"), "save", failing)
    source = f"transformers:{config(tmp_path / 'source', LANGUAGE)}"
    finished_run(tmp_path / "run", source)
    monkeypatch.setattr("progc.runs.exporting.export.in_own_class", lambda *args, **more: own)
    own = OwnClass("equal", model=open_source(source).build())
    folder = config(tmp_path / "out", {})
    with pytest.raises(InputError, match=r"GPT2LMHeadModel cannot be written as a folder: no reason; export safeten"):
        exported(tmp_path / "run", to=folder, force=True)
    assert (folder / "config.json").read_text() == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run", "source"]


def test_a_stage_that_no_config_describes_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    finished_run(run, f"transformers:{config(tmp_path / 'source', LANGUAGE)}")
    network = TrainedNetwork.open(run)
    first = type(network)(network.run, type(network.weights)(network.weights.path, 0, 2, ()))
    with pytest.raises(InputError, match=r"stage 0 of .* is smaller than transformers:.*, so no config describes it"):
        Request.make(first, form="folder")
