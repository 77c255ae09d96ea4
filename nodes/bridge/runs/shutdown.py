"""Ends the running training properly where ComfyUI is ended, by Ctrl-C or by SIGTERM (a service or container stops).

Without this the process ends in the middle of a step. Nothing would be lost but the steps since the last save, and the
record would say for ever that the run is running.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading

import comfy.model_management

from .lease import holds_any, wait_until_none

SECONDS = 8.0  # Docker kills a container ten seconds after SIGTERM


def end_runs_at_exit() -> None:
    """Called once, at the start of the server. A handler of SIGTERM that another program has set stays as it is."""
    atexit.register(interrupt_runs)  # at this time the thread of the prompts still runs
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def interrupt_runs() -> None:
    """Interrupt the running training as the page does, and wait for its save."""
    if not holds_any():
        return
    logging.info("Bespoke: the training is interrupted and saved, since ComfyUI is ended")
    comfy.model_management.interrupt_current_processing()
    if not wait_until_none(SECONDS):
        logging.warning("Bespoke: the training did not end in %g s; it goes on from its last save", SECONDS)


def _terminate(number: int, frame: object) -> None:
    """Save, then end as the system does by default, with the same exit status."""
    interrupt_runs()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
