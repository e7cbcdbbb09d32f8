"""Which tokens keep an output within a grammar, one token at a time, through llguidance."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.tokenizer import Tokenizer
from scheduler.request import Grammar

#: a bit for each token of the vocabulary, ``int32[ceil(vocab / 32)]``, the lowest first
Bits = npt.NDArray[np.int32]
#: stands for the end of the text while a grammar is followed
_END = "<|lockstep-end-of-grammar|>"
#: between the parts of a JSON text. A model that would put in whitespace for ever is made to go on
_WHITESPACE = r"[ \t\r\n]{1,32}"
#: a text whose tokens the library has to read as the tokenizer does
_PROBE = '{"name": "J\u00f6rg \u732b", "of":\n\t[1, 22]}'
#: compiled grammars that are kept for the next request with the same one
_KEPT = 64


class GrammarError(ValueError):
    """A grammar that is wrong or cannot be followed; the message is one line."""


class Grammars:
    """Compiles grammars over the tokens of one model.

    ``vocab`` is the width of the model's logits, ``end_token_ids`` what it ends a text with. Any thread may ask.

    Raises :class:`GrammarError` for a tokenizer whose tokens the library cannot read.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int, end_token_ids: Iterable[int] = ()) -> None:
        self._tokens, self.end = _tokens_of(tokenizer)
        self.end_bits = bits_of((token_id for token_id in end_token_ids if token_id < vocab), vocab)
        #: the tokens that there are
        self.real_bits = bits_of((token_id for token_id in range(vocab) if token_id != self.end), vocab)
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()
        self._using = threading.Lock()

    def check(self, grammar: Grammar) -> None:
        """Raise :class:`GrammarError` where ``grammar`` is wrong, with the library's reason."""
        self.matcher(grammar)

    def matcher(self, grammar: Grammar, *, to_the_end: bool = False) -> GrammarMatcher:
        """Follows ``grammar`` from its beginning. ``to_the_end``: the text ends only where nothing else can follow.

        Raises :class:`GrammarError` as :meth:`check` does.
        """
        with self._using:
            compiled = self._compiled.pop(grammar, None) or self._compile(grammar)
            self._compiled[grammar] = compiled
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
            matcher = GrammarMatcher(self, compiled.deep_copy(), to_the_end)
        if matcher.complete:
            raise GrammarError(f"the {grammar.kind} grammar is wrong: no text but the empty one is in it")
        return matcher

    def _compile(self, grammar: Grammar) -> Any:
        library = _llguidance()
        limits = library.LLParserLimits(verbose_errors=False)
        source = _library_source(grammar, library.LLMatcher)
        matcher = library.LLMatcher(self._tokens, source, log_level=0, limits=limits)
        if matcher.is_error():
            raise GrammarError(f"the {grammar.kind} grammar is wrong: {_one_line(matcher.get_error())}")
        return matcher


class GrammarMatcher:
    """How far the output of one request has got in its grammar.

    ``allowed``: the tokens that may come next, never none; end tokens among them where the text may end. ``complete``:
    nothing can follow what there is.
    """

    def __init__(self, grammars: Grammars, matcher: Any, to_the_end: bool) -> None:
        self._grammars = grammars
        self._matcher = matcher
        self._to_the_end = to_the_end
        self.complete = False
        self.allowed = grammars.real_bits
        self._look()

    def accept(self, token_id: int) -> None:
        """The output goes on with ``token_id``, which was allowed.

        Raises :class:`GrammarError` where the library gives up: the grammar takes too much memory or time to follow.
        """
        if self.complete:
            return
        if self._grammars.end_bits[token_id // 32] >> token_id % 32 & 1:
            self.complete = True
            return
        self._matcher.consume_token(token_id)
        self._look()

    def _look(self) -> None:
        grammars, matcher = self._grammars, self._matcher
        given = np.frombuffer(matcher.compute_bitmask(), dtype=np.int32)
        if matcher.is_error():
            raise GrammarError(f"the grammar cannot be followed: {_one_line(matcher.get_error())}")
        words = len(grammars.real_bits)
        allowed = np.zeros(words, dtype=np.int32)
        allowed[: len(given)] = given[:words]
        allowed &= grammars.real_bits
        may_end = bool(given[grammars.end // 32] >> grammars.end % 32 & 1)
        if not allowed.any():
            if not may_end:
                raise GrammarError("the grammar cannot be followed: no token of the model can come next")
            self.complete = True
            return
        if may_end and not self._to_the_end:
            allowed |= grammars.end_bits
        self.allowed = allowed


def bits_of(token_ids: Iterable[int], vocab: int) -> Bits:
    """The bits of ``token_ids``, all of which are below ``vocab``."""
    flags = np.zeros(-(-vocab // 32) * 32, dtype=np.uint8)
    flags[np.fromiter(token_ids, dtype=np.int64)] = 1
    return np.packbits(flags, bitorder="little").view(np.int32)


def _tokens_of(tokenizer: Tokenizer) -> tuple[Any, int]:
    """The library's view of the tokens, and the id of one more that stands for the end.

    A model may have several end tokens, or none; and the library must not take an ordinary one for it.
    """
    fast = getattr(tokenizer.underlying, "backend_tokenizer", None)
    if fast is None:
        kind = type(tokenizer.underlying).__name__
        raise GrammarError(f"grammars need a tokenizer of the tokenizers library; this model has a {kind}")
    extended = type(fast).from_str(fast.to_str())
    extended.no_padding()
    extended.no_truncation()
    extended.add_special_tokens([_END])
    end = extended.token_to_id(_END)
    description = json.loads(extended.to_str())
    steps = (description["decoder"] or {}).get("decoders", ())
    # one that was converted from GGUF has more steps, by which the library takes it for another kind
    description["decoder"] = next((step for step in steps if step["type"] == "ByteLevel"), description["decoder"])
    try:
        tokens = _llguidance().LLTokenizer(json.dumps(description), eos_token=end)
    except ValueError as error:
        reason = _one_line(str(error))
        raise GrammarError(f"grammars cannot be followed with this model's tokenizer: {reason}") from error
    ids = tokenizer.encode(_PROBE, special_tokens=False)
    ours, theirs = tokenizer.decode(ids).lstrip(), tokens.decode_str(ids).lstrip()
    if ours != theirs:
        raise GrammarError(
            f"grammars cannot be followed with this model's tokenizer: it writes {ours!r} where the library expects "
            f"{theirs!r}"
        )
    return tokens, end


def _library_source(grammar: Grammar, library: Any) -> str:
    """``grammar`` in the library's own words."""
    if grammar.kind == "regex":
        return str(library.grammar_from_regex(grammar.source))
    if grammar.kind == "lark":
        return str(library.grammar_from_lark(grammar.source))
    source = grammar.source if grammar.kind == "json_schema" else '{"type": "object"}'
    try:
        schema = json.loads(source)
    except json.JSONDecodeError as error:
        raise GrammarError(f"the json_schema grammar is wrong: not JSON ({error})") from error
    if not isinstance(schema, dict | bool):
        raise GrammarError("the json_schema grammar is wrong: a schema is an object or a boolean")
    return str(library.grammar_from_json_schema(source, defaults={"whitespace_pattern": _WHITESPACE}))


def _llguidance() -> Any:
    """Imported where the first grammar is asked for: whoever needs none need not have it."""
    try:
        import llguidance
    except ImportError as error:
        raise GrammarError("grammars need the package llguidance: pip install 'lockstep[engine]'") from error
    return llguidance


def _one_line(message: str) -> str:
    return " ".join(message.split())
