"""Stage identifiers as words of a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from progc.errors import InputError
from progc.transforms.sid.prompt import add_stage_tokens, stage_prompt

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "dog", "sks"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    from transformers import BertTokenizer

    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    made = BertTokenizer(str(vocabulary))
    if len(made) != len(WORDS):  # later versions read the vocabulary itself
        made = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})
    assert len(made) == len(WORDS)
    return made


def encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=12, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return CLIPTextModel(config).eval()


def test_prompts() -> None:
    assert stage_prompt("a photo of a dog", 2) == "<stage-2> a photo of a dog"
    assert stage_prompt("", 0) == "<stage-0>"


def test_a_stage_is_one_token_and_starts_at_the_mean(tokenizer: Any) -> None:
    model = encoder()
    old = model.get_input_embeddings().weight.detach().clone()
    before = tokenizer("a photo of a dog")["input_ids"]
    ids = add_stage_tokens(tokenizer, model, 3)
    table = model.get_input_embeddings().weight
    assert ids == [10, 11, 12] and table.shape == (13, 8)
    assert torch.equal(table[:10], old) and torch.allclose(table[10:], old.mean(0).expand(3, 8))
    assert tokenizer("a photo of a dog")["input_ids"] == before
    with_stage = tokenizer(stage_prompt("a photo of a dog", 1))["input_ids"]
    assert with_stage == [before[0], 11, *before[1:]]
    out = model(torch.tensor([with_stage])).last_hidden_state
    out.square().sum().backward()
    gradient = model.get_input_embeddings().weight.grad
    assert bool(gradient[11].any()) and not gradient[10].any()


def test_a_table_alone_and_the_row_of_a_rare_word(tokenizer: Any) -> None:
    table = nn.Embedding(len(WORDS), 4)
    old = table.weight.detach().clone()
    ids = add_stage_tokens(tokenizer, table, 2, init="sks")
    assert table.num_embeddings == 12 and torch.equal(table.weight[ids], old[[9, 9]])
    assert torch.equal(table(torch.tensor([4, 11])), torch.stack([old[4], old[9]]))


def test_a_table_with_room_keeps_its_size(tokenizer: Any) -> None:
    table = nn.Embedding(16, 4)
    old = table.weight.detach().clone()
    assert add_stage_tokens(tokenizer, table, 2) == [10, 11]
    assert table.weight.shape == (16, 4) and torch.equal(table.weight[10], old[:10].mean(0))
    assert torch.equal(table.weight[12:], old[12:])


def test_what_is_refused(tokenizer: Any) -> None:
    table = nn.Embedding(len(WORDS), 4)
    with pytest.raises(InputError, match="stages=0: expected at least 1"):
        add_stage_tokens(tokenizer, table, 0)
    with pytest.raises(InputError, match="init=photo dog: expected `mean` or a word"):
        add_stage_tokens(tokenizer, table, 2, init="photo dog")
    with pytest.raises(InputError, match="init=zebra: expected `mean` or a word"):
        add_stage_tokens(tokenizer, table, 2, init="zebra")
    with pytest.raises(InputError, match="knows 10 tokens and the table has 5 rows"):
        add_stage_tokens(tokenizer, nn.Embedding(5, 4), 2)
    with pytest.raises(InputError, match="Linear is not an nn.Embedding"):
        add_stage_tokens(tokenizer, nn.Linear(2, 2), 2)
    assert len(tokenizer) == len(WORDS)  # nothing was added on the way
    add_stage_tokens(tokenizer, table, 1)
    with pytest.raises(InputError, match="has <stage-0>; add the tokens only once"):
        add_stage_tokens(tokenizer, table, 1)
