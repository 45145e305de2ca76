"""Proxies by name."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

import progc.search.proxies
from progc.errors import InputError
from progc.pipeline.registry import NamedClasses
from progc.search.proxies import PROXIES, load_proxy, names

DOCUMENT = Path(__file__).resolve().parents[3] / "docs/proxies.md"


@pytest.mark.parametrize("name", PROXIES)
def test_every_proxy_loads_and_has_defaults(name: str) -> None:
    kind = load_proxy(name)
    proxy = kind()
    assert proxy.name == name and proxy.higher_is_better and isinstance(proxy.ranks_unfreezing, bool)
    assert dataclasses.is_dataclass(proxy) and type(proxy).__dataclass_params__.frozen  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=f"proxy {name}: unknown mode `ours`; modes are default, reference"):
        kind(mode="ours")  # type: ignore[call-arg]


@pytest.mark.parametrize("name", PROXIES)
def test_every_proxy_is_described(name: str) -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert name in rows


def test_an_unknown_name() -> None:
    with pytest.raises(InputError, match=r"there is no proxy `naswott`; did you mean naswot\?"):
        load_proxy("naswott")
    with pytest.raises(InputError, match="there is no proxy `x`; proxies are ntk, zico, synflow"):
        load_proxy("x")


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("nowhere.at_all:Proxy", "cannot be loaded from nowhere.at_all:Proxy: No module named"),
        ("progc.data.task:Task", "which lacks name, higher_is_better, score; see progc.search.proxies.base.Proxy"),
        ("progc.search.proxies.ntk:NTK", "whose own name is `ntk`; use the same name for both"),
        ("progc.search.proxies.ntk:Nothing", "has no attribute 'Nothing'"),
    ],
)
def test_a_package_that_is_wrong(place: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = NamedClasses("proxy", "proxies", {**PROXIES, "mine": place}, "no.group")
    monkeypatch.setattr(progc.search.proxies, "_CLASSES", table)
    assert "mine" in names()
    with pytest.raises(InputError, match=f"^proxy `mine` .*{re.escape(text)}"):
        load_proxy("mine")


def test_looking_at_names_does_not_import_torch() -> None:
    code = "import sys, progc.search.proxies; progc.search.proxies.names(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800)
    assert done.stdout.strip() == "False", done.stderr
