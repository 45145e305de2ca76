"""Configurations: files of three kinds, flags, `--set`, messages, and that the page of keys is the models' keys."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from progc.errors import InputError
from progc.files.values import key_values, literal
from progc.runs.config import MAY_CHANGE, MAY_FORK, Config, difference, flat, keys
from progc.runs.config import OptimizerSection as Section
from progc.runs.config_file import configured, override, read
from progc.runs.opening import chosen, slots
from progc.train.settings import Settings
from tests.fake_cuda import CUDA, fake_cuda

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/training.md"
TOML = """
source = "net.py"
epochs = 3
[plan]
stages = 2
depths = [2, 4]
[optimizer.options]
betas = [0.8, 0.9]
[train]
lr = 1
ema = [0.9]
keep = "none"
amp = "none"
"""
YAML = """
source: net.py
epochs: 3
plan: {stages: 2, depths: [2, 4]}
optimizer:
  options: {betas: [0.8, 0.9]}
train:
  lr: 1e+0
  ema: [9e-1]
  keep: null
  amp: none
"""


def write(folder: Path, text: str, name: str = "run.toml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_toml_yaml_and_json_are_the_same(tmp_path: Path) -> None:
    toml = configured(write(tmp_path, TOML), {})
    yaml = configured(write(tmp_path, YAML, "run.yaml"), {})
    as_json = configured(write(tmp_path, json.dumps(toml.to_json()), "run.json"), {})
    assert toml.to_json() == yaml.to_json() == as_json.to_json()
    settings = toml.settings
    assert (settings.total, settings.lr, settings.ema, settings.keep, settings.amp) == (3, 1.0, (0.9,), None, "none")
    assert settings == dataclasses.replace(Settings(), total=3, lr=1.0, ema=(0.9,), keep=None)
    assert isinstance(settings.lr, float)


def test_a_source_is_a_config_with_all_defaults() -> None:
    config = configured("timm:resnet18", {"epochs": ("--epochs", 2), "train.batch": ("--batch", None)})
    assert config.settings == Settings(total=2) and config.source == "timm:resnet18"


@pytest.mark.parametrize("given", ["diffusers:folder/config.json", "transformers:/models/small/config.json"])
def test_a_librarys_config_is_a_source_and_not_a_config_of_a_run(given: str) -> None:
    assert configured(given, {"steps": ("--steps", 2)}).source == given
    with pytest.raises(InputError, match=r"config.json: no such file"):
        configured(given.partition(":")[2], {})


def test_flags_go_over_the_file_and_set_over_both(tmp_path: Path) -> None:
    file = write(tmp_path, TOML)
    flags: dict[str, tuple[str, Any]] = {"plan.stages": ("--stages", 3), "steps": ("--steps", 50)}
    config = configured(file, flags, ["plan.stages=5", "train.lr=1e-4", "train.ema=[0.5,0.75]", "train.keep=none"])
    assert (config.plan.stages, config.epochs, config.steps) == (5, None, 50)
    assert (config.settings.lr, config.settings.ema, config.settings.keep) == (1e-4, (0.5, 0.75), None)
    assert configured(file, {"plan.file": ("--plan", Path("p.json"))}).plan.model_fields_set == {"file"}
    more = configured(
        file, {}, ["trackers.wandb.project=x", "plan.settings.batches=4", "out=5", "train.recompute=True"]
    )
    assert more.trackers.wandb == {"project": "x"} and more.plan.settings == {"batches": 4}
    assert more.out == "5" and more.settings.recompute is True


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["train.btach=3"], r"^--set train.btach=3: unknown key `train.btach`; did you mean train.batch"),
        (["lr=3"], r"unknown key `lr`; did you mean train.lr\?"),
        (["warmpu=3"], r"unknown key `warmpu`; did you mean train.warmup\?"),
        (["train=3"], r"`train` is a table; set one of its keys, train.batch, "),
        (["train.batch=x"], r"^--set train.batch=x: `train.batch`: expected an integer, got 'x'$"),
        (["train.batch=2.5"], r"`train.batch`: expected an integer, got 2.5$"),
        (["train.batch=true"], r"`train.batch`: expected an integer, got true$"),
        (["train.batch=0"], r"^--set train.batch=0: `train.batch`: expected an integer of at least 1, got 0$"),
        (["train.batch=none"], r"`train.batch`: expected an integer, got 'none'$"),
        (["train.amp=fp8"], r"`train.amp`: expected none, bf16 or fp16, got 'fp8'$"),
        (
            ["train.lr_schedule=cosin"],
            r"`train.lr_schedule`: expected constant, linear, cosine, wsd or linear-to-zero, got 'cosin'$",
        ),
        (["train.ema=0.5"], r"`train.ema`: expected a list of numbers, got 0.5$"),
        (["train.ema=['a']"], r"`train.ema`: expected a list of numbers, got 'a'$"),
        (["train.clip=-1"], r"`train.clip`: expected a number above 0, got -1.0$"),
        (["train.profile=13:10"], r"^--set train.profile=13:10: `train.profile`: expected START:STOP with START below"),
        (["train.tf32=yes"], r"`train.tf32`: expected true or false or left out, got 'yes'$"),
        (["epochs=0"], r"^--set epochs=0: `epochs`: expected an integer of at least 1, got 0$"),
        (["epochs=1", "steps=4"], r"`epochs` and `steps` are both given; the length of the run is one of them$"),
        (["plan.file=p.json"], r"run.toml: `plan.file` is a finished plan; leave out `plan.depths`, or leave out"),
        (["init=wide"], r"^--set init=wide: `init`: unknown init `wide`"),
        (["train.lr"], r"^--set train.lr: expected key=value, such as --set train.lr=0.001$"),
        (["train.lr=1", "train.lr=2"], r"^--set gives `train.lr` twice; give it once$"),
        (["source.x=1"], r"unknown key `source.x`"),
        (["optimizer.name.x=1"], r"unknown key `optimizer.name.x`"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, sets: list[str], message: str) -> None:
    with pytest.raises(InputError) as raised:
        configured(write(tmp_path, TOML), {}, sets)
    assert re.search(message, str(raised.value)), raised.value
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.toml",
            "source = 'x'\n[train]\nbtach = 3",
            r"a.toml: unknown key `train.btach`; did you mean train.batch",
        ),
        ("a.toml", "[train]", r"a.toml: `source` is missing"),
        ("a.toml", "source = 'x'\ntrain = 3", r"a.toml: `train`: expected a table of keys, got 3"),
        ("a.toml", "source = 3", r"a.toml: `source`: expected text, got 3"),
        ("a.toml", "source = 1979-05-27", r"a.toml: expected text, numbers, lists and tables"),
        ("a.toml", "source = ]", r"a.toml is not valid TOML: .*line 1"),
        ("a.toml", "source = 'a'\nsource = 'b'", r"a.toml is not valid TOML"),
        ("a.toml", "source = 'x'\n[train]\nlr = nan", r"a.toml: `train.lr`: expected a number above 0, got nan"),
        ("a.yaml", "source: [", r"a.yaml is not valid YAML: .*line 1"),
        ("a.yaml", "source: a\nsource: b", r"a.yaml: `source` is given twice"),
        ("a.yaml", "a: &x [1]\nb: [*x, *x]", r"a.yaml: YAML aliases"),
        ("a.yaml", "source: !!python/object/apply:os.system ['true']", r"a.yaml is not valid YAML"),
        ("a.yaml", "- 1", r"a.yaml: expected keys .*, got a list"),
        ("a.yaml", "", r"a.yaml: expected keys .*, got a NoneType"),
        ("a.yaml", "1: 2\nsource: x", r"unknown key `1`"),
        ("a.yaml", "source: x\ntrain: {amp: no}", r"`train.amp`: expected none, bf16 or fp16, got false"),
        ("a.json", "{", r"a.json is not valid JSON"),
        ("a.json", "[" * 5000 + "]" * 5000, r"a.json( is not valid JSON|: expected keys)"),
        ("a.yml", "\udcff", r"a.yml is not a text file in UTF-8"),
        ("a.toml", "#" * (1 << 21), r"a.toml: expected a config file of at most 1 MiB"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as raised:
        configured(str(path), {})
    assert re.search(message, str(raised.value)), raised.value
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none.toml: no such file; give a config file"):
        read(tmp_path / "none.toml")


def test_texts_stay_texts_in_set() -> None:
    assert override("out", "007") == "007"
    assert override("plan.depths", "0.5:1:4") == "0.5:1:4"
    assert override("train.compile", "eager") == "eager"
    assert override("trackers.tensorboard", "TRUE") is True


def test_settings_are_read_as_values() -> None:
    """By `progc plan` and `progc train` alike."""
    texts = ["a=1", "b=0.5", "c=true", "d=None", "e=ntk,zico", "f=[1, 2]", "g=x=y", "h=", " i = none", "j=NONE"]
    wanted: dict[str, Any] = {
        "a": 1, "b": 0.5, "c": True, "d": None, "e": "ntk,zico", "f": [1, 2], "g": "x=y", "h": "", "i": None, "j": None,
    }  # fmt: skip
    found = key_values(texts, example="batches=4")
    assert {key: literal(text) for key, text in found.items()} == wanted
    assert {key: override(f"plan.settings.{key}", text) for key, text in found.items()} == wanted
    assert literal("(" * 5000) == "(" * 5000
    for bad, message in ((["a"], "--set a: expected key=value, such as --set batches=4"), (["a=1", "a=2"], "twice")):
        with pytest.raises(InputError, match=message):
            key_values(bad, example="batches=4")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.keep", None), ("train.clip", None), ("plan.batch", None), ("trackers.wandb", None),
        ("plan.settings.batches", None), ("optimizer.options.foreach", None),  # empty
        ("train.amp", "none"), ("train.parallel", "none"), ("plan.depths", "none"), ("plan.regularise", "none"),
        ("train.batch", "none"),  # refused by the config, as it was written
    ],
)  # fmt: skip
def test_none_is_empty_except_where_it_is_a_word_of_the_key(key: str, value: None | str) -> None:
    assert override(key, "none") == value


# --- going on -------------------------------------------------------------------------------------------------------


def test_only_keys_that_say_how_may_change(tmp_path: Path) -> None:
    file = write(tmp_path, TOML)
    before = configured(file, {}).to_json()
    same = ["out=b", "train.workers=2", "train.log_every=1", "trackers.tensorboard=true", "train.parallel=ddp"]
    assert difference(before, configured(file, {}, same)) is None
    changed = configured(file, {}, ["train.lr=0.5"])
    assert difference(before, changed) == "`train.lr` was 1.0 and is 0.5 now"
    assert difference(before, configured(file, {}, ["plan.depths=1,2"])) is not None
    options = configured(file, {}, ["optimizer.options.eps=1e-3"])
    assert str(difference(before, options)).startswith("`optimizer.options` was {'betas'")
    del before["optimizer"], before["train"]["warmup"]
    assert difference(before, configured(file, {}, ["optimizer.options={}"])) is None  # an older run had defaults there
    assert difference({**before, "gone": 1}, configured(file, {})) is not None


def test_what_may_change_exists() -> None:
    assert {name for name in MAY_CHANGE if name not in keys() and name not in Config.model_fields} == set()
    fields = {f"train.{field.name}" for field in dataclasses.fields(Settings)} - {"train.total"}
    assert fields == {key for key in keys() if key.startswith("train.")}


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_names_every_key_with_its_default() -> None:
    default = dict(flat(Config(source="").to_json()))
    rows = re.findall(r"^\| `([a-z_.0-9]+)` \|([^|]*)\|.*\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    found = {key: value.strip() for key, value in rows if not key.endswith((".json", ".jsonl"))}
    assert found.keys() == default.keys()
    for key, value in found.items():
        wanted = default[key]
        text = "none" if wanted is None else str(wanted).lower() if isinstance(wanted, bool) else str(wanted)
        assert value == text, key


def test_the_page_names_what_may_change_and_the_example_is_a_config() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("## Resuming")[2].partition("\n## ")[0]
    assert all(f"`{name}`" in text for name in MAY_CHANGE)
    text = PAGE.read_text(encoding="utf-8").partition("## Other settings from")[2].partition("\n## ")[0]
    assert all(f"`{name}`" in text for name in MAY_FORK)
    config = configured(str(ROOT / "examples" / "train.toml"), {})
    assert (ROOT / config.source).is_file() and config.settings.total is not None


# --- the optimizer --------------------------------------------------------------------------------------------------


def test_vectors_are_not_decayed_unless_asked() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    first, second = chosen(Section(weight_decay=0.1), 0.01)(module).param_groups
    assert [p.dim() for p in first["params"]] == [2] and [p.dim() for p in second["params"]] == [1, 1, 1]
    assert (first["weight_decay"], second["weight_decay"], first["lr"], second["lr"]) == (0.1, 0.0, 0.01, 0.01)
    (only,) = chosen(Section(decay_vectors=True), 0.01)(module).param_groups
    assert len(only["params"]) == 4


def test_optimizers_by_name() -> None:
    made = chosen(Section(name="sgd", options={"nesterov": True}), 0.1)(nn.Linear(2, 2))
    assert type(made).__name__ == "SGD" and made.param_groups[0]["momentum"] == 0.9
    made = chosen(Section(name="AdamW", options={"betas": [0.5, 0.6]}), 0.1)(nn.Linear(2, 2))
    assert made.param_groups[1]["betas"] == (0.5, 0.6)
    made = chosen(Section(name="lamb"), 0.1)(nn.Linear(2, 2))
    assert type(made).__module__.startswith("timm.optim") and made.param_groups[1]["weight_decay"] == 0.0
    assert not made.defaults.get("fused")
    with fake_cuda():
        there = nn.Linear(2, 2, device=CUDA)
        for name, sharded, fused in (("adamw", True, True), ("sgd", False, True), ("sgd", True, None)):
            made = chosen(Section(name=name), 0.1, sharded=sharded)(there)
            assert made.defaults["fused"] is fused
    assert [slots(chosen(Section(name=name), 0.1)) for name in ("adamw", "sgd", "lion", "lamb")] == [2, 1, 1, 2]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (Section(name="adamx"), "unknown optimizer `adamx`; did you mean .*adam"),
        (Section(name="zzz"), "unknown optimizer `zzz`; expected adamw, sgd or one of timm.optim"),
        (Section(options={"beta": 1}), "optimizer adamw cannot be made: .*beta.*; fix .optimizer. in the config"),
        (Section(options={"betas": [2, 3]}), "optimizer adamw cannot be made: Invalid beta"),
    ],
)
def test_an_optimizer_that_is_none(section: Section, message: str) -> None:
    with pytest.raises(InputError, match=message):
        chosen(section, 0.1)


def test_without_timm_two_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "progc.models.optimizers", None)
    with pytest.raises(InputError, match="unknown optimizer `lamb`; expected adamw, sgd$"):
        chosen(Section(name="lamb"), 0.1)
