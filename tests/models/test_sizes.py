"""Size text: what parses, what does not and what the message says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from progc.errors import InputError
from progc.models.sizes import KEYS, PRESETS, Size, parse_sizes


def test_absolute_and_relative_sizes() -> None:
    sizes = parse_sizes("depth=12, width = 768,heads*2,mlp=*1.5")
    assert sizes.entries == {
        "depth": Size(12, False),
        "width": Size(768, False),
        "heads": Size(2, True),
        "mlp": Size(1.5, True),
    }
    assert sizes.text == "depth=12, width = 768,heads*2,mlp=*1.5"
    assert str(sizes) == "depth=12,width=768,heads*2,mlp*1.5"


@pytest.mark.parametrize("key", ["blocks.3.heads", "layers.0.blocks", "encoder_layer_#", "layer*", "a-b"])
def test_names_of_axes_and_chains_are_keys(key: str) -> None:
    assert parse_sizes(f"{key}*2").entries == {key: Size(2, True)}
    assert parse_sizes(f"{key}=2").entries == {key: Size(2, False)}


def test_whole_factors_are_integers() -> None:
    assert type(parse_sizes("depth*2.0").entries["depth"].value) is int
    assert type(parse_sizes("mlp_ratio=4").entries["mlp_ratio"].value) is int
    assert parse_sizes("mlp_ratio=2.5").entries["mlp_ratio"] == Size(2.5, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty sizes; write for example"),
        ("depth", "expected key=number or key*factor, got `depth`"),
        ("depth=", "expected key=number or key*factor, got `depth=`"),
        ("=12", "expected key=number or key*factor, got `=12`"),
        ("depth=12,", "expected key=number or key*factor, got an empty entry"),
        ("depth=12=13", "expected key=number or key*factor, got `depth=12=13`"),
        ("depth=twelve", "`depth`: expected a positive number, got `twelve`"),
        ("depth=-1", "`depth`: expected a positive number, got `-1`"),
        ("depth=0", "`depth`: expected a positive number, got `0`"),
        ("width=1e999", "`width`: expected a positive number, got `1e999`"),
        ("width*0.5", "factor 0.5 of `width` would shrink it; expected a factor of at least 1"),
        ("width=1.5", "`width`: expected an integer, got 1.5; for a factor write width*1.5"),
        ("width=3,width*2", "`width` is given twice"),
    ],
)
def test_bad_sizes_say_given_and_expected(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_sizes(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    st.dictionaries(
        st.sampled_from([*KEYS, "blocks.3.heads", "layer2"]),
        st.builds(Size, st.integers(1, 10**6), st.booleans())
        | st.builds(Size, st.sampled_from([1.5, 2.25]), st.just(True)),
        min_size=1,
    )
)
def test_printing_and_parsing_again_is_the_identity(entries: dict[str, Size]) -> None:
    text = ",".join(f"{key}{'*' if size.relative else '='}{size.value}" for key, size in entries.items())
    assert parse_sizes(text).entries == entries
    assert parse_sizes(str(parse_sizes(text))).entries == entries


def test_presets_parse_to_whole_heads() -> None:
    for text in PRESETS.values():
        sizes = parse_sizes(text).entries
        assert set(sizes) == {"depth", "width", "heads", "mlp_ratio"}
        assert sizes["width"].value % sizes["heads"].value == 0
