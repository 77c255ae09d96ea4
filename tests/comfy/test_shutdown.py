"""ComfyUI is ended while a run is trained: the run is interrupted and saved first."""

import os
import signal
import threading
import time

import pytest
from bespoke.nodes.bridge.runs import shutdown
from bespoke.nodes.bridge.runs.lease import hold


@pytest.fixture
def training(comfyui, tmp_path):
    """A thread that holds a lease until it is interrupted, as a training does between two steps."""
    import comfy.model_management

    ends, began = [], threading.Event()

    def train():
        try:
            with hold(tmp_path / "lora-000000000001.lease", lambda: None):
                began.set()
                while True:
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    time.sleep(0.01)
        except comfy.model_management.InterruptProcessingException:
            ends.append("interrupted")

    thread = threading.Thread(target=train)
    thread.start()
    began.wait()
    yield ends
    comfy.model_management.interrupt_current_processing()
    thread.join()
    comfy.model_management.interrupt_current_processing(False)


def test_the_running_training_is_interrupted_and_waited_for(training):
    shutdown.interrupt_runs()
    assert training == ["interrupted"]


def test_without_a_training_nothing_is_interrupted(comfyui):
    import comfy.model_management

    shutdown.interrupt_runs()
    assert not comfy.model_management.processing_interrupted()


def test_a_training_that_does_not_answer_is_not_waited_for_longer(comfyui, tmp_path, monkeypatch):
    import comfy.model_management

    monkeypatch.setattr(shutdown, "SECONDS", 0.2)
    with hold(tmp_path / "lora-000000000001.lease", lambda: None):
        before = time.monotonic()
        shutdown.interrupt_runs()
        assert time.monotonic() - before < 2
    comfy.model_management.interrupt_current_processing(False)


def test_sigterm_saves_and_ends_as_without_the_pack(training, monkeypatch):
    sent = []
    monkeypatch.setattr(shutdown.atexit, "register", lambda function: None)
    monkeypatch.setattr(os, "kill", lambda *call: sent.append((*call, signal.getsignal(signal.SIGTERM))))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        shutdown.end_runs_at_exit()
        signal.raise_signal(signal.SIGTERM)
        assert training == ["interrupted"]
        assert sent == [(os.getpid(), signal.SIGTERM, signal.SIG_DFL)]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_handler_of_sigterm_stays(comfyui, monkeypatch):
    monkeypatch.setattr(shutdown.atexit, "register", lambda function: None)

    def theirs(*_):
        pass

    before = signal.signal(signal.SIGTERM, theirs)
    try:
        shutdown.end_runs_at_exit()
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, before)
