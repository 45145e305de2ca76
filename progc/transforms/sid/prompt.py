"""Stage identifiers in the text of a prompt (`<stage-0> a photo of a dog`), and guidance with a stage identifier.

`add_stage_tokens` is for networks that are conditioned by tokenised text. The tokenizer gets a token per stage and the
table of the text encoder a row for each, as DreamBooth (Ruiz et al., CVPR 2023) gives a subject an identifier among the
words of its prompt. It works with any tokenizer and text encoder that have the methods of the transformers library, and
imports none.

`guided` is classifier-free guidance (Ho and Salimans 2022) in which the unconditional half of the batch gets the null
row of the stage identifier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from progc.errors import InputError
from progc.ir.program import StageIdentifier


def stage_token(stage: int) -> str:
    """Returns the word of a stage, such as `<stage-3>`."""
    return f"<stage-{stage}>"


def stage_prompt(prompt: str, stage: int) -> str:
    """Returns the prompt with the stage's word before it."""
    return f"{stage_token(stage)} {prompt}".rstrip()


def add_stage_tokens(tokenizer: Any, model: nn.Module, stages: int, *, init: str = "mean") -> list[int]:
    """Adds a token per stage to tokenizer and text encoder; both are changed in place.

    Args:
        tokenizer: has `add_tokens`, `convert_tokens_to_ids` and a length.
        model: an `nn.Embedding` `[tokens, width]`, or a model with `get_input_embeddings` and
            `resize_token_embeddings`.
        stages: number of stages.
        init: initial value of the new rows: `mean`, the mean of the table; otherwise a word that is a single token of
            the tokenizer, whose row is copied (the paper uses a rare word).

    Returns:
        The ids of the stage tokens, in order.

    Raises:
        InputError: no stage, a token that exists already, a word that is not a single token, or a table that is smaller
            than the vocabulary.
    """
    if stages < 1:
        raise InputError(f"add_stage_tokens: stages={stages}: expected at least 1")
    words = [stage_token(stage) for stage in range(stages)]
    known = [word for word in words if word in tokenizer.get_vocab()]
    if known:
        raise InputError(f"add_stage_tokens: the tokenizer already has {known[0]}; add the tokens only once")
    table = _table(model)
    if len(tokenizer) > table.num_embeddings:
        raise InputError(
            f"add_stage_tokens: the tokenizer knows {len(tokenizer)} tokens and the table has "
            f"{table.num_embeddings} rows; pass the model that belongs to the tokenizer"
        )
    row = _start(tokenizer, table, init)
    tokenizer.add_tokens(words)
    ids = [int(tokenizer.convert_tokens_to_ids(word)) for word in words]
    size = max(table.num_embeddings, max(ids) + 1)
    table = _resized(model, table, size)
    with torch.no_grad():
        table.weight[ids] = row.to(table.weight)
    return ids


def _table(model: nn.Module) -> nn.Embedding:
    table = model if isinstance(model, nn.Embedding) else getattr(model, "get_input_embeddings", lambda: None)()
    if not isinstance(table, nn.Embedding):
        raise InputError(
            f"add_stage_tokens: {type(model).__name__} is not an nn.Embedding and has no "
            "get_input_embeddings; pass the token embedding itself"
        )
    return table


def _start(tokenizer: Any, table: nn.Embedding, init: str) -> torch.Tensor:
    weight = table.weight.detach()
    if init == "mean":
        return weight[: len(tokenizer)].mean(0)
    ids: Sequence[int] = tokenizer(init, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == getattr(tokenizer, "unk_token_id", None):
        raise InputError(f"add_stage_tokens: init={init}: expected `mean` or a word that is a single token")
    return weight[ids[0]].clone()


def _resized(model: nn.Module, table: nn.Embedding, size: int) -> nn.Embedding:
    if size == table.num_embeddings:
        return table
    if model is not table:
        model.resize_token_embeddings(size, mean_resizing=False)  # type: ignore[operator]
        return _table(model)
    old = table.weight
    weight = torch.cat([old.detach(), old.new_zeros(size - old.shape[0], old.shape[1])])
    table.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    table.num_embeddings = size
    return table


Inputs = tuple[tuple[Any, ...], Mapping[str, Any]]


def guided(
    module: Callable[..., Any],
    sid: StageIdentifier,
    conditional: Inputs,
    unconditional: Inputs,
    *,
    scale: float,
    stage: int | None = None,
    channels: int | None = None,
) -> Any:
    """Calls the module once for both halves and returns `u + scale * (c - u)` for every floating output.

    Args:
        module: module of a program with a stage input; dim 0 of all its inputs and outputs is the batch.
        sid: `program.sid`.
        conditional: `(args, kwargs)` of the conditional half, without the stage.
        unconditional: those of the other half, with the same structure and batch size, and the null label or the empty
            prompt; it gets the null stage as well.
        scale: 1 returns the conditional output, 0 the unconditional one.
        stage: stage of the conditional half; by default the last one.
        channels: number of leading entries of dim 1 that are guided; the others stay conditional. None: all.

    Returns:
        The outputs for one half, in the structure that the module returns.

    Raises:
        InputError: the stage is fixed in the graph, the stage does not exist, or the halves do not fit together.
    """
    if sid.input is None:
        raise InputError(f"guided: the stage is fixed to {sid.stage}; make it an input with inject-sid{{stage=input}}")
    stage = sid.stages - 1 if stage is None else stage
    if not 0 <= stage <= sid.null:
        raise InputError(f"guided: stage={stage}: expected 0 to {sid.null} ({sid.null} is the null row)")
    first, spec = pytree.tree_flatten((tuple(conditional[0]), dict(conditional[1])))
    second, other = pytree.tree_flatten((tuple(unconditional[0]), dict(unconditional[1])))
    tensors = [leaf for leaf in first if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if spec != other or not tensors or [_shape(leaf) for leaf in first] != [_shape(leaf) for leaf in second]:
        raise InputError("guided: both halves need inputs of the same structure and shapes, in the same order")
    half = tensors[0].shape[0]
    joined = [_joined(a, b) for a, b in zip(first, second, strict=True)]
    args, kwargs = pytree.tree_unflatten(joined, spec)
    stages = torch.tensor([stage, sid.null], device=tensors[0].device).repeat_interleave(half)
    outputs = module(*args, **kwargs, **{sid.input: stages})
    return pytree.tree_map(lambda leaf: _combined(leaf, half, scale, channels), outputs)


def _shape(leaf: Any) -> Any:
    return leaf.shape if isinstance(leaf, torch.Tensor) else None


def _joined(a: Any, b: Any) -> Any:
    return torch.cat([a, b]) if isinstance(a, torch.Tensor) and a.dim() else a


def _combined(leaf: Any, half: int, scale: float, channels: int | None) -> Any:
    if not isinstance(leaf, torch.Tensor) or not leaf.dim() or leaf.shape[0] != 2 * half:
        return leaf
    given, null = leaf[:half], leaf[half:]
    if not leaf.is_floating_point():
        return given
    combined = null + scale * (given - null)
    if channels is None:
        return combined
    return torch.cat([combined[:, :channels], given[:, channels:]], 1)
