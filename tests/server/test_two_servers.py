"""Two servers on one user folder: one trains a run, the other says so; no file is lost; a killed one blocks nobody."""

from __future__ import annotations

import signal
import time
import urllib.error

import pytest
from faulty_server import (
    PREFIX,
    FaultyServer,
    differences,
    error_of,
    make_base,
    outcome,
    prompt,
    records_in,
    reset,
    runs_in,
)


@pytest.fixture(scope="module")
def servers(tmp_path_factory, small_checkpoint):
    base = make_base(tmp_path_factory.mktemp("shared"), small_checkpoint)
    with FaultyServer(base, "one") as one, FaultyServer(base, "two") as two:
        yield one, two


@pytest.fixture(scope="module")
def whole(servers):
    one, _ = servers
    assert error_of(one.train(prompt())) == ""
    return outcome(one.base)


def files_of(base):
    return sorted(path.name for path in (base / "models" / "loras").glob("*.safetensors"))


@pytest.mark.slow
def test_the_same_request_in_both(servers, whole):
    one, two = servers
    one.arm("loss", 3, "hold")
    first = one.queue(prompt())
    one.wait_held()
    (run,) = records_in(one.base)
    words = error_of(two.train(prompt()))
    print(words)
    assert f"the run {run['id']} is being trained by another ComfyUI server (process {one.process.pid} on " in words
    assert error_of(two.train(prompt("other", seed=99, steps=2))) == ""  # another run is trained meanwhile
    one.post("/faults/release", {})
    assert error_of(one.wait(first)) == ""
    assert error_of(two.train(prompt())) == ""  # it is finished: the result is handed on
    assert files_of(one.base) == [
        f"{PREFIX}_00001.safetensors",
        f"{PREFIX}_00002.safetensors",
        "other_00001.safetensors",
    ]
    folder = one.base / "models" / "loras"
    (folder / f"{PREFIX}_00002.safetensors").unlink()
    for path in runs_in(one.base).iterdir():
        if path.name != run["id"]:
            path.rename(one.base / path.name)  # leaves the one run for `outcome`
    assert differences(outcome(one.base), whole) == []


@pytest.mark.slow
def test_both_at_the_same_moment(servers, whole):
    """Whoever comes second is refused or gets the result. Four times."""
    one, two = servers
    for _ in range(4):
        one.arm()
        two.arm()
        queued = [(server, server.queue(prompt())) for server in servers]
        ended = [error_of(server.wait(number)) for server, number in queued]
        print(ended)
        assert ended.count("") >= 1
        assert all(not words or "is being trained by another" in words for words in ended)
        assert len(files_of(one.base)) == ended.count("")
        (one.base / "models" / "loras" / f"{PREFIX}_00002.safetensors").unlink(missing_ok=True)
        assert differences(outcome(one.base), whole) == []


@pytest.mark.slow
def test_the_other_server_asks_to_finish(servers):
    one, two = servers
    one.arm("loss", 4, "hold")
    queued = one.queue(prompt())
    one.wait_held()
    (run,) = records_in(one.base)
    assert two.post(f"/bespoke/runs/{run['id']}/finish", {}) == {"id": run["id"], "finish": "requested"}
    ends = time.monotonic() + 30
    while list(runs_in(one.base).glob("*.finish")):
        assert time.monotonic() < ends
        time.sleep(0.1)
    one.post("/faults/release", {})
    assert error_of(one.wait(queued)) == ""
    (run,) = records_in(one.base)
    assert (run["state"], run["steps_done"]) == ("kept", 3)
    reset(one.base)


@pytest.mark.slow
def test_a_killed_server_blocks_nobody(servers, whole):
    """Last, since the first server is killed."""
    one, two = servers
    one.arm("loss", 5, "kill")
    assert one.wait(one.queue(prompt())) is None
    assert one.process.wait(30) == -signal.SIGKILL
    (run,) = records_in(one.base)
    assert run["state"] == "running"
    with pytest.raises(urllib.error.HTTPError) as refused:
        two.post(f"/bespoke/runs/{run['id']}/finish", {})
    assert b"the run broke off, so there is nothing to finish" in refused.value.read()
    two.arm()
    assert error_of(two.train(prompt())) == ""
    assert differences(outcome(one.base), whole) == []
