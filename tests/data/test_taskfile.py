"""From a user's file to samples and loss: what may be returned, and one line for what may not."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from progc.data.task import Task
from progc.data.taskfile import has_task, load_task
from progc.errors import InputError, outside

Load = Callable[..., Task]

HEAD = """
import torch
x = torch.arange(20.0).reshape(10, 2)
y = torch.arange(10) % 3

class Pairs:
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return {"image": torch.zeros(3, 4, 4), "text": torch.tensor(index)}

def mean(outputs, batch):
    return outputs.mean()
"""


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """`load("def datasets(): ...")`: the task of a file with these lines below a common head."""

    def make(text: str, name: str = "data.py") -> Task:
        path = tmp_path / name
        path.write_text(HEAD + textwrap.dedent(text))
        return load_task(path)

    return make


@pytest.mark.parametrize(
    ("returned", "train", "validation"),
    [
        ("(x, y)", 10, None),
        ("torch.utils.data.TensorDataset(x, y)", 10, None),
        ("((x, y), (x[:4], y[:4]))", 10, 4),
        ("((x, y), None)", 10, None),
        ("{'train': (x, y), 'validation': [(x[0], 1)]}", 10, 1),
        ("{'train': list(zip(x, y.tolist()))}", 10, None),
    ],
)
def test_what_datasets_may_return(load: Load, returned: str, train: int, validation: int | None) -> None:
    task = load(f"def datasets(): return {returned}")
    assert len(task.samples) == train
    assert (None if task.validation is None else len(task.validation)) == validation
    images, labels = next(task.batches(4, seed=1))
    assert images.shape == (4, 2)
    assert torch.equal(labels, (images[:, 0].long() // 2) % 3)  # each with its own label
    outputs = torch.randn(4, 3)
    torch.testing.assert_close(task.loss(outputs, [images, labels]), F.cross_entropy(outputs, labels))


def test_whole_batches_are_read_where_the_dataset_can(load: Load) -> None:
    task = load("def datasets(): return (x, y), (x, y)")
    assert isinstance(task.samples, TensorDataset) and isinstance(task.validation, TensorDataset)
    task = load(
        """
        calls = []

        class Several:
            def __len__(self): return 200
            def __getitem__(self, index): return x[index % 10], index % 3
            def __getitems__(self, indices):
                calls.append(len(indices))
                if len(calls) > 2: raise KeyError("a shard is missing")
                return [self[index] for index in indices]

        def datasets(): return Several()
        def loss(outputs, batch): return outputs.sum() * len(calls)
        """
    )
    batches = task.batches(50, seed=1)
    assert [len(next(batches)[1]) for _ in range(2)] == [50, 50]
    assert task.loss(torch.ones(()), None) == 2  # one call for each, after the samples that are watched
    with pytest.raises(InputError, match=r"\.py:\d+.*a shard is missing"):
        next(batches)


def test_functions_of_the_file_are_used(load: Load) -> None:
    task = load(
        """
        def datasets(): return Pairs()
        def loss(outputs, batch): return outputs.mean() + batch["text"].sum()
        def inputs(batch): return (batch["image"],), {"text": batch["text"]}
        def resize(batch, size): return {**batch, "image": batch["image"].new_ones(len(batch["image"]), 3, *size)}
        """
    )
    batch = next(task.batches(2, seed=0))
    args, kwargs = task.inputs(batch)
    assert args[0].shape == (2, 3, 4, 4) and torch.equal(kwargs["text"], batch["text"])
    assert task.loss(torch.zeros(1), batch) == batch["text"].sum()
    assert task.at_size(batch, (6, 5))["image"].shape == (2, 3, 6, 5)


@pytest.mark.parametrize(("returned", "args", "kwargs"), [("(x,)", 1, set()), ("{'a': x}", 0, {"a"})])
def test_forms_of_inputs(load: Load, returned: str, args: int, kwargs: set[str]) -> None:
    task = load(f"def datasets(): return x, y\ndef inputs(batch): return {returned}")
    positional, keywords = task.inputs(None)
    assert len(positional) == args and keywords.keys() == kwargs


def test_a_neighbour_may_be_imported_inside_of_a_function(load: Load, tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_data.py").write_text("scale = 3.0\n")
    task = load(
        """
        class Late(Pairs):
            def __getitem__(self, index):
                from neighbour_of_data import scale
                return torch.full((2,), scale), 1
        def datasets(): return Late()
        """
    )
    assert next(task.batches(2, seed=0))[0].eq(3).all()


REFUSED: dict[str, tuple[str, str]] = {
    "missing": ("", "has no datasets(); write def datasets(): return train, validation, and def loss(outputs, batch)"),
    "number": ("datasets = 3", "expected a function `datasets`, got an int"),
    "arguments": ("def datasets(root): return x, y", "`datasets` needs arguments (root); write def datasets():"),
    "raises": ("def datasets(): return 1 / 0", "ZeroDivisionError when the file makes its datasets: division by zero"),
    "none": ("def datasets(): pass", "datasets() returned None; expected a map-style dataset"),
    "iterable": ("def datasets(): return iter([1])", "which can only be iterated; expected a map-style dataset"),
    "stream": (
        "class Stream(torch.utils.data.IterableDataset):\n    def __iter__(self): return iter([])\n"
        "def datasets(): return Stream()",
        "datasets() is a Stream",
    ),
    "loader": (
        "def datasets(): return torch.utils.data.DataLoader([1, 2])",
        "datasets() is a DataLoader; return its dataset",
    ),
    "empty": ("def datasets(): return []", "datasets() is empty; expected at least one batch"),
    "no length": ("class A:\n    def __getitem__(self, i): return i\ndef datasets(): return A()", "datasets() is an A"),
    "three": ("def datasets(): return [1], [2], [3]", "datasets() returned 3 values; expected"),
    "lengths": ("def datasets(): return (x, y[:3]), None", "the tensors of datasets() have lengths 10, 3"),
    "key": ("def datasets(): return {'trian': (x, y)}", "has the key `trian`; did you mean train?"),
    "no train": ("def datasets(): return {'validation': (x, y)}", "the dict of datasets() lacks `train`"),
    "validation": ("def datasets(): return (x, y), 5", "validation of datasets() is an int; expected"),
    "no loss": ("def datasets(): return Pairs()", "has no loss(outputs, batch), and its samples are not pairs"),
    "regression": ("def datasets(): return x, x", "has no loss(outputs, batch), and its samples are not pairs"),
    "loss": ("def datasets(): return x, y\nloss = 'cross'", "expected a function `loss`, got a str"),
    "loss of three": (
        "def datasets(): return x, y\ndef loss(outputs, labels, weight): return 0",
        "`loss` needs arguments (outputs, labels, weight); write def loss(outputs, batch):",
    ),
    "import": ("import no_such_library_at_all", "ModuleNotFoundError when the file is imported"),
    "length": (
        "class A(Pairs):\n    def __len__(self): raise OSError('disk gone')\ndef datasets(): return A()\nloss = mean",
        "OSError when the file returns the length of its dataset: disk gone",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_may_not_return(load: Load, tmp_path: Path, case: str) -> None:
    text, message = REFUSED[case]
    with pytest.raises(InputError) as raised:
        load(text)
    assert message in str(raised.value) and str(raised.value).startswith(str(tmp_path / "data.py"))
    assert "\n" not in str(raised.value) and not str(raised.value).endswith(".")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("outputs", r"loss\(outputs, batch\) returned a tensor \[4, 3\] of torch.float32; expected the mean"),
        ("outputs.mean().item()", "returned a float; expected the mean"),
        ("outputs.argmax()", "of torch.int64; expected the mean"),
        ("None", "returned a NoneType"),
        ("outputs @ outputs", r"data.py:\d+: RuntimeError when the file computes its loss"),
    ],
)
def test_a_loss_that_is_none(load: Load, returned: str, message: str) -> None:
    task = load(f"def datasets(): return x, y\ndef loss(outputs, batch): return {returned}")
    with pytest.raises(InputError, match=message):
        task.loss(torch.randn(4, 3), next(task.batches(4, seed=0)))


def test_a_sample_that_fails_names_the_line(load: Load) -> None:
    task = load(
        "class A(Pairs):\n    def __getitem__(self, i): return 1 // (i - i)\ndef datasets(): return A()\nloss = mean"
    )
    with pytest.raises(InputError, match=r"data.py:\d+: ZeroDivisionError when the file returns sample \d+: "):
        next(task.batches(2, seed=0))


def test_inputs_that_are_none(load: Load) -> None:
    task = load("def datasets(): return x, y\ndef inputs(batch): return batch[0]")
    with pytest.raises(InputError, match=r"inputs\(batch\) returned a Tensor; expected a tuple"):
        task.inputs(next(task.batches(2, seed=0)))


def test_a_loss_under_function_transforms(load: Load) -> None:
    """Searches take gradients sample by sample."""
    task = load("def datasets(): return x, y\ndef loss(outputs, batch): return (outputs - batch).square().mean()")
    outputs, targets = torch.randn(4, 3), torch.randn(4, 3)
    found = torch.func.vmap(torch.func.grad(task.loss))(outputs, targets)
    torch.testing.assert_close(found, 2 * (outputs - targets) / 3)


def test_whether_there_is_a_task(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def datasets(): raise RuntimeError\n")
    (tmp_path / "b.py").write_text("x = 1\n")
    assert has_task(tmp_path / "a.py") and not has_task(tmp_path / "b.py")
    with pytest.raises(InputError, match="no such file"):
        load_task(tmp_path / "c.py")


def test_the_example_to_copy_has_a_task() -> None:
    task = load_task(Path(__file__).resolve().parents[2] / "examples" / "digits_vit.py")
    assert (len(task.samples), len(task.validation)) == (1437, 360)
    batch = next(task.batches(8, seed=0))
    assert task.loss(torch.zeros(8, 10), batch) == pytest.approx(torch.tensor(10.0).log().item(), rel=1e-5)


ONCE = """
import errno
calls = []

def fails_once(at):
    calls.append(float(torch.rand(())))
    if len(calls) == at:
        raise OSError(errno.EIO, "Input/output error")

class Shaky(Pairs):
    def __getitem__(self, index):
        fails_once(3)
        return torch.zeros(2), 1

def datasets(): return DATA
def loss(outputs, batch):
    fails_once(37)
    return outputs.mean()
def inputs(batch):
    fails_once(2)
    return (batch,)
"""


def test_an_error_of_a_function_is_never_tried_again(load: Load) -> None:
    """A second call would swallow the error, and would draw other random numbers."""
    task = load(ONCE.replace("DATA", "x, y"), "loss.py")
    for _ in range(36):
        task.loss(torch.zeros(3), None)
    with pytest.raises(
        InputError, match=r"loss.py:\d+: OSError when the file computes its loss: .*Input/output error"
    ) as e:
        task.loss(torch.zeros(3), None)
    calls = task.loss._call._function.__globals__["calls"]  # type: ignore[attr-defined]
    assert len(calls) == 37 and outside(e.value)

    task = load(ONCE.replace("DATA", "Shaky()"), "samples.py")
    calls = task.loss._call._function.__globals__["calls"]  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"samples.py:\d+: OSError when the file returns sample 2: "):
        [task.samples[index] for index in range(4)]
    assert len(calls) == 3

    task = load(ONCE.replace("DATA", "x, y"), "inputs.py")
    calls = task.loss._call._function.__globals__["calls"]  # type: ignore[attr-defined]
    task.inputs(1)
    with pytest.raises(InputError, match="when the file takes the inputs of a batch"):
        task.inputs(1)
    assert len(calls) == 2


def test_the_place_of_an_error_in_a_neighbour(load: Load, tmp_path: Path) -> None:
    (tmp_path / "neighbour_that_fails.py").write_text("def read(index):\n    return [][index]\n")
    task = load(
        """
        from neighbour_that_fails import read
        class A(Pairs):
            def __getitem__(self, index): return read(index)
        def datasets(): return A()
        loss = mean
        """
    )
    with pytest.raises(InputError, match=r"neighbour_that_fails.py:2: IndexError when the file returns sample 1: "):
        task.samples[1]
