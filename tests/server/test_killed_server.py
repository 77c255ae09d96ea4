"""A real server that is killed, ended or interrupted in a training: the same prompt afterwards ends in the same bits.

The moments are calls of functions in the server (see `fault_pack`), so that each is hit exactly.
"""

from __future__ import annotations

import signal

import pytest
from faulty_server import FaultyServer, error_of, make_base, outcome, prompt, runs_in

# (phase, number of the call): encoding, captions, measuring, steps, validation, sampling, saving, the last save.
MOMENTS = (
    ("picture", 5),
    ("caption", 9),
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
    import json

    records = [json.loads(path.read_text()) for path in runs_in(base).glob("lora-*/record.json")]
    return [(record["state"], record["steps_done"]) for record in records]


@pytest.mark.slow
def test_a_server_killed_at_ten_moments_ends_in_the_same_bits(base, whole):
    expected, counts = whole
    table, server = [], FaultyServer(base)
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
            table.append((f"{phase} {at}", left, found == expected))
            assert found == expected, [name for name in expected if found[name] != expected[name]]
    finally:
        server.stop()
        for row in table:
            print(*row)
    print(f"{sum(equal for *_, equal in table)} of {len(MOMENTS)} equal an unbroken training")


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
        assert outcome(base) == expected
    finally:
        server.stop()
