"""Host memory for the KV of sequences that were swapped out."""

from __future__ import annotations


class HostMemory:
    """Room for the KV of ``tokens`` tokens outside of the device; ``None`` is without limit."""

    def __init__(self, tokens: int | None) -> None:
        self._tokens = tokens
        self._held: dict[int, int] = {}
        self.held_tokens = 0

    def room_for(self, tokens: int) -> bool:
        """Whether the KV of ``tokens`` tokens more can be held."""
        return self._tokens is None or self.held_tokens + tokens <= self._tokens

    def take(self, number: int, tokens: int) -> None:
        """Hold the KV of the ``tokens`` computed tokens of the sequence ``number``.

        Raises ``RuntimeError`` where there is no room (see :meth:`room_for`), or where it holds that sequence already.
        """
        if number in self._held:
            raise RuntimeError(f"the host memory holds {self._held[number]} KV tokens of sequence {number} already")
        if not self.room_for(tokens):
            raise RuntimeError(f"{tokens} KV tokens do not fit: {self.held_tokens} of {self._tokens} are held")
        self._held[number] = tokens
        self.held_tokens += tokens

    def give_back(self, number: int) -> int:
        """Let go of the sequence ``number``. Returns the tokens that were held for it, 0 if none were."""
        tokens = self._held.pop(number, 0)
        self.held_tokens -= tokens
        return tokens
