"""Names in a data file that nothing reads: told in one line, and refused where another name was meant."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from progc.data.task import Task
from progc.data.taskfile import load_task
from progc.errors import InputError

HEAD = """
import torch
x = torch.arange(20.0).reshape(10, 2)
y = torch.arange(10) % 3
"""
DATASETS = "def datasets(): return x, y\n"


def load(folder: Path, text: str) -> Task:
    path = folder / "data.py"
    path.write_text(HEAD + textwrap.dedent(text))
    return load_task(path)


JOBS = {
    "padding": (
        """
        def collate(samples): return torch.nn.utils.rnn.pad_sequence(samples)
        def metrics(outputs, batch): return {"f1": 0.0}
        """,
        "nothing reads `collate` (torch's default_collate makes batches), `metrics` (validation computes",
    ),
    "Lightning": (
        """
        def training_step(model, batch): return loss(model(batch[0]), batch)
        def configure_optimizers(model): return torch.optim.SGD(model.parameters(), lr=lr)
        lr = 0.1
        """,
        "nothing reads `training_step` (a step is inputs(batch), the network, and loss(outputs, batch)), "
        "`configure_optimizers` (the optimizer is that of [optimizer] in the config), `lr` (the learning rate",
    ),
    "a script": (
        """
        def collate_fn(samples): return samples
        batch_size = 4
        if __name__ == "__main__":
            loader = torch.utils.data.DataLoader(range(9), batch_size=batch_size, collate_fn=collate_fn)
        """,
        "nothing reads `collate_fn` (torch's default_collate makes batches), `batch_size` (it is set in the config)",
    ),
    "two losses": ("def losses(outputs, batch): return 0", "nothing reads `losses` (did you mean loss?)"),
}


@pytest.mark.parametrize("job", JOBS)
def test_what_looks_like_a_feature_is_told(tmp_path: Path, job: str) -> None:
    text, expected = JOBS[job]
    task = load(tmp_path, DATASETS + "def loss(outputs, batch): return outputs.mean()\n" + textwrap.dedent(text))
    (note,) = task.notes
    assert note.startswith(f"warning: {tmp_path}/data.py: {expected}") and "\n" not in note
    assert note.endswith("remove what is not needed, or begin its name with an underscore")


@pytest.mark.parametrize(
    ("text", "name", "meant"),
    [
        ("def los(outputs, batch): return outputs.mean()", "los", "loss"),
        ("def criterion(outputs, batch): return outputs.mean()", "criterion", "loss"),
        ("loss_fn = torch.nn.BCEWithLogitsLoss()", "loss_fn", "loss"),
        ("def input(batch): return batch", "input", "inputs"),
        ("part = ('image', 'fixed')", "part", "parts"),
        ("def resized(batch, size): return batch", "resized", "resize"),
    ],
)
def test_a_name_that_is_nearly_one_that_is_read_is_refused(tmp_path: Path, text: str, name: str, meant: str) -> None:
    """Its author believes that it has an effect, and without it the run trains something else."""
    with pytest.raises(InputError, match=f"nothing reads `{name}`, and there is no `{meant}`; rename it to {meant}"):
        load(tmp_path, DATASETS + text)


@pytest.mark.parametrize(
    "text",
    [
        "def criterion(o, b): return o.mean()\ndef loss(outputs, batch): return criterion(outputs, batch)",
        "def helper(o): return criterion(o)\ndef criterion(o): return o.mean()\nloss = lambda o, b: helper(o)",
        "def _collate(samples): return samples",
        "class Metrics: pass\nimport random as sampler\nfrom torch.utils.data import Sampler",
        "seed = 3\ntorch.manual_seed(seed)",
        "device = 'cpu'\ndef loss(outputs, batch, where=device): return outputs.mean().to(where)",
        "def accuracy(outputs): return 1\nnames = ['a']\ndef main(): pass",
        "epochs = 3\nclass Net(torch.nn.Module):\n    def forward(self, x): return x * epochs",
    ],
)
def test_helpers_and_other_names_are_nobodys_business(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, DATASETS + text).notes == ()
