"""A tokenizer on the tokenizers library and jinja alone: it loads neither transformers nor torch, which take seconds.

It is what transformers makes of a model's files, handed over in :class:`TokenizerParts`, and gives the same tokens and
texts: that library only passes them on to the tokenizers library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as LibraryTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: methods of transformers' that have to be its own for its tokenizer to be no more than what it is made of
_PASSED_ON = (
    "encode", "_encode_plus", "decode", "_decode", "batch_decode", "get_vocab", "convert_ids_to_tokens", "__len__",
    "apply_chat_template", "get_chat_template",
)  # fmt: skip


@dataclass(frozen=True)
class TokenizerParts:
    """What a tokenizer is made of: good for another process.

    ``backend``: the tokenizers library's own JSON. ``chat_template`` is ``None`` where there is none. ``names`` are the
    special tokens that a template may name (``bos_token``). ``split_special_tokens``: their texts are texts like any.
    """

    backend: str = field(repr=False)
    chat_template: str | None
    names: dict[str, Any]
    eos_token_id: int | None
    split_special_tokens: bool = False


def parts_of(tokenizer: PreTrainedTokenizerBase) -> TokenizerParts | None:
    """What ``tokenizer`` is made of; ``None`` where it is not the tokenizers library's, or does more than that."""
    from transformers import PreTrainedTokenizerBase
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    kind = type(tokenizer)
    if not issubclass(kind, TokenizersBackend):
        return None
    for name in _PASSED_ON:
        if getattr(kind, name) not in (getattr(TokenizersBackend, name), getattr(PreTrainedTokenizerBase, name)):
            return None
    try:
        library = tokenizer.backend_tokenizer.to_str()
    except Exception:  # the library's own: parts that were written in Python have no JSON
        return None
    try:
        template = tokenizer.get_chat_template()
    except ValueError:
        template = None
    ends = tokenizer.eos_token_id
    return TokenizerParts(
        library, template, dict(tokenizer.special_tokens_map), ends if isinstance(ends, int) else None,
        bool(tokenizer.split_special_tokens),
    )  # fmt: skip


def parts_in(folder: Path) -> TokenizerParts:
    """Those of the embedded model's tokenizer, whose files hold them as they are. Raises ``OSError``."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    names = {name: config[name] for name in ("bos_token", "eos_token", "unk_token") if config.get(name) is not None}
    template = (folder / "chat_template.jinja").read_text()
    return TokenizerParts((folder / "tokenizer.json").read_text(), template, names, config["eos_token_id"])


class LightTokenizer:
    """What is used of a transformers tokenizer, with its names and meanings."""

    def __init__(self, parts: TokenizerParts) -> None:
        self.parts = parts
        self.backend_tokenizer = LibraryTokenizer.from_str(parts.backend)
        self.backend_tokenizer.no_truncation()
        self.backend_tokenizer.no_padding()
        self.backend_tokenizer.encode_special_tokens = parts.split_special_tokens
        self.eos_token_id = parts.eos_token_id
        self.added_tokens_decoder = self.backend_tokenizer.get_added_tokens_decoder()

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    def get_vocab(self) -> dict[str, int]:
        return dict(self.backend_tokenizer.get_vocab(with_added_tokens=True))

    def convert_ids_to_tokens(self, token_id: int) -> str | None:
        return self.backend_tokenizer.id_to_token(token_id)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return str(self.backend_tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The text of a conversation. Raises ``ValueError`` where there is no template, and what a template raises."""
        if self._template is None:
            raise ValueError("it has no chat template")
        if not messages:
            raise ValueError("the conversation has no messages")
        return self._template.render(
            messages=messages, **{"tools": None, "documents": None, **self.parts.names, **variables}
        )

    @cached_property
    def _template(self) -> Template | None:
        if self.parts.chat_template is None:
            return None
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _strftime_now
        return environment.from_string(self.parts.chat_template)


class _GenerationTag(Extension):
    """``{% generation %}`` marks what the model wrote, for training; here it is text like any other."""

    tags = {"generation"}  # noqa: RUF012 (the base class has it for its instances)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _to_json(
    value: object, ensure_ascii: bool = False, indent: int | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:  # fmt: skip
    """As templates expect it: jinja's own escapes what HTML would need."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
