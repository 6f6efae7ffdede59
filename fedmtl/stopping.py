"""Signals that ask a run to stop: it finishes its batch, saves, and ends."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

# Ctrl-C; what Slurm, torchrun and systems that shut down send; and Slurm's usual warning before the end of its time
SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")


def stand_by(worker: int = 0) -> None:
    """For a worker process: leaves such signals to its parent, which needs it; the parent's own SIGTERM ends it."""
    for name in SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL if name == "SIGTERM" else signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # tells who sent it; not everywhere
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass  # it was sent to the whole job
    os._exit(0)


class Stopped(Exception):
    """A run was asked to stop."""


class StopSignals:
    """Within it, the first signal is only noted, and `check` raises `Stopped`; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.noted: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python handles signals nowhere else
            for name in SIGNALS:
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def check(self, *, patience: float = 0.0) -> None:
        """Raises `Stopped` if a signal came, or comes in so many seconds."""
        if self.noted is None and patience:
            time.sleep(patience)  # a signal ends it
        if self.noted is not None:
            raise Stopped(self.noted)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.noted is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.noted = self.noted or signal.Signals(number).name
