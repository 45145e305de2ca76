"""Settings that every test shares: one thread per process, fixed seeds, no network, no colours.

The order of tests is set here, too: a worker captures a network of tests/zoo.py once and then runs all tests of it.
"""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

# Before any library reads them: a test never reaches for a hub, and terminal output is the same everywhere.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NO_COLOR", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("COLUMNS", "120")
os.environ.pop("FORCE_COLOR", None)

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# Last, so that it shadows nothing: the scripts of bench/ are tested too.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from tests import zoo
from tests.command import net, run  # noqa: F401  found here by pytest
from tests.golden_files import golden, pytest_addoption  # noqa: F401  found here by pytest
from tests.stored_runs import session_run, trained_run  # noqa: F401

# Sums in one order: results do not depend on how many cores the machine has.
torch.set_num_threads(1)

# Libraries and graphs are millions of objects that stay: collecting garbage among them took a fifth of the time.
gc.collect()
gc.freeze()
gc.set_threshold(50_000, 20, 50)

# Examples are drawn from a fixed seed, and a slow machine is not a failure. `make test-all` draws more of them.
EXAMPLES = {"progc": 50, "all": 200}
for _name, _count in EXAMPLES.items():
    settings.register_profile(
        _name, derandomize=True, deadline=None, max_examples=_count, suppress_health_check=[HealthCheck.too_slow]
    )
settings.load_profile(os.environ.get("PROGC_TEST_PROFILE", "progc"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts tests of one network next to each other; all others stay in the order of their files, which comes after."""
    order = {name: number for number, name in enumerate(zoo.NAMES)}

    def place(item: pytest.Item) -> int:
        callspec = getattr(item, "callspec", None)
        values = callspec.params.values() if callspec is not None else ()
        names = (value.partition("|")[0] for value in values if isinstance(value, str))
        return min((order[name] for name in names if name in order), default=len(order))

    items.sort(key=place)


@pytest.fixture(scope="module", autouse=True)
def _small_heap() -> None:
    """Leaves what earlier files cached out of garbage collection, which a zero-shot search runs for each candidate."""
    gc.collect(1)
    gc.freeze()


@pytest.fixture(autouse=True)
def _fixed_seeds() -> Iterator[None]:
    """Each test starts from the same random state and default dtype, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
