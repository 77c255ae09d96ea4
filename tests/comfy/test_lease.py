"""The lease of a run: one process trains it, and a killed one does not keep it."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest
from bespoke.nodes.bridge.runs import lease
from bespoke.nodes.bridge.runs.lease import LeaseLost, Owner, hold, is_held_here, machine, owner_of
from bespoke.training.errors import InputError

ID = "lora-000000000001"


@pytest.fixture
def path(comfyui, tmp_path):
    return tmp_path / "runs" / f"{ID}.lease"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "LAPSE_SECONDS", 0.5)


def nothing():
    pass


def started(process):
    return lease._started(process)


def write(path, **changes):
    """A lease of another process; by default one on another machine."""
    owner = Owner("another boot", 4242, "1", "studio", "0" * 16)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert lease._create(path, replace(owner, **changes))


@pytest.fixture
def other():
    """A process that lives."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def test_a_lease_is_held_and_removed(path):
    with hold(path, nothing) as held:
        held.check()
        assert is_held_here(path)
        assert owner_of(path) == held.owner
        assert held.owner.process == os.getpid()
    assert not path.exists()
    assert not is_held_here(path)
    assert owner_of(path) is None


def test_a_living_process_of_this_machine_keeps_it(path, other):
    write(path, machine=machine(), process=other.pid, started=started(other.pid))
    before = path.read_bytes()
    words = f"{ID} is being trained by another ComfyUI server .process {other.pid} on studio.; wait until it has ended"
    with pytest.raises(InputError, match=words), hold(path, nothing):
        pass
    assert path.read_bytes() == before


def test_the_same_process_does_not_train_a_run_twice_at_once(path):
    with hold(path, nothing), pytest.raises(InputError, match="is being trained"), hold(path, nothing):
        pass
    assert not path.exists()


@pytest.mark.parametrize("zombie", [False, True])
def test_a_killed_process_of_this_machine_loses_it_at_once(path, other, zombie):
    write(path, machine=machine(), process=other.pid, started=started(other.pid))
    other.send_signal(signal.SIGKILL)
    if zombie:
        while started(other.pid):
            time.sleep(0.01)
    else:
        other.wait()
    before = time.monotonic()
    with hold(path, nothing) as held:
        assert owner_of(path) == held.owner
    assert time.monotonic() - before < 1


def test_another_process_of_the_same_number_does_not_keep_it(path, other):
    """After a restart of a container, the numbers of processes begin anew."""
    write(path, machine=machine(), process=other.pid, started="1")
    with hold(path, nothing):
        pass


def test_a_silent_machine_loses_it_after_the_lapse(path, quick):
    write(path)
    before = time.monotonic()
    with hold(path, nothing) as held:
        assert 0.5 <= time.monotonic() - before < 3
        assert owner_of(path) == held.owner
    assert list(path.parent.iterdir()) == []


def test_a_machine_whose_beat_goes_on_keeps_it(path, quick):
    """Whatever its clock says: the times of the file stay the same."""
    write(path)
    times = path.stat()
    stop = threading.Event()

    def beat():
        number = 0
        while not stop.wait(0.05):
            number += 1
            with open(path, "r+b") as file:
                file.write(f"{number:012}".encode())
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(
            InputError, match=f"{ID} is being trained by another ComfyUI server .process 4242 on studio"
        ):
            hold(path, nothing).__enter__()
    finally:
        stop.set()
        thread.join()


def test_the_beat_is_counted_up_in_place(path, quick):
    with hold(path, nothing) as held:
        before = path.stat().st_ino
        texts = set()
        for _ in range(100):
            texts.add(path.read_text())
            time.sleep(0.01)
        assert path.stat().st_ino == before
    assert len(texts) > 3
    assert {len(text) for text in texts} == {len(next(iter(texts)))}
    assert all(json.loads(text[12:]) == asdict(held.owner) for text in texts)


@pytest.mark.parametrize("text", [b"", b"000000000000\n{", b"\xff\xfe", b"000000000000\n" + b"[" * 5000])
def test_a_lease_that_cannot_be_read_lapses(path, quick, text):
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    with hold(path, nothing) as held:
        assert owner_of(path) == held.owner


def _folder_with_a_file(path):
    path.mkdir()
    (path / "kept").write_text("by hand")


NO_LEASES = {
    "large": lambda path: path.write_bytes(b"0" * 20_000),
    "named pipe": lambda path: os.mkfifo(path),
    "link to nowhere": lambda path: path.symlink_to(path.with_name("nowhere")),
    "link to itself": lambda path: path.symlink_to(path),
    "folder": lambda path: path.mkdir(),
    "folder with a file": _folder_with_a_file,
}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes here, and links need a right")
@pytest.mark.parametrize("kind", NO_LEASES)
def test_what_is_no_lease_lapses_and_is_put_aside(path, quick, kind):
    """By definition: whatever lies at the lease's place, the run is trained after the lapse, and files are kept."""
    path.parent.mkdir(parents=True)
    NO_LEASES[kind](path)
    ends = time.monotonic() + 5

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(5)
    try:
        with hold(path, nothing) as held:
            assert owner_of(path) == held.owner
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() < ends
    left = [each.name for each in path.parent.rglob("*")]
    assert not path.exists()
    assert [name for name in left if name == "kept"] == ["kept"] * (kind == "folder with a file")
    assert len(left) == (2 if kind == "folder with a file" else 0)


@pytest.mark.parametrize("process", [0, -1, 2**32, 10**30])
def test_a_lease_of_no_process_lapses(path, quick, process):
    """0 and negative numbers are groups of processes to the system, which says that they exist; others overflow."""
    write(path, machine=machine(), process=process)
    assert owner_of(path) is None
    with hold(path, nothing) as held:
        assert owner_of(path) == held.owner


def test_a_lost_lease_is_noticed_and_left_to_its_holder(path):
    with hold(path, nothing) as held:
        path.unlink()
        write(path)
        with pytest.raises(LeaseLost, match="another ComfyUI server trains"):
            held.check()
    assert owner_of(path).host == "studio"


def test_a_removed_lease_is_written_again(path):
    with hold(path, nothing) as held:
        path.unlink()
        held.check()
        assert owner_of(path) == held.owner
    assert not path.exists()


def test_a_lease_put_aside_while_the_disk_wrote_it_is_not_held(path, quick, monkeypatch):
    """By definition: of two processes that created the file one after the other, the one whose file is there has it."""
    late = Owner("another boot", 7, "1", "studio", "7" * 16)

    class Waits(Exception):
        pass

    def put_aside(_):
        monkeypatch.setattr(lease, "sync", lambda _: None)
        path.unlink()
        write(path, token="8" * 16)

    def wait(_):
        raise Waits

    monkeypatch.setattr(lease, "sync", put_aside)
    monkeypatch.setattr(lease, "_wait_until_abandoned", wait)
    with pytest.raises(Waits):
        lease._acquire(path, late, nothing)
    assert owner_of(path).token == "8" * 16


def test_of_several_that_take_an_abandoned_lease_one_gets_it(path, quick, monkeypatch):
    """Twelve threads stand for twelve machines: they know of each other through the drive alone."""
    monkeypatch.setattr(lease, "LAPSE_SECONDS", 1.0)  # a busy disk takes more than half a second to write a lease
    for round_number in range(2):
        write(path, token=f"{round_number:016}")
        results, together = [], threading.Barrier(12)

        def take(number, results=results, together=together):
            together.wait()
            try:
                held = lease._acquire(path, Owner(f"boot {number}", number, "1", "host", f"{number:016}"), nothing)
                # It holds the lease until the others have given up: after it, one that still waits may have it in turn.
                until = time.monotonic() + 120
                try:
                    while len(results) < 11 and time.monotonic() < until:
                        held.check()
                        time.sleep(0.02)
                    held.check()
                    results.append("held")
                except LeaseLost:
                    results.append("lost")
                held.release()
            except InputError:
                results.append("refused")

        threads = [threading.Thread(target=take, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 12
        assert results.count("held") == 1
        # Some may have taken it from a holder whose beat a busy machine held up: that one sees it before it saves.
        assert set(results) <= {"held", "lost", "refused"}
        assert not path.exists()


def test_a_disk_without_answer_does_not_end_the_training(path, quick, monkeypatch):
    with hold(path, nothing) as held:

        def fails(*_, **__):
            raise OSError(errno.ESTALE, "Stale file handle")

        with monkeypatch.context() as broken:
            broken.setattr(lease, "read_text", fails)
            held.check()
            time.sleep(0.2)
        held.check()


def test_another_server_asks_to_finish(path, quick):
    asked = threading.Event()
    with hold(path, asked.set):
        lease.request_finish_elsewhere(path)
        assert asked.wait(3)
    assert list(path.parent.iterdir()) == []


def test_a_request_to_an_earlier_training_is_discarded(path, quick):
    path.parent.mkdir(parents=True)
    lease.request_finish_elsewhere(path)
    asked = threading.Event()
    with hold(path, asked.set):
        assert not asked.wait(0.3)


def test_a_lease_of_this_process_that_could_not_be_removed_is_taken_again(path):
    """On Windows a file that another program reads cannot be removed."""
    write(path, machine=machine(), process=os.getpid(), started=started(os.getpid()))
    assert owner_of(path) is None
    with hold(path, nothing):
        pass
    assert not path.exists()
