"""A real server that is killed, ended or interrupted in a training: the same prompt afterwards ends in the same bits.

The moments are calls of functions in the server (see `fault_pack`), so that each is hit exactly.
"""

from __future__ import annotations

import os
import signal
import time

import pytest
from faulty_server import FaultyServer, differences, error_of, make_base, outcome, prompt, records_in, reset, runs_in

# (phase, number of the call): encoding, captions, measuring, steps, validation, sampling, saving, the last save.
MOMENTS = (
    ("picture", 5),
    ("caption", 3),
    ("measure", 1),
    ("loss", 3),
    ("update", 4),
    ("sample", 2),
    ("state", 1),
    ("record", 3),
    ("validation", 2),
    ("lora", 1),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory, small_checkpoint):
    return make_base(tmp_path_factory.mktemp("faults"), small_checkpoint)


@pytest.fixture(scope="module")
def whole(base):
    """(the result of an unbroken training, the number of calls of each phase)."""
    with FaultyServer(base) as server:
        assert error_of(server.train(prompt())) == ""
        return outcome(base), server.counts()


def state_on_disk(base):
    return [(record["state"], record["steps_done"]) for record in records_in(base)]


@pytest.mark.slow
def test_a_server_killed_at_ten_moments_ends_in_the_same_bits(base, whole):
    expected, counts = whole
    equal, server = 0, FaultyServer(base)
    server.start()
    try:
        for phase, at in MOMENTS:
            assert at <= counts[phase]
            server.arm(phase, at, "kill")
            assert server.wait(server.queue(prompt())) is None
            assert server.process.wait(30) == -signal.SIGKILL
            left = state_on_disk(base)
            server.start()
            assert error_of(server.train(prompt())) == ""
            found = outcome(base)
            print(f"killed at {phase} {at}: {left}, {differences(found, expected) or 'equal'}", flush=True)
            assert differences(found, expected) == []
            equal += 1
    finally:
        server.stop()
    print(f"{equal} of {len(MOMENTS)} equal an unbroken training")


@pytest.mark.slow
def test_one_training_killed_again_and_again_ends_in_the_same_bits(base, whole):
    """The same training is killed at each save of a state, at each step: none is lost twice."""
    expected, _ = whole
    server, kills = FaultyServer(base), 0
    try:
        for phase, at in (("loss", 3), ("record", 3), ("state", 2), ("summary", 3), ("end", 1)):
            server.start()
            server.arm(phase, at, "kill")
            assert server.wait(server.queue(prompt())) is None
            server.process.wait(30)
            kills += 1
            print(f"killed at {phase} {at}: {state_on_disk(base)}")
        server.start()
        assert error_of(server.train(prompt())) == ""
        assert differences(outcome(base), expected) == []
    finally:
        server.stop()


@pytest.mark.slow
def test_cancel_in_every_phase_of_a_server(base, whole):
    """POST /interrupt at the first and the last call of each phase, while the thread of the prompts stands there."""
    expected, counts = whole
    equal = interrupted = 0
    with FaultyServer(base) as server:
        moments = [(phase, at) for phase, calls in counts.items() for at in sorted({1, calls})]
        for phase, at in moments:
            server.arm(phase, at, "hold")
            queued = server.queue(prompt())
            server.wait_held()
            server.post("/interrupt", {})
            server.post("/faults/release", {})
            ended = error_of(server.wait(queued))
            left = state_on_disk(base)
            assert "running" not in [state for state, _ in left]
            assert ended in ("interrupted", "")
            if ended:
                server.arm()
                assert error_of(server.train(prompt())) == ""
            found = outcome(base)
            print(phase, at, ended or "had ended", left, differences(found, expected) or "equal", flush=True)
            assert differences(found, expected) == []
            equal, interrupted = equal + 1, interrupted + bool(ended)
    print(f"{len(moments)} moments, {interrupted} interrupted, {equal} equal an unbroken training")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_server_that_is_ended_saves_the_run(base, whole, number):
    """As a service, a container and Ctrl-C do. The exit status is what it would be without the pack."""
    server = FaultyServer(base)
    server.start()
    try:
        server.arm("loss", 4, "pause")
        queued = server.queue(prompt())
        server.wait_held()
        began = time.monotonic()
        server.process.send_signal(number)
        status = server.process.wait(30)
        print(f"{number.name}: ended after {time.monotonic() - began:.1f} s with {status}: {state_on_disk(base)}")
        assert status == (-signal.SIGTERM if number == signal.SIGTERM else 0)
        assert queued
        assert state_on_disk(base) == [("interrupted", 3)]
        assert list(runs_in(base).glob("*.lease")) == []
        server.start()
        assert error_of(server.train(prompt())) == ""
        assert differences(outcome(base), whole[0]) == []
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_server_without_a_training_ends_at_once(base, number):
    with FaultyServer(base) as server:
        began = time.monotonic()
        server.process.send_signal(number)
        assert server.process.wait(10) == (-signal.SIGTERM if number == signal.SIGTERM else 0)
        print(f"{number.name}: ended after {time.monotonic() - began:.1f} s")


@pytest.mark.slow
def test_thirty_trainings_in_one_server(base):
    """Different settings, some interrupted, some failing: memory, files, threads and weights stay as they are."""
    table = []
    print("\ntraining  ended        RSS MiB  files  threads")
    with FaultyServer(base) as server:
        for number in range(30):
            kind = ("", "", "interrupted", "", "failed")[number % 5]
            server.arm("loss", 3, {"": "", "interrupted": "hold", "failed": "fail"}[kind])
            queued = server.queue(prompt(rank=2 + number % 3, seed=number, steps=4, resume=False))
            if kind == "interrupted":
                server.wait_held()
                server.post("/interrupt", {})
                server.post("/faults/release", {})
            ended = error_of(server.wait(queued))
            assert (ended == "interrupted", "a fault of the test" in ended) == (kind == "interrupted", kind == "failed")
            server.arm()
            row = server.get("/faults?process=1") | {"kind": kind or "finished"}
            table.append(row)
            print(f"{number:8}  {row['kind']:11} {row['rss']:8.1f} {row['files']:6} {row['threads']:8}", flush=True)
            assert os.listdir(server.base / "temp-one" / "temp") == []
        scraps = [path for path in base.rglob("*") if path.name.endswith((".part", ".lease", ".finish"))]
    assert scraps == []
    assert {row["state"] for row in records_in(base)} == {"finished", "interrupted", "failed"}
    reset(base)
    assert len({row["weights"]["BaseModel"] for row in table}) == 1
    warm = table[5:]
    assert max(row["files"] for row in warm) - min(row["files"] for row in warm) <= 1
    assert max(row["threads"] for row in warm) - min(row["threads"] for row in warm) <= 1
    assert max(row["rss"] for row in table[25:]) - max(row["rss"] for row in table[5:10]) < 40  # MiB
