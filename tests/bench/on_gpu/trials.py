"""Blocks that go wrong on purpose: the program must say so and go on. They need PyTorch alone."""

from __future__ import annotations

import os
import signal
import time

import torch

from on_gpu.work import Work


def fails(work: Work, _: str) -> None:
    work.write(what="a row before the error")
    raise RuntimeError("this block fails on purpose")


def hangs(work: Work, _: str) -> None:
    work.write(what="a row before the time is over")
    time.sleep(600)


def fills_memory(work: Work, _: str) -> None:
    where = "cuda" if torch.cuda.is_available() else "cpu"
    work.measure(lambda: dict(value=torch.empty(2**50, dtype=torch.uint8, device=where).nbytes), what="a petabyte")
    work.measure(lambda: dict(value=torch.empty(2**10, dtype=torch.uint8, device=where).nbytes), what="a kilobyte")


def is_killed(work: Work, _: str) -> None:
    work.write(what="a row before the process ends")
    os.kill(os.getpid(), signal.SIGKILL)
