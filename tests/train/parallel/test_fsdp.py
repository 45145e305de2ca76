"""Parameters spread over real processes: growth, freezing, checkpoints of all ranks, other numbers of ranks.

Every boundary of these runs compares the hashes of the ranks and the outputs in float64.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from progc.checkpoints import Checkpoint, latest, load
from progc.errors import InputError
from tests.train.parallel.starting import ROOT, python, train
from tests.train.running import lines

# Seven runs in one to three processes. For each commit two processes train in test_ddp.py, two ranks save and load in
# tests/checkpoints/test_ranks.py, and rows are cut and joined without processes in tests/checkpoints/test_sharded.py.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in two processes: whole copies, spread, and spread with interruptions.

    Each signal reaches rank 1 alone, which reads 8 samples for a step and 8 for a boundary.
    """
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "ddp", "ddp", 2)
    train(folder / "fsdp", "fsdp", 2)
    told = train(folder / "again", "fsdp", 2, at=3 * 8 + 3)
    assert told.count("step 3 finished False;") == 2, told  # inside the boundary
    told = train(folder / "again", "fsdp", 2, at=8 + 3)
    assert told.count("step 5 finished False;") == 2, told  # asked in step 4: the other rank learns of it in step 5
    shutil.copytree(folder / "again", folder / "other")
    assert "finished True" in train(folder / "again", "fsdp", 2)
    return folder


def last(run: Path) -> Checkpoint:
    found = latest(run)
    assert found is not None
    return load(found)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Everything in the last checkpoint, put together."""
    found = last(run)
    names = [name for name in found.manifest.files if name.endswith(".safetensors")]
    names = [name for name in names if not name.startswith("shard")] + list(found._index.files if found._index else ())
    return {f"{name}/{key}": tensor for name in names for key, tensor in found._tensors(name).items()}


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in lines(run) if line["kind"] == "train"]


def test_spread_and_whole_train_alike(runs: Path) -> None:
    """Four stages: half frozen, deeper, half frozen again, wider."""
    spread, whole = (tensors(runs / name) for name in ("fsdp", "ddp"))
    assert spread.keys() == whole.keys()
    # Adam makes much of gradients that are zero but for rounding, so losses are close, not equal.
    assert losses(runs / "fsdp") == pytest.approx(losses(runs / "ddp"), rel=5e-3)
    for name, tensor in whole.items():
        assert spread[name].shape == tensor.shape and spread[name].dtype == tensor.dtype
    found = [line for line in lines(runs / "fsdp") if line["kind"] == "boundary"]
    assert [line["lossless"] for line in found] == [True] * 3
    assert (runs / "fsdp" / "model.safetensors").stat().st_size == (runs / "ddp" / "model.safetensors").stat().st_size


def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_bit_for_bit(runs: Path) -> None:
    whole, again = tensors(runs / "fsdp"), tensors(runs / "again")
    assert whole.keys() == again.keys()
    assert [name for name in whole if not torch.equal(whole[name], again[name])] == []
    assert lines(runs / "fsdp") == lines(runs / "again")


def test_every_rank_writes_its_rows(runs: Path) -> None:
    found = last(runs / "fsdp")
    shards = [entry.size for name, entry in found.manifest.files.items() if name.startswith("shard-")]
    assert len(shards) == 2 and max(shards) < 1.5 * min(shards)
    assert "model.safetensors" not in found.manifest.files


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_reader_of_torch_finds_the_weights(runs: Path) -> None:
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint import load as load_by_torch

    found = last(runs / "fsdp")
    weights = found.weights()
    given = {name: torch.full_like(tensor, 7) for name, tensor in weights.items() if tensor.dim()}
    load_by_torch(given, storage_reader=HuggingFaceStorageReader(str(found.path)), no_dist=True)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in given.items())


def test_other_numbers_of_ranks_go_on(runs: Path) -> None:
    """Two processes until step 5, then one until step 7, then four."""
    run = runs / "other"
    assert last(run).manifest.world == 2
    assert "step 7 finished False;" in train(run, "fsdp", 1, at=16 + 8 + 3)
    assert last(run).manifest.world == 1
    told = train(run, "fsdp", 4)
    assert told.count("step 12 finished True;") == 4
    assert last(run).manifest.world == 4
    found, whole = losses(run), losses(runs / "fsdp")
    assert found[:5] == whole[:5]
    # Every rank drops other units, so losses are alike, not equal.
    assert found == pytest.approx(whole, rel=0.2)


def damaged(run: Path, folder: Path, change: Any) -> Path:
    """A copy of the last checkpoint with something changed."""
    source = last(run).path
    made = folder / source.name
    shutil.copytree(source, made)
    change(made)
    return made


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: flip(folder / "shard-00001-of-00002.safetensors"), "does not have the sha256"),
        (lambda folder: (folder / "shard-00001-of-00002.safetensors").unlink(), "is missing"),
        (
            lambda folder: (folder / "shard-00000-of-00002.safetensors").replace(
                folder / "shard-00001-of-00002.safetensors"
            ),
            "is missing",
        ),
        (lambda folder: flip(folder / "shards.json"), "sha256"),
    ],
)
def test_damage_is_found(runs: Path, tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(damaged(runs / "fsdp", tmp_path, change))


def test_no_pickle_and_nothing_but_plain_files(runs: Path) -> None:
    for path in last(runs / "fsdp").path.iterdir():
        assert path.suffix in (".json", ".safetensors")
        if path.suffix == ".json":
            json.loads(path.read_text())


def test_tied_weights_running_statistics_and_averages() -> None:
    """Those of whole copies, with rows that the ranks cannot share evenly; what is frozen gets no gradient."""
    done = python(str(Path(__file__).with_name("tied_script.py")), processes=2)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("alike;") == 2


def test_the_full_image_size_is_validated_from_spread_tensors(tmp_path: Path) -> None:
    found = []
    for processes, kind in ((0, "none"), (2, "fsdp")):
        run = tmp_path / kind
        done = python(
            "-m", "progc", "train", str(ROOT / "examples" / "digits_vit.py"), "--stages", "2", "--steps", "4",
            "--batch", "16", "--out", str(run), "--set", f"train.parallel={kind}", "--set", "plan.depths=none", "--set",
            "plan.resolutions=[4,8]", "--set", "train.compile=eager", "--set", "train.ema=[0.5]",
            processes=processes,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        found.append([line for line in lines(run) if line["kind"] == "validation"])
    (small, last), (spread, _) = found
    names = [name for name in small if name.startswith("full/")]
    assert {"full/loss", "full/top1", "full/ema-0.5/loss", "full/ema-0.5/top1"} <= set(names)
    assert not any(name.startswith("full/") for name in last)
    assert [spread[name] for name in names] == pytest.approx([small[name] for name in names], rel=1e-3, abs=0.01)
