"""Finds names in a data file that look like features and that nothing reads: neither progc nor the file itself.

A file that was written for another trainer has functions that progc never calls. Without a word the run would train
with another loss, other batches or another optimizer than its author believes.
"""

from __future__ import annotations

import ast
import difflib
import tokenize
import types
from collections.abc import Iterator
from pathlib import Path

from progc.errors import InputError

TASK = ("datasets", "loss", "inputs", "resize", "parts")
"""Names that a task is made of."""
READ = (*TASK, "build", "model", "example_inputs", "data_config")
"""Names that progc reads in a file."""
_BATCHES = "torch's default_collate makes batches"
_ORDER = "the order of samples follows from train.seed"
_VALIDATION = "validation computes the loss, and the accuracy of class indices"
_OPTIMIZER = "the optimizer is that of [optimizer] in the config"
_RATE = "the learning rate is that of train.lr and train.lr_schedule"
_LOADERS = "progc makes batches of what datasets() returns"
_STEPS = "a step is inputs(batch), the network, and loss(outputs, batch)"
_CALLS = "nothing is called while a run trains"
_LOSS = "the loss is loss(outputs, batch)"
_SETTING = "it is set in the config"
ELSEWHERE = {
    **dict.fromkeys(("collate", "collate_fn", "collator", "data_collator"), _BATCHES),
    **dict.fromkeys(("sampler", "batch_sampler", "train_sampler", "worker_init_fn"), _ORDER),
    **dict.fromkeys(
        ("metrics", "metric", "compute_metrics", "evaluate", "validate", "validation_step", "eval_step", "test_step"),
        _VALIDATION,
    ),
    **dict.fromkeys(
        ("optimizer", "optimizers", "configure_optimizers", "make_optimizer", "create_optimizer", "get_optimizer",
         "param_groups", "parameter_groups", "weight_decay"), _OPTIMIZER,
    ),
    **dict.fromkeys(
        ("scheduler", "lr_scheduler", "get_scheduler", "lr_schedule", "lr_lambda", "lr", "learning_rate"), _RATE
    ),
    **dict.fromkeys(
        ("dataloader", "dataloaders", "data_loader", "train_dataloader", "val_dataloader", "get_dataloaders",
         "train_loader", "val_loader", "train_dataset", "val_dataset", "train_set", "val_set", "validation"), _LOADERS,
    ),
    **dict.fromkeys(("training_step", "train_step", "forward_step", "train_one_epoch", "get_batch"), _STEPS),
    **dict.fromkeys(
        ("callbacks", "callback", "hooks", "on_step_end", "on_epoch_end", "on_train_start", "on_train_end",
         "on_validation_end", "early_stopping"), _CALLS,
    ),
    **dict.fromkeys(("loss_fn", "loss_function", "compute_loss", "criterion", "get_loss"), _LOSS),
    **dict.fromkeys(("epochs", "num_epochs", "steps", "batch_size", "num_workers", "seed", "device", "amp"), _SETTING),
}  # fmt: skip
"""Names that other trainers read, and what progc does instead."""
_NEAR = 0.8
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def check_names(path: Path, module: types.ModuleType) -> tuple[str, ...]:
    """Returns a warning about names of a data file that nothing reads, in one line; empty if there are none.

    Args:
        path: the file.
        module: the file, imported.

    Raises:
        InputError: a name is nearly one that progc reads, or another word for the loss, and the file does not define
            the one that is meant.
    """
    told: list[str] = []
    used: set[str] | None = None
    for name, value in vars(module).items():
        own = name.isidentifier() and not name.startswith("_") and name not in READ
        if not own or isinstance(value, (types.ModuleType, type)):
            continue
        near = difflib.get_close_matches(name, TASK, 1, cutoff=_NEAR)
        meant = "loss" if ELSEWHERE.get(name) == _LOSS else near[0] if near else None
        if meant is None and name not in ELSEWHERE:
            continue
        used = _used(path) if used is None else used
        if name in used:
            continue
        if meant is not None and not hasattr(module, meant):
            raise InputError(
                f"{path}: nothing reads `{name}`, and there is no `{meant}`; rename it to {meant}, or begin its name "
                "with an underscore"
            )
        told.append(f"`{name}` ({ELSEWHERE[name] if name in ELSEWHERE else f'did you mean {meant}?'})")
    if not told:
        return ()
    return (
        f"warning: {path}: nothing reads {', '.join(told)}; remove what is not needed, or begin its name with an "
        "underscore",
    )


def _used(path: Path) -> set[str]:
    """Names that the file itself reads: when it is imported, and in what progc calls, directly or not."""
    with tokenize.open(path) as file:
        body = ast.parse(file.read()).body
    definitions = {statement.name: statement for statement in body if isinstance(statement, _DEFINITIONS)}
    todo = [name for name in READ if name in definitions]
    todo += [name for name, own in definitions.items() if isinstance(own, ast.ClassDef)]  # perhaps the network
    used: set[str] = set()
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            at_import = (*statement.decorator_list, *statement.args.defaults, *statement.args.kw_defaults)
            used.update(name for node in at_import if node is not None for name in _loaded(node))
        elif not _is_main(statement):
            used.update(_loaded(statement))
    todo += list(used)
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in definitions and name not in seen:
            seen.add(name)
            inside = set(_loaded(definitions[name])) - {name}
            used |= inside
            todo += inside
    return used


def _loaded(tree: ast.AST) -> Iterator[str]:
    return (node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))


def _is_main(statement: ast.stmt) -> bool:
    """Whether this is `if __name__ == "__main__":`, which does not run here."""
    return isinstance(statement, ast.If) and "__name__" in set(_loaded(statement.test))
