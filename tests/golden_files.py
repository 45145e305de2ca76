"""Golden files: `golden(path, text)` compares with tests/golden/path; `pytest --update-golden` rewrites it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden from what the tests get")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Checks that `text` is what the golden file `path` (relative to tests/golden) holds, byte for byte."""

    def check(path: str, text: str) -> None:
        file = FOLDER / path
        if request.config.getoption("--update-golden"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text.encode())
        assert file.exists(), f"no golden file {path}; run pytest --update-golden and read the new file"
        assert text == file.read_bytes().decode(), f"{path} differs; if that is right, run pytest --update-golden"

    return check
