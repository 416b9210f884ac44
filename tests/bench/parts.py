"""The other measurements, by name: what each is called with, and how what it found is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from . import commanding, following, forgetting, growing, idling, reading, starting
from .filling import Filling
from .measure import Place, Workload, measure

MANY = Workload("many", "64 processes, one event at a time", "one", 64)
LARGE = Filling(runs=100_000, run_events=9, large_events=100_000)
ORPHANED = Filling(runs=99_000, run_events=10, orphans=1000)


class Part(NamedTuple):
    """A measurement: `run` at that place with so many seconds and repeats, and the figures in words."""

    run: Callable[[Place, float, int], Mapping[str, float]]
    words: str


def many(place: Place, seconds: float) -> dict[str, float]:
    """Many writers at once: whether one is starved, and what the daemon holds for them."""
    found = measure("runhistd", MANY, place, seconds)
    return {
        "events_s": found.events_s,
        "fairness": found.slowest_events_s / max(found.fastest_events_s, 1e-9),
        "memory": (found.server_rss or 0) / 1e6,
        "worst_ms": found.worst_us / 1000,
    }


PARTS = {
    "many": Part(
        lambda place, seconds, repeats: many(place, seconds),
        "64 processes: {events_s:,.0f} events/s, the slowest {fairness:.0%} of the fastest, worst latency {worst_ms:.0f} ms,"
        " daemon {memory:.0f} MB",
    ),
    "follow": Part(
        lambda place, seconds, repeats: following.run(place, seconds),
        "8 followers at {events_s:,.0f} events/s: p50 {p50:.2f} ms, p99 {p99:.2f} ms, worst {worst:.1f} ms after the commit"
        " began",
    ),
    "read": Part(
        lambda place, seconds, repeats: reading.run(place, LARGE),
        "{runs:,.0f} runs, {events:,.0f} events: list the newest 50 {list:.2f} ms, show a run of 100,000 events"
        " {show:.2f} ms",
    ),
    "start": Part(
        lambda place, seconds, repeats: starting.run(place, ORPHANED, repeats),
        "start with 1,000,000 events, 100,000 runs, 1,000 orphans: {ready:.2f} s until it answers, {adopted:,.0f} adopted",
    ),
    "idle": Part(
        lambda place, seconds, repeats: idling.run(place, 60.0),
        "idle with 64 connections: {wakeups:.1f} wake-ups/s, {cpu_ms:.2f} ms of processor a second, {memory:.0f} MB",
    ),
    "command": Part(
        lambda place, seconds, repeats: commanding.run(place),
        "`runhist list`: {list_ms:.0f} ms of processor, `python -c pass` {nothing_ms:.0f} ms: {list:.1f}×",
    ),
    "retention": Part(
        lambda place, seconds, repeats: forgetting.run(place, 10_000),
        "while retention removes {removed:,.0f} runs in {took_s:.0f} s: appends' p99 {busy_ms:.1f} ms, before"
        " {calm_ms:.1f} ms: {p99:.2f}×",
    ),
    "grow": Part(
        lambda place, seconds, repeats: growing.run(place, seconds, repeats),
        "at {events:,.0f} events {large_events_s:,.0f} events/s, at 100,000 {small_events_s:,.0f}: {ratio:.2f}×",
    ),
}
LONG = "grow"
"""The one that takes many minutes and gigabytes."""
