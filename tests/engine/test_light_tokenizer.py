"""What a light tokenizer gives is what transformers' own gives, and it is had without loading that library."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.embedded import default_cache_folder, embedded_model_folder
from engine.light_tokenizer import LightTokenizer, TokenizerParts, parts_in, parts_of
from engine.pretrained import tokenizer_from
from engine.tokenizer import Tokenizer

TEMPLATE = """
{%- if tools is not none %}{{ tools | tojson(indent=1) }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- if message.role == 'critic' %}{{ raise_exception('no critics') }}{% endif %}
    {%- set mark = 'outside' %}
    {%- generation %}{% set mark = 'inside' %}{{ bos_token }}{{ message.role | upper }}: {{ message.content | tojson }}
    {%- endgeneration %}
    {{- mark }}{{ eos_token }}
{% endfor %}
{%- if add_generation_prompt %}ASSISTANT:{% endif %}{{ strftime_now('%Y') }} {{ extra }}{{ documents }}"""
MESSAGES = [
    {"role": "system", "content": "skipped"},
    {"role": "user", "content": "<b>'quoted' & \"人工智能\"</b>"},
    {"role": "assistant", "content": "fine"},
]


def words(**options: Any) -> PreTrainedTokenizerFast:
    """A tokenizer with everything that changes a text on its way in or out, or what is put around it."""
    fast = LibraryTokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "hello": 3, "world": 4}, "<unk>"))
    fast.normalizer = normalizers.Lowercase()
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.decoder = decoders.WordPiece()
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast.enable_truncation(4)
    fast.enable_padding(length=9)
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=TEMPLATE, **options
    )


def light(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    parts = parts_of(tokenizer)
    assert parts is not None
    return Tokenizer(LightTokenizer(parts))


WORDS = words()
PAIRS = [
    (Tokenizer(theirs), light(theirs))
    for theirs in (WORDS, words(split_special_tokens=True), byte_tokenizer().underlying)
]


@given(st.lists(st.sampled_from(["hello", "World", "<s>", "</s>", " ", "ab", "人", "\n", "x"])).map("".join))
def test_tokens_and_texts_are_the_same(text: str) -> None:
    for theirs, ours in PAIRS:
        for special_tokens in (False, True):
            tokens = theirs.encode(text, special_tokens=special_tokens)
            assert ours.encode(text, special_tokens=special_tokens) == tokens
            assert ours.decode(tokens) == theirs.decode(tokens)
            assert ours.literal(tokens) == theirs.literal(tokens)


def test_what_is_to_be_known_of_the_tokens_is_the_same() -> None:
    for theirs, ours in PAIRS:
        assert len(ours.underlying) == len(theirs.underlying)
        assert ours.underlying.get_vocab() == theirs.underlying.get_vocab()
        assert ours.underlying.eos_token_id == theirs.underlying.eos_token_id
        assert ours.underlying.added_tokens_decoder.keys() == theirs.underlying.added_tokens_decoder.keys()
        for token_id in (0, 3, 10_000):
            assert ours.underlying.convert_ids_to_tokens(token_id) == theirs.underlying.convert_ids_to_tokens(token_id)


@pytest.mark.parametrize(
    "variables",
    [{}, {"extra": "more"}, {"add_generation_prompt": False}, {"bos_token": "other"}, {"tools": [{"name": "世界"}]}],
)
def test_conversations_are_the_same(variables: dict[str, Any]) -> None:
    theirs, ours = PAIRS[0]
    text = ours.chat_text(MESSAGES, **variables)
    assert text == theirs.chat_text(MESSAGES, **variables)
    assert str(datetime.now().year) in text
    assert ours.encode_chat(MESSAGES, **variables) == theirs.encode_chat(MESSAGES, **variables)


def test_what_a_template_refuses_is_refused() -> None:
    for tokenizer in PAIRS[0]:
        with pytest.raises(TemplateError, match="no critics"):
            tokenizer.chat_text([{"role": "critic", "content": "bad"}])
        with pytest.raises(ValueError, match=r"empty|no messages"):
            tokenizer.chat_text([])
    for tokenizer in PAIRS[2]:
        with pytest.raises(ValueError, match="template"):
            tokenizer.chat_text(MESSAGES)


def test_a_template_cannot_reach_beyond_its_variables() -> None:
    parts = parts_of(WORDS)
    assert parts is not None
    for template in ("{{ messages.append(1) }}", "{{ ''.__class__.__mro__ }}"):
        with pytest.raises(TemplateError):
            LightTokenizer(replace(parts, chat_template=template)).apply_chat_template(MESSAGES)


def test_what_does_more_than_the_library_is_not_taken_apart() -> None:
    class Shouting(PreTrainedTokenizerFast):
        def _decode(self, *arguments: Any, **options: Any) -> str:
            return super()._decode(*arguments, **options).upper()

    shouting = Shouting(tokenizer_object=WORDS.backend_tokenizer)
    shouting.name_or_path = "where/it/is"
    assert parts_of(shouting) is None
    assert Tokenizer(shouting).source == "where/it/is"
    assert Tokenizer(WORDS).source == light(WORDS).source


def test_a_tokenizer_is_made_again_of_its_parts_or_read_where_it_was(tmp_path: Path) -> None:
    WORDS.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    parts = Tokenizer(WORDS).source
    assert isinstance(tokenizer_from(parts).underlying, LightTokenizer)
    assert isinstance(tokenizer_from(str(tmp_path)).underlying, PreTrainedTokenizerFast)
    assert tokenizer_from(parts).encode("hello world") == tokenizer_from(str(tmp_path)).encode("hello world")


@pytest.mark.model
def test_the_embedded_models_files_are_what_transformers_reads_in_them() -> None:
    folder = embedded_model_folder(default_cache_folder())
    theirs = parts_of(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    ours = parts_in(folder)
    assert theirs is not None
    assert json.loads(LightTokenizer(ours).backend_tokenizer.to_str()) == json.loads(theirs.backend)
    assert replace(ours, backend="") == replace(theirs, backend="")


PROBE = """
import pickle, sys
from engine.light_tokenizer import LightTokenizer
from engine.pretrained import tokenizer_from
from engine.tokenizer import Tokenizer
tokenizer = Tokenizer(LightTokenizer(pickle.load(sys.stdin.buffer)))
tokenizer.encode_chat([{"role": "user", "content": "hello"}])
print([name for name in ("torch", "transformers") if name in sys.modules])
"""


def test_it_loads_neither_transformers_nor_torch() -> None:
    import pickle

    parts = parts_of(WORDS)
    assert isinstance(parts, TokenizerParts)
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", PROBE], input=pickle.dumps(parts), capture_output=True, check=True, cwd=root
    )
    assert found.stdout == b"[]\n"
