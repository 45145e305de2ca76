"""Sources in a Python file of the user: finds the model and its example inputs."""

from __future__ import annotations

import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progc.errors import InputError, did_you_mean
from progc.files.python import accepted_arguments, load_file, required_arguments, run
from progc.models.arguments import checked, split
from progc.models.images import ImageConfig
from progc.models.source import Example, Source, derive_example

if TYPE_CHECKING:
    from torch import nn


DROP_PATH = ("drop_path_rate", "drop_path")
"""Arguments of a user's class or function that set the rate of drop-path, by their usual names."""


def file_source(text: str) -> Source:
    """Returns the source `path.py` or `path.py:name`, with arguments for the class or function if there are any.

    The file is not imported until the model is built.

    Raises:
        InputError: the file does not exist, or there is no name after the colon.
    """
    plain, args = split(text)
    head, colon, name = plain.rpartition(":")
    path = Path(head if colon and head.endswith(".py") else plain)
    if colon and not name:
        raise InputError(f"`{text}` has no name after the colon; write {head}:NAME or {head}")
    chosen = name if path == Path(head) and colon else None
    if not path.exists():
        raise InputError(f"no such file: {path}; expected a Python file that defines a model")
    return Source(
        text=text,
        family="file",
        construct=lambda: _construct(path, chosen, args),
        derive=lambda model: _example(path, model),
        prepare=lambda: load_file(path),
        hint=f"write in {path}: def example_inputs(): return (torch.randn(2, 3, 224, 224),)",
        images=lambda: _images(path),
        file=path,
        drop_path=() if args.keys() & set(DROP_PATH) else DROP_PATH,
    )


def _images(path: Path) -> ImageConfig | None:
    """What `data_config` in the file says, a dict as timm makes it."""
    config = getattr(load_file(path), "data_config", None)
    if config is None:
        return None
    if not isinstance(config, Mapping):
        raise InputError(
            f"{path}: data_config is {_kind(config)}; expected a dict such as data_config = "
            '{"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "crop_pct": 0.9}'
        )
    return ImageConfig.of(config, f"{path}: data_config")


def _construct(path: Path, name: str | None, args: Mapping[str, Any]) -> nn.Module:
    from torch import nn

    module = load_file(path)
    label, candidate = _chosen(path, module, name, args)
    if isinstance(candidate, nn.Module):
        if args:
            raise InputError(f"{path}: `{label}` is an instance and takes no arguments, got {', '.join(args)}")
        return candidate
    is_class = isinstance(candidate, type)
    if not callable(candidate) or (is_class and not issubclass(candidate, nn.Module)):
        raise InputError(
            f"{path}: `{label}` is {_kind(candidate)}; expected an nn.Module class, a function that returns one, "
            "or an instance"
        )
    needed = [need for need in required_arguments(candidate) if need not in args]
    if needed:
        what = "the constructor of " if is_class else ""
        raise InputError(
            f"{path}: {what}`{label}` needs arguments ({', '.join(needed)}); give them defaults, or write "
            f"def build(): return {label}(...)"
        )
    known = accepted_arguments(candidate)
    if args and known is not None:
        checked(f"{path}: `{label}`", args, known)
    model = run(path, lambda: candidate(**args), "builds the model")
    if not isinstance(model, nn.Module):
        raise InputError(f"{path}: `{label}` returned {_kind(model)}; expected an nn.Module")
    return model


def _chosen(path: Path, module: types.ModuleType, name: str | None, args: Mapping[str, Any]) -> tuple[str, Any]:
    from torch import nn

    public = {key: value for key, value in vars(module).items() if not key.startswith("__")}
    if name is not None:
        if name not in public:
            models = [key for key, value in public.items() if _is_model(value, module)]
            known = f"; its models: {', '.join(models)}" if models else ""
            raise InputError(f"{path} has no `{name}`{did_you_mean(name, public) or known or '; check the name'}")
        return name, public[name]
    for label in ("build", "model"):
        if label in public and not isinstance(public[label], types.ModuleType):
            return label, public[label]
    classes = {
        key: value
        for key, value in public.items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.__name__
    }
    free = [key for key, value in classes.items() if not set(required_arguments(value)) - args.keys()]
    if len(free) == 1:
        return free[0], classes[free[0]]
    if free:
        raise InputError(f"{path} has several models ({', '.join(free)}); choose one, such as {path}:{free[-1]}")
    if classes:
        key, value = list(classes.items())[-1]
        raise InputError(
            f"{path}: the constructor of `{key}` needs arguments ({', '.join(required_arguments(value))}); "
            f"give them defaults, or write def build(): return {key}(...)"
        )
    raise InputError(
        f"{path} has no model: expected a function `build`, an instance `model`, or one nn.Module class that can be "
        "built without arguments"
    )


def _is_model(value: Any, module: types.ModuleType) -> bool:
    from torch import nn

    if isinstance(value, type):
        return issubclass(value, nn.Module) and value.__module__ == module.__name__
    return isinstance(value, nn.Module)


def _example(path: Path, model: nn.Module) -> Example | None:
    function = getattr(load_file(path), "example_inputs", None)
    if function is None:
        return derive_example(model)
    if not callable(function) or required_arguments(function):
        raise InputError(f"{path}: `example_inputs` must be a function without arguments; write def example_inputs():")
    value = run(path, function, "makes example inputs")
    if isinstance(value, tuple):
        return value, {}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return (), value
    raise InputError(
        f"{path}: example_inputs() returned {_kind(value)}; expected a tuple of positional arguments, "
        "`return (x,)`, or a dict of keyword arguments"
    )


def _kind(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
