"""Settings that every test shares: one thread per process, fixed seeds, no network, no colours."""

from __future__ import annotations

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

from tests.golden_files import golden, pytest_addoption  # noqa: F401  found here by pytest

# Sums in one order: results do not depend on how many cores the machine has.
torch.set_num_threads(1)

# Examples are drawn from a fixed seed, and a slow machine is not a failure.
settings.register_profile(
    "progc", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("progc")


@pytest.fixture(autouse=True)
def _fixed_seeds() -> Iterator[None]:
    """Each test starts from the same random state and default dtype, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
