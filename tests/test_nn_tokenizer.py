"""Tokens of SmolLM2's tokenizer: known ids, and text that comes back unchanged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icecore import nn


@pytest.fixture(scope="module")
def tokenizer():
    pytest.importorskip("tokenizers")
    pytest.importorskip("gguf")
    try:
        return nn.load_tokenizer(nn.find_smollm2())
    except ImportError as error:
        pytest.skip(str(error))


def test_known_ids(tokenizer):
    tokens = tokenizer.encode("Hello world!")
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [19556, 905, 17]


def test_chat_template_of_the_model_card(tokenizer):
    text = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n"
    )
    expected = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407]
    expected += [19712, 8182, 2, 198, 1, 4093, 198]
    assert tokenizer.encode(text).tolist() == expected
    assert tokenizer.decode(expected) == text


def test_digits_are_tokens_of_their_own(tokenizer):
    tokens = tokenizer.encode("at  123")  # the split before a digit keeps the two spaces together
    assert [tokenizer.decode([token]) for token in tokens] == ["at", "  ", "1", "2", "3"]


def test_special_tokens(tokenizer):
    assert tokenizer.special["<|endoftext|>"] == 0
    assert tokenizer.special["<|im_start|>"] == 1
    assert tokenizer.end == tokenizer.special["<|im_end|>"] == 2


def test_empty_text(tokenizer):
    assert tokenizer.encode("").tolist() == []
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize(
    "text",
    ["naïve café", "日本語のテキスト", "🙂 👩‍👩‍👧", "e\u0301 \u200d \x00\t\r\n", "  a\n\n  b  ", "½ ٣ ²"],
)
def test_round_trip_of_awkward_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


# SmolLM2's vocabulary lacks the bytes of a few control characters and of the planes from U+40000
COVERED = st.characters(exclude_categories=("Cs", "Cc"), max_codepoint=0x3FFFF)


@settings(deadline=None)
@given(text=st.text(COVERED))
def test_round_trip_of_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_that_the_vocabulary_lacks_are_left_out(tokenizer):
    assert tokenizer.decode(tokenizer.encode("one\x04 two")) == "one two"


def write_tokenizer(path, **metadata):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    kinds = {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}
    for key, value in metadata.items():
        kinds[type(value)](f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"model": "llama"}, "tokenizer llama"),
        ({"model": "gpt2", "pre": "qwen2"}, "pre-tokenizer qwen2"),
        ({}, r"no tokenizer\.ggml\.model"),
        ({"model": "gpt2"}, r"no tokenizer\.ggml\.tokens"),
    ],
)
def test_tokenizer_of_another_kind(tmp_path, metadata, message):
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match=message):
        nn.load_tokenizer(write_tokenizer(tmp_path / "tokenizer.gguf", **metadata))


def byte_tokenizer(**changes):
    """Metadata of a tokenizer whose tokens are single bytes, and of added ones: special (type 3) and not (type 4)."""
    tokenizers = pytest.importorskip("tokenizers")
    names = [*sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), "<|end|>", "<think>", "    "]
    types = [1] * 256 + [3, 4, 4]
    return {"model": "gpt2", "tokens": names, "token_type": types, "merges": ["a b"], "eos_token_id": 256} | changes


def test_tokens_that_a_user_added_are_not_split_and_are_not_special(tmp_path):
    metadata = byte_tokenizer()
    names, end = metadata["tokens"], 256
    names.append("ab")
    metadata["token_type"].append(1)
    tokenizer = nn.load_tokenizer(write_tokenizer(tmp_path / "tokenizer.gguf", **metadata))
    text = "ab<think>    a<|end|>"
    tokens = tokenizer.encode(text).tolist()
    assert [names[token] for token in tokens] == ["ab", "<think>", "    ", "a", "<|end|>"]
    assert tokenizer.decode(tokens) == text
    assert tokenizer.special == {"<|end|>": end} and tokenizer.end == end


@pytest.mark.parametrize(
    "change, message",
    [
        ({"eos_token_id": 259}, r"eos_token_id must lie in 0\.\.258, got 259"),
        ({"token_type": [1] * 258}, "have types, got 259 and 258 types"),
        ({"tokens": ["a"] * 259}, "259 tokens must differ"),
        ({"merges": ["a"]}, "no tokenizer that can be used"),
        ({"merges": ["a \u20ac"]}, "no tokenizer that can be used"),
        ({"merges": 3}, "no tokenizer that can be used"),
        ({"tokens": 3}, "no tokenizer that can be used"),
    ],
)
def test_tokenizers_that_cannot_be_are_refused(tmp_path, change, message):
    metadata = byte_tokenizer() | {"merges": ["a b"], "tokens": [*byte_tokenizer()["tokens"][:-1], "ab"]}
    with pytest.raises(ValueError, match=rf"tokenizer\.gguf .*{message}"):
        nn.load_tokenizer(write_tokenizer(tmp_path / "tokenizer.gguf", **metadata | change))
