"""The committer's queue: order where somebody relies on it, turns where many wait."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from runhistd.daemon.fair import REQUEST_COST, TURN_COST, Fair

NO_BOUND = 1 << 60


class Item(NamedTuple):
    """A request: whose, over which connection (None: the daemon's own), which of all, and its bytes."""

    user: int
    connection: int | None
    number: int
    size: int


def queue_of(items: list[Item]) -> Fair[Item]:
    queue: Fair[Item] = Fair()
    for item in items:
        queue.add(item, item.user, item.connection, item.size)
    return queue


def drained(queue: Fair[Item], most: int = 10, most_bytes: int = NO_BOUND) -> list[Item]:
    taken = []
    while len(queue):
        taken += queue.take(most, most_bytes)
    return taken


def flood(user: int, connection: int, count: int, size: int = 100) -> list[Item]:
    return [Item(user, connection, number, size) for number in range(count)]


SIZES = st.one_of(st.integers(0, 300), st.integers(0, 3 * TURN_COST))
ARRIVALS = st.lists(st.tuples(st.integers(0, 3), st.one_of(st.none(), st.integers(0, 3)), SIZES), max_size=60)
HISTORIES = st.lists(st.tuples(ARRIVALS, st.integers(1, 20), st.integers(1, 8 * TURN_COST)), max_size=8)


@given(HISTORIES)
def test_whatever_comes_and_is_taken_nothing_is_lost_and_what_must_keep_its_order_keeps_it(
    history: list[tuple[list[tuple[int, int | None, int]], int, int]],
) -> None:
    queue: Fair[Item] = Fair()
    numbers = itertools.count()
    came: list[Item] = []
    taken: list[Item] = []
    for arrivals, most, most_bytes in history:
        for user, connection, size in arrivals:
            item = Item(user, connection, next(numbers), size)
            came.append(item)
            queue.add(item, user, connection, size)
        batch = queue.take(most, most_bytes)
        assert len(batch) <= most
        assert len(batch) <= 1 or sum(item.size for item in batch) <= most_bytes
        assert batch or not len(queue)
        taken += batch
        assert len(queue) == len(came) - len(taken)
    taken += drained(queue)
    assert sorted(taken, key=lambda item: item.number) == came
    place = {item.number: i for i, item in enumerate(taken)}
    last_of_line: dict[tuple[int, int | None], int] = {}
    last_of_user: dict[int, int] = {}  # the place of the last barrier, or of the last item before one
    furthest: defaultdict[int, int] = defaultdict(lambda: -1)
    for item in came:
        at = place[item.number]
        assert at > last_of_line.get((item.user, item.connection), -1)  # the order of a connection
        assert at > last_of_user.get(item.user, -1)  # nothing of a user overtakes its barrier
        last_of_line[item.user, item.connection] = at
        furthest[item.user] = max(furthest[item.user], at)
        if item.connection is None:
            assert at == furthest[item.user]  # and the barrier overtakes nothing
            last_of_user[item.user] = at


@given(
    st.lists(st.lists(st.integers(0, 2 * TURN_COST), min_size=50, max_size=50), min_size=2, max_size=4),
    st.integers(1, 30),
)
def test_of_users_who_wait_all_the_time_none_is_ahead_by_more_than_a_turn_and_two_requests(
    sizes: list[list[int]], most: int
) -> None:
    items = [Item(user, 0, i, size) for user, line in enumerate(sizes) for i, size in enumerate(line)]
    left = Counter(item.user for item in items)
    cost: Counter[int] = Counter()
    largest = max(item.size for item in items) + REQUEST_COST
    for item in drained(queue_of([Item(-1, 0, 0, 0), *items]), most):
        cost[item.user] += item.size + REQUEST_COST
        left[item.user] -= 1
        if any(left[user] == 0 for user in range(len(sizes))):
            break  # from here on somebody waits no more
        served = [cost[user] for user in range(len(sizes))]
        assert max(served) - min(served) <= TURN_COST + 2 * largest


def test_what_fits_into_one_batch_is_taken_as_it_came() -> None:
    items = [*flood(1, 1, 5), *flood(2, 2, 5), *flood(1, 3, 5)]
    assert queue_of(items).take(15, NO_BOUND) == items


def test_a_user_who_sends_little_does_not_wait_for_one_who_floods() -> None:
    queue = queue_of([*(item for connection in range(100) for item in flood(1, connection, 100)), *flood(2, 0, 5)])
    first = queue.take(1000, NO_BOUND)
    assert [item.user for item in first[:30]].count(2) == 5


def test_a_connection_that_sends_little_does_not_wait_for_one_that_floods() -> None:
    first = queue_of([*flood(1, 1, 5000), *flood(1, 2, 5)]).take(1000, NO_BOUND)
    assert sum(item.connection == 2 for item in first) == 5


def test_large_requests_do_not_buy_more_than_their_turn() -> None:
    queue = queue_of([*flood(1, 1, 1000, 1 << 20), *flood(2, 2, 1000)])
    first = queue.take(300, NO_BOUND)
    assert Counter(item.user for item in first)[2] >= 280  # about a MiB in small ones for one large one


def test_one_who_was_alone_pays_no_debt_of_that_time() -> None:
    queue = queue_of(flood(1, 1, 3000, 1 << 20))
    queue.take(1000, NO_BOUND)
    for item in flood(2, 2, 2000, 1 << 20):
        queue.add(item, item.user, item.connection, item.size)
    assert Counter(item.user for item in queue.take(100, NO_BOUND)) == {1: 50, 2: 50}


def test_the_daemons_own_requests_do_not_wait_for_other_users() -> None:
    queue = queue_of([*flood(1, 1, 5000), Item(2, 7, 0, 100), Item(2, None, 1, 100), Item(2, 7, 2, 100)])
    first = [item for item in queue.take(100, NO_BOUND) if item.user == 2]
    assert [item.number for item in first] == [0, 1, 2]
