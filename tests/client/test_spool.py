"""The client's side of the spool: what it keeps, what it cannot, and how it is read back."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import runhist
from runhist import Conflict
from runhist.identity import boot_id
from runhist.paths import SocketChoice
from runhist.spool import (
    MAX_LINE_BYTES,
    OPEN,
    DamagedSpool,
    Header,
    Spool,
    SpoolFault,
    SpoolFile,
    SpoolFull,
    decode_line,
    decode_request,
    encode_line,
    encode_request,
    quarantined,
    read_spool,
)

from .conftest import Refuse, SmallHistory

LONG = 20.0
CHOICE = SocketChoice((Path("/nowhere/socket"),), "a test", True)


def spool_files(small: SmallHistory) -> list[Path]:
    return sorted(path for path in (small.path.parent / "state" / "spool").glob("*") if path.is_file())


def words(small: SmallHistory, run_id: str) -> list[str]:
    return [stored.event["type"] for stored in small.stored if stored.run_id == run_id]


def refuse_bad(method: str, parameters: dict[str, Any]) -> None:
    if method == "Append" and any(event["type"] == "bad" for event in parameters["events"]):
        raise Refuse("Conflict", seq=1)


def test_a_request_that_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    file = Spool(SocketChoice((tmp_path / "s",), "a test", True), directory=tmp_path / "spool").create(None, None, "r")
    before = file.path.read_bytes()
    with pytest.raises(SpoolFault, match="larger than what is spooled"):
        file.write("Append", b'{"x":"' + b"x" * MAX_LINE_BYTES + b'"}')
    assert file.path.read_bytes() == before
    file.close()


def test_what_is_written_while_the_disk_syncs_is_not_taken_for_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Spool(CHOICE, directory=tmp_path / "spool").create(None, None, "r")
    fsync = os.fsync

    def meanwhile(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        file.write("Append", b"{}")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    file.sync()
    assert not file.is_synced
    file.sync()
    assert file.is_synced


def test_a_line_that_lost_any_of_its_bytes_is_recognised() -> None:
    line = encode_line(b'{"a":"\xc3\xa9"}')
    assert decode_line(line) == b'{"a":"\xc3\xa9"}'
    assert [decode_line(line[:end]) for end in range(len(line))] == [None] * len(line)
    assert decode_line(line.replace(b"a", b"b")) is None


def test_a_request_is_read_as_it_was_written() -> None:
    parameters = b'{"events":[{"data":{"x":"\\",\\"parameters\\":"}}]}'
    assert decode_request(encode_request("Append", parameters)) == ("Append", parameters)
    with pytest.raises(DamagedSpool):
        decode_request(b"{}")


def test_a_file_says_who_writes_it_and_is_for_nobody_else(tmp_path: Path) -> None:
    spool = Spool(CHOICE, directory=tmp_path / "state" / "spool")
    file = spool.create("key", None, "r")
    file.write("Append", b"{}")
    header, requests = read_spool(file.path)
    assert header[:3] == ("/nowhere/socket", None, os.getpid()) and header[4:] == (boot_id(), "key", None, "r")
    assert header.identity.startswith(("pidfd:", "start:"))
    assert list(requests) == [("Append", b"{}")]
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700


def test_a_header_with_wrong_types_is_damaged() -> None:
    good = Header("s", None, 1, "", "", None, None, "r")
    assert Header.decode(good.encode()) == good
    wrong: list[dict[str, Any]] = [{"pid": True}, {"pid": -1}, {"run_id": None}, {"namespace": 1}]
    for members in wrong:
        with pytest.raises(DamagedSpool):
            Header.decode(good._replace(**members).encode())


def test_a_full_spool_takes_no_part_of_a_request(tmp_path: Path) -> None:
    file = Spool(CHOICE, 1000, tmp_path / "spool").create(None, None, "r")
    before = file.path.read_bytes()
    with pytest.raises(SpoolFull, match="1,000"):
        file.write("Append", b"{%s}" % (b" " * 1000))
    assert file.path.read_bytes() == before


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    file = Spool(CHOICE, directory=tmp_path / "spool").create(None, None, "r")
    before = file.path.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
    try:
        with pytest.raises(SpoolFault, match="too large"):
            file.write("Append", b"{%s}" % (b" " * 1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.path.read_bytes() == before
    file.write("Append", b"{}")
    assert len(list(read_spool(file.path)[1])) == 1


def test_an_engine_is_not_blocked_by_a_full_spool_and_sees_it(small: SmallHistory) -> None:
    small.close()
    history = runhist.connect(deadline=LONG, window=3, spool_bytes=2000)
    run = history.begin_run(run_id="r")
    assert run.flush().durable == "spooled"
    history.deadline = 0.2
    began = time.monotonic()
    for _ in range(20):
        run.append("x", {"text": "x" * 500})
    receipt = run.flush()
    assert time.monotonic() - began < 5
    assert receipt.durable == "off" and receipt.faults == run.faults > 0
    with pytest.raises(SpoolFull):
        loud = runhist.connect(errors="raise", deadline=0.2, window=1, spool_bytes=10)
        loud.begin_run()
    small.open()
    assert run.flush(LONG).durable == "committed"  # what was kept in memory is not lost
    assert len(words(small, "r")) + run.faults == 20
    history.close()


def test_a_spool_that_cannot_be_made_is_a_fault_and_events_wait_in_memory(small: SmallHistory) -> None:
    small.close()
    (small.path.parent / "state").write_text("in the way")
    history = runhist.connect(deadline=0.05)
    run = history.begin_run(run_id="r")
    run.append("a")
    assert run.flush().durable == "off" and run.faults == 1
    small.open()
    assert run.flush(LONG).durable == "committed" and words(small, "r") == ["a"]
    history.close()


def test_what_is_spooled_is_sent_before_anything_newer_and_the_file_goes(small: SmallHistory) -> None:
    history = runhist.connect(deadline=LONG)
    run = history.begin_run(run_id="r")
    run.append("0")
    run.flush()
    small.close()
    for i in range(1, 120):
        run.append(str(i))
    assert run.flush().durable == "spooled"
    assert [path.suffix for path in spool_files(small)] == [OPEN]
    small.open()
    for i in range(120, 240):
        run.append(str(i))
    assert run.flush(LONG).durable == "committed"
    assert words(small, "r") == [str(i) for i in range(240)]
    assert spool_files(small) == []
    history.close()


def test_a_connection_lost_in_the_middle_of_reading_back_doubles_nothing(small: SmallHistory) -> None:
    history = runhist.connect(deadline=LONG)
    run = history.begin_run(run_id="r")
    for round_ in range(3):
        small.close()
        for i in range(20):
            run.append(f"{round_}.{i}")
        assert run.flush().durable == "spooled"
        small.open()
        run.append(f"{round_}.20")
    assert run.flush(LONG).durable == "committed"
    assert words(small, "r") == [f"{round_}.{i}" for round_ in range(3) for i in range(21)]
    assert spool_files(small) == [] and run.faults == 0
    history.close()


def test_a_refused_event_of_the_spool_leaves_a_note_and_the_file_is_kept(small: SmallHistory) -> None:
    small.close()
    history = runhist.connect(deadline=LONG)
    run = history.begin_run(run_id="r")
    for word in ("a", "bad", "b"):
        run.append(word)
    assert run.flush().durable == "spooled"
    small.open()
    small.before = refuse_bad
    with pytest.raises(Conflict):
        run.flush(LONG)
    assert run.flush(LONG).durable == "committed" and run.faults == 1
    assert words(small, "r") == ["a", "note", "b"]
    ((path, reason),) = quarantined(small.path.parent / "state" / "spool")
    assert "'bad'" in reason and b'"bad"' in path.read_bytes()
    history.close()


def test_a_child_after_fork_leaves_the_spool_alone(small: SmallHistory) -> None:
    small.close()
    code = (
        "import os, runhist\n"
        "history = runhist.connect()\n"
        "run = history.begin_run(run_id='r')\n"
        "run.append('a')\n"
        "if os.fork() == 0:\n"
        "    run.append('b')\n"
        "    run.flush()\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "run.append('c')\n"
        "print(run.flush().durable)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=LONG)
    assert done.stdout == "spooled\n", done.stderr
    (path,) = spool_files(small)
    _, requests = read_spool(path)
    text = b"".join(request.parameters for request in requests)
    assert b'"a"' in text and b'"c"' in text and b'"b"' not in text


def test_with_require_nothing_is_spooled(small: SmallHistory) -> None:
    small.close()
    with pytest.raises(runhist.Unreachable):
        runhist.connect(require=True, deadline=0.01).begin_run()
    assert spool_files(small) == []


def test_a_request_that_an_interrupt_had_written_twice_is_stored_once(
    small: SmallHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.close()
    history = runhist.connect(deadline=LONG)
    run = history.begin_run(run_id="r")
    write, interrupts = SpoolFile.write, [KeyboardInterrupt()]

    def interrupted(file: SpoolFile, method: str, parameters: bytes) -> None:
        write(file, method, parameters)
        if interrupts:
            raise interrupts.pop()

    monkeypatch.setattr(SpoolFile, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.append("a")
    run.append("b")
    assert run.flush().durable == "spooled"
    small.open()
    assert run.flush(LONG).durable == "committed" and words(small, "r") == ["a", "b"]
    history.close()
