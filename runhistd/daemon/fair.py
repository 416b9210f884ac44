"""The queue of the committer: first come first served while it is short, and in turns when it is long.

What fits into one batch is committed together, so its order matters to nobody but the requests of one connection, and it
is taken as it came. When more waits, everyone gets a share of each batch: the users take turns, and within a user its
connections do, so that who sends much waits for itself. A turn is measured in what it costs, not in requests, or one who
sends large events would get many times what the others get. Whoever is in debt, because its last request was larger
than what was left of its turn, sits out turns until it is paid: surplus round robin (Adiseshu, Parulkar and Varghese,
"A reliable and scalable striping protocol", SIGCOMM 1996). So of two users who wait all the time none is ever ahead by more
than a turn and the cost of two requests, and the same holds for two connections of a user.

Requests of one connection stay in order. What the daemon itself asks for in the name of a user has no connection (verdicts
on dead processes, what was spooled), and is a barrier among that user's requests: all that had come before it is
taken before it, or a verdict would overtake the last words of the process that it is about. Other users' requests never
have to do with it, because every run is one user's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

TURN_COST = 64 * 1024
REQUEST_COST = 4096  # what carrying a request out costs beside its bytes, in bytes whose storing takes as long

T = TypeVar("T")


class Fair(Generic[T]):
    """The queue. `user` and `connection` may be anything that can be a key; None is the daemon itself."""

    def __init__(self) -> None:
        self._arrived: deque[tuple[object, object, T, int]] = deque()
        self._arrived_bytes = 0
        self._sorted = 0
        self._users: _Turns[_User[T]] = _Turns()

    def __len__(self) -> int:
        return len(self._arrived) + self._sorted

    def add(self, item: T, user: object, connection: object, size: int) -> None:
        """Queue an item of so many bytes."""
        self._arrived.append((user, connection, item, size))
        self._arrived_bytes += size

    def take(self, most: int, most_bytes: int) -> list[T]:
        """The next items: at most so many, of at most so many bytes together or one alone."""
        if not self._sorted and len(self._arrived) <= most and self._arrived_bytes <= most_bytes:
            taken = [item for _, _, item, _ in self._arrived]
        else:
            self._sort()
            taken = self._take_in_turns(most, most_bytes)
        self._arrived.clear()
        self._arrived_bytes = 0
        return taken

    def _sort(self) -> None:
        for user, connection, item, size in self._arrived:
            self._users.find(user, _User).add(connection, item, size)
        self._sorted += len(self._arrived)

    def _take_in_turns(self, most: int, room: int) -> list[T]:
        taken: list[T] = []
        while self._sorted and len(taken) < most:
            user = self._users.next()
            item, size = user.first
            if taken and size > room:
                break
            user.remove_first()
            self._users.charge(size + REQUEST_COST, is_done=user.is_empty)
            taken.append(item)
            room -= size
            self._sorted -= 1
        return taken


class _Turn:
    """One that waits for its turn; `credit` is what it may still cost now, and below 0 a debt."""

    def __init__(self) -> None:
        self.credit = 0


W = TypeVar("W", bound=_Turn)


class _Turns(Generic[W]):
    """Those that have something, in the order of their turns."""

    def __init__(self) -> None:
        self._by_key: dict[object, W] = {}
        self._order: deque[object] = deque()

    @property
    def is_empty(self) -> bool:
        return not self._order

    def find(self, key: object, make: Callable[[], W]) -> W:
        """The one of that key; it is made, and takes its turn as the last, where there is none."""
        one = self._by_key.get(key)
        if one is None:
            one = self._by_key[key] = make()
            self._order.append(key)
        return one

    def next(self) -> W:
        """Whose turn it is. Alone, nobody runs up a debt that it would have to pay to whoever comes later."""
        one = self._by_key[self._order[0]]
        if len(self._order) == 1:
            one.credit = max(one.credit, 1)
        while one.credit <= 0:
            one.credit += TURN_COST
            self._order.rotate(-1)
            one = self._by_key[self._order[0]]
        return one

    def charge(self, cost: int, *, is_done: bool) -> None:
        """What the one whose turn it is has cost; it leaves when it has nothing more, and its debt is forgotten."""
        key = self._order[0]
        self._by_key[key].credit -= cost
        if is_done:
            del self._by_key[key]
            self._order.popleft()


class _Line(_Turn, Generic[T]):
    """Items in order, each with its bytes: of one connection, or of the daemon itself."""

    def __init__(self) -> None:
        super().__init__()
        self.items: deque[tuple[T, int]] = deque()

    @property
    def is_empty(self) -> bool:
        return not self.items

    @property
    def first(self) -> tuple[T, int]:
        return self.items[0]

    def remove_first(self) -> None:
        self.items.popleft()


class _Lines(_Turns[_Line[T]]):
    """The lines of a user's connections, which take turns."""

    @property
    def first(self) -> tuple[T, int]:
        return self.next().first

    def remove_first(self) -> None:
        line = self.next()
        _, size = line.first
        line.remove_first()
        self.charge(size + REQUEST_COST, is_done=line.is_empty)


class _User(_Turn, Generic[T]):
    """What a user has waiting: stretches of its connections' requests, with the daemon's own between them."""

    def __init__(self) -> None:
        super().__init__()
        self._stretches: deque[_Line[T] | _Lines[T]] = deque()

    @property
    def is_empty(self) -> bool:
        return not self._stretches

    @property
    def first(self) -> tuple[T, int]:
        return self._stretches[0].first

    def add(self, connection: object, item: T, size: int) -> None:
        last = self._stretches[-1] if self._stretches else None
        if connection is None:
            if not isinstance(last, _Line):
                last = _Line()
                self._stretches.append(last)
            last.items.append((item, size))
            return
        if not isinstance(last, _Lines):
            last = _Lines()
            self._stretches.append(last)
        last.find(connection, _Line).items.append((item, size))

    def remove_first(self) -> None:
        self._stretches[0].remove_first()
        if self._stretches[0].is_empty:
            self._stretches.popleft()
