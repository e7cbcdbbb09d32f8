"""KV memory for the slow reference: every block has an id and a count of its users, every contiguous slot an owner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from scheduler.config import SchedulerConfig


class Memory:
    """What both kinds have; sequences go by number, how one leaves is told as ``finished`` or ``evicted``."""

    grows = False
    size = 1
    total: int
    #: allocations by how the memory was left before (``None``: it had never been used)
    taken: Counter[str | None]

    @property
    def free(self) -> int:
        raise NotImplementedError

    @property
    def reserved(self) -> int:
        """Tokens that are handed out."""
        return (self.total - self.free) * self.size

    @property
    def shared(self) -> int:
        """Tokens that are in a block for more than one user, once for each user but one."""
        return 0

    @property
    def largest(self) -> int:
        """The most blocks that one sequence can have."""
        return self.total

    def need(self, tokens: int) -> int:
        """Blocks for so many tokens."""
        raise NotImplementedError

    def hits(self, hashes: Iterable[int], known: int) -> list[int]:
        """The cached blocks of a prompt: its leading ones, and never its last known token."""
        return []

    def fits(self, tokens: int, hits: list[int], without: Iterable[int] = ()) -> bool:
        """Whether ``tokens`` tokens, of which ``hits`` are there, can be had once those of ``without`` are gone."""
        raise NotImplementedError

    def book(self, number: int, tokens: int, hits: list[int]) -> None:
        raise NotImplementedError

    def must_grow(self, number: int, tokens: int) -> bool:
        """Whether so many tokens need one block more than there are."""
        return False

    def grow(self, number: int) -> None:
        raise NotImplementedError

    def enter(self, number: int, hashes: Iterable[int], start: int, end: int) -> None:
        """The blocks that the step from position ``start`` to ``end`` has filled are found by others from now on."""

    def release(self, number: int, how: str) -> None:
        raise NotImplementedError

    def unusable(self, tokens: int) -> int:
        """Free slots in pieces too small for ``tokens`` tokens, where as many are free in all."""
        return 0


class Pages(Memory):
    """Blocks of a fixed size. A released block is free, or stays in the cache until somebody else needs it.

    ``tables`` maps a sequence's number to its block ids.
    """

    grows = True

    def __init__(self, tokens: int, size: int) -> None:
        self.size = size
        self.total = tokens // size
        self.users = [0] * self.total
        self.left: list[str | None] = [None] * self.total
        self.stack = list(reversed(range(self.total)))
        self.cache: dict[int, int] = {}
        self.unused_cached: list[int] = []
        self.tables: dict[int, list[int]] = {}
        self.taken: Counter[str | None] = Counter()

    @property
    def free(self) -> int:
        return len(self.stack) + len(self.unused_cached)

    @property
    def shared(self) -> int:
        return sum(users - 1 for users in self.users if users) * self.size

    def need(self, tokens: int) -> int:
        return (tokens + self.size - 1) // self.size

    def hits(self, hashes: Iterable[int], known: int) -> list[int]:
        found: list[int] = []
        for value in hashes:
            if value not in self.cache or len(found) == (known - 1) // self.size:
                break
            found.append(self.cache[value])
        return found

    def fits(self, tokens: int, hits: list[int], without: Iterable[int] = ()) -> bool:
        users = list(self.users)
        for number in without:
            for block in self.tables[number]:
                users[block] -= 1
        for block in hits:
            users[block] += 1
        return self.need(tokens) - len(hits) <= users.count(0)

    def book(self, number: int, tokens: int, hits: list[int]) -> None:
        for block in hits:
            self.users[block] += 1
            if block in self.unused_cached:
                self.unused_cached.remove(block)
        self.tables[number] = list(hits)
        for _ in range(self.need(tokens) - len(hits)):
            self.grow(number)

    def grow(self, number: int) -> None:
        if self.stack:
            block = self.stack.pop()
        else:
            block = self.unused_cached.pop(0)
            self.cache = {value: other for value, other in self.cache.items() if other != block}
        self.taken[self.left[block]] += 1
        self.users[block] = 1
        self.tables[number].append(block)

    def must_grow(self, number: int, tokens: int) -> bool:
        return self.need(tokens) > len(self.tables[number])

    def enter(self, number: int, hashes: Iterable[int], start: int, end: int) -> None:
        for index, value in enumerate(hashes):
            if start < (index + 1) * self.size <= end and value not in self.cache:
                self.cache[value] = self.tables[number][index]

    def release(self, number: int, how: str) -> None:
        for block in reversed(self.tables.pop(number)):
            self.users[block] -= 1
            if not self.users[block]:
                self.left[block] = how
                (self.unused_cached if block in self.cache.values() else self.stack).append(block)


class Slots(Memory):
    """Contiguous memory, first fit: one owner a token."""

    grows = False
    size = 1

    def __init__(self, tokens: int) -> None:
        self.owner: list[int | None] = [None] * tokens
        self.left: list[str | None] = [None] * tokens
        self.total = tokens
        self.taken: Counter[str | None] = Counter()

    @property
    def free(self) -> int:
        return self.owner.count(None)

    def need(self, tokens: int) -> int:
        return tokens

    def pieces(self) -> list[range]:
        """The free pieces, lowest first."""
        found: list[range] = []
        for slot, owner in enumerate(self.owner):
            if owner is not None:
                continue
            if found and found[-1].stop == slot:
                found[-1] = range(found[-1].start, slot + 1)
            else:
                found.append(range(slot, slot + 1))
        return found

    def best(self, needed: int) -> range | None:
        """The free piece to take ``needed`` slots from."""
        return next((piece for piece in self.pieces() if len(piece) >= needed), None)

    def fits(self, tokens: int, hits: list[int], without: Iterable[int] = ()) -> bool:
        return self.best(self.need(tokens)) is not None

    def book(self, number: int, tokens: int, hits: list[int]) -> None:
        piece = self.best(self.need(tokens))
        if piece is None:
            raise RuntimeError(f"no free piece of {tokens} tokens")
        piece = piece[: self.need(tokens)]
        # new memory, unless somebody gave back every slot of it; and then the first one's story stands for all
        self.taken[None if None in [self.left[slot] for slot in piece] else self.left[piece[0]]] += 1
        for slot in piece:
            self.owner[slot] = number

    def release(self, number: int, how: str) -> None:
        for slot, owner in enumerate(self.owner):
            if owner == number:
                self.owner[slot], self.left[slot] = None, how

    def unusable(self, tokens: int) -> int:
        needed = self.need(tokens)
        pieces = [len(piece) for piece in self.pieces()]
        return sum(length for length in pieces if length < needed) if sum(pieces) >= needed else 0


class Buddies(Slots):
    """Pieces of a power of two tokens: an area is free as a whole, or else its halves are looked at.

    A memory of another size is a row of areas, the largest first.
    """

    @property
    def largest(self) -> int:
        return max(len(area) for area in self.areas())

    def need(self, tokens: int) -> int:
        power = 1
        while power < tokens:
            power *= 2
        return power

    def areas(self) -> list[range]:
        found: list[range] = []
        start = 0
        for order in reversed(range(self.total.bit_length())):
            if self.total & 2**order:
                found.append(range(start, start + 2**order))
                start += 2**order
        return found

    def pieces(self) -> list[range]:
        return [piece for area in self.areas() for piece in self.halves(area)]

    def halves(self, area: range) -> list[range]:
        if all(self.owner[slot] is None for slot in area):
            return [area]
        if len(area) == 1:
            return []
        middle = len(area) // 2
        return self.halves(area[:middle]) + self.halves(area[middle:])

    def best(self, needed: int) -> range | None:
        large = [piece for piece in self.pieces() if len(piece) >= needed]
        return min(large, key=lambda piece: (len(piece), piece.start), default=None)


def build_memory(config: SchedulerConfig) -> Memory:
    """The memory that ``config`` names."""
    if config.pool == "paged":
        return Pages(config.kv_tokens, config.block_tokens)
    return (Buddies if str(config.pool) == "buddy" else Slots)(config.kv_tokens)
