"""A small tokenizer that can write any text: a token for each byte, one for ``ab``, and an end token."""

from __future__ import annotations

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.tokenizer import Tokenizer

END = 257


def byte_tokenizer(decoder: decoders.Decoder | None = None) -> Tokenizer:
    """``decoder``: another than the plain one for bytes."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: place for place, token in enumerate((*tokens, "ab"))}
    fast = FastTokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoder or decoders.ByteLevel()
    fast.add_special_tokens(["<end>"])
    assert fast.token_to_id("<end>") == END
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=fast))
