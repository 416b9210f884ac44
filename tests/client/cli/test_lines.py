"""What is recorded of a program's output, by the pieces that it arrives in."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runhist.cli.lines import MAX_LINE_BYTES, LineCutter


def texts(*chunks: bytes, max_line_bytes: int = MAX_LINE_BYTES) -> list[str]:
    cutter = LineCutter(max_line_bytes)
    lines = [line for chunk in chunks for line in cutter.feed(chunk)]
    last = cutter.finish()
    return [line.text for line in [*lines, *([last] if last else [])]]


def test_a_line_is_given_out_when_its_newline_comes() -> None:
    cutter = LineCutter()
    assert cutter.feed(b"one\ntw") != []
    assert cutter.feed(b"") == []
    assert [line.text for line in cutter.feed(b"o\n\n")] == ["two", ""]
    assert cutter.finish() is None


def test_a_last_line_without_newline_counts() -> None:
    assert texts(b"a\nb") == ["a", "b"]


def test_the_carriage_return_of_a_terminal_is_no_part_of_the_line() -> None:
    assert texts(b"one\r\ntwo\r", b"\nthree\r\r\n") == ["one", "two", "three"]


def test_of_a_progress_line_the_last_state_counts() -> None:
    assert texts(b"10%\r20", b"%\r", b"100%\nnext\r1\r2\r") == ["100%", "2"]


def test_a_progress_bar_that_redraws_for_ever_holds_one_state() -> None:
    cutter = LineCutter(max_line_bytes=100)
    for i in range(1000):
        assert cutter.feed(b"\r%d of 1000" % i) == []
    assert cutter.finish() == ("999 of 1000", None, 11)


def test_a_line_of_the_greatest_length_is_whole_also_while_its_end_is_awaited() -> None:
    longest = b"x" * MAX_LINE_BYTES
    for chunks in ([longest + b"\n"], [longest, b"\n"], [longest + b"\r", b"\n"], [longest + b"\r\n"], [longest]):
        assert texts(*chunks) == [longest.decode()]


def test_a_longer_line_is_split_and_nothing_is_lost() -> None:
    long = b"0123456789" * 20_000
    parts = texts(long[:70_000], long[70_000:] + b"\nend")
    assert [len(part) for part in parts[:-2]] == [MAX_LINE_BYTES] * 3
    assert "".join(parts[:-1]).encode() == long
    assert parts[-1] == "end"


def test_a_split_leaves_characters_whole() -> None:
    assert texts("aé€😀bcdefg😀".encode(), max_line_bytes=8) == ["aé€", "😀bcde", "fg😀"]


def test_a_split_of_what_is_no_text_ends() -> None:
    assert len(texts(b"\x80" * 100, max_line_bytes=10)) == 10


def test_bytes_that_are_not_utf_8_are_replaced_and_kept() -> None:
    (line,) = LineCutter().feed(b"caf\xe9\n")
    assert line == ("caf\N{REPLACEMENT CHARACTER}", base64.b64encode(b"caf\xe9").decode(), 4)


@pytest.mark.parametrize("raw", [b"a\0b", "\ud800".encode("utf-8", "surrogatepass")])
def test_what_json_cannot_hold_is_replaced_and_kept(raw: bytes) -> None:
    (line,) = LineCutter().feed(raw + b"\n")
    assert "\0" not in line.text and line.text.encode()
    assert line.base64 is not None and base64.b64decode(line.base64) == raw


def test_escape_sequences_are_left_as_they_are() -> None:
    assert texts(b"\x1b[31mred\x1b[0m\n") == ["\x1b[31mred\x1b[0m"]


@given(st.lists(st.binary(max_size=40), max_size=20), st.integers(4, 20))
def test_how_output_is_cut_into_pieces_changes_nothing_but_split_progress(chunks: list[bytes], limit: int) -> None:
    chunks = [chunk.replace(b"\r", b"") for chunk in chunks]
    whole = b"".join(chunks)
    cutter = LineCutter(limit)
    lines = [line for chunk in chunks for line in cutter.feed(chunk)]
    last = cutter.finish()
    if last is not None:
        lines.append(last)
    kept = [base64.b64decode(line.base64) if line.base64 else line.text.encode() for line in lines]
    assert b"".join(kept) == whole.replace(b"\n", b"")
    assert [line.size for line in lines] == [len(raw) for raw in kept]
    assert all(line.size <= limit for line in lines)
