"""An HTTP call on its way from the front to a replica, what comes back, and what a router may know of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from scheduler.prefix_hashes import block_hashes_of
from scheduler.request import DEFAULT_MAX_TOKENS, Request

#: a router knows no tokenizer: so many bytes of a prompt's text count as a token
TOKEN_BYTES = 4
#: and so many tokens as a block, whose beginning two prompts share or do not
BLOCK_TOKENS = 16


@dataclass(frozen=True)
class HttpCall:
    """A request as it came in. ``query`` is raw; ``headers`` have lower-case names."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def request(self, name: str) -> Request | None:
        """What a router may know of it, under the id ``name``; ``None`` where it asks for no tokens."""
        return request_of(name, self.body) if self.method == "POST" else None


class Head(NamedTuple):
    """The answer's beginning. ``lost``: the replica's engine has ended, and this says no more than that."""

    status: int
    headers: list[tuple[bytes, bytes]]
    lost: bool

    @property
    def is_stream(self) -> bool:
        """Whether pieces mean something by themselves: server-sent events."""
        kinds = [value for name, value in self.headers if name == b"content-type"]
        return any(kind.startswith(b"text/event-stream") for kind in kinds)


def request_of(name: str, body: bytes) -> Request | None:
    """The prompt of an OpenAI-style body by its length and the hashes of its blocks.

    Texts are taken by their bytes, :data:`TOKEN_BYTES` a token. Prompts of tokens are taken as they are.
    """
    try:
        fields = json.loads(body)
    except ValueError:
        return None
    if not isinstance(fields, dict):
        return None
    prompt = _prompt(fields)
    if prompt is None:
        return None
    limits = (fields.get(key) for key in ("max_tokens", "max_completion_tokens", "max_output_tokens"))
    most = next((limit for limit in limits if isinstance(limit, int) and limit > 0), DEFAULT_MAX_TOKENS)
    if isinstance(prompt, bytes):
        tokens, hashes = len(prompt) // TOKEN_BYTES, block_hashes_of(prompt, BLOCK_TOKENS * TOKEN_BYTES)
    else:
        tokens, hashes = len(prompt), block_hashes_of(prompt, BLOCK_TOKENS)
    return Request(name, 0, max(1, tokens), most, block_hashes=hashes)


def _prompt(fields: Mapping[str, Any]) -> bytes | list[int] | None:
    """The bytes of a prompt, or its tokens."""
    for key in ("messages", "prompt", "input"):
        prompt = fields.get(key)
        if isinstance(prompt, str):
            return prompt.encode()
        if isinstance(prompt, list) and prompt:
            if all(type(token) is int and 0 <= token < 1 << 31 for token in prompt):
                return prompt
            # a conversation's JSON begins as the JSON of its first part does
            return json.dumps([fields.get("tools"), prompt]).encode()
    return None
