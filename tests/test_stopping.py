"""Signals that ask to stop."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from fedmtl.stopping import SIGNALS, Stopped, StopSignals


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_is_noted_and_raised_when_asked(name: str) -> None:
    before = signal.getsignal(getattr(signal, name))
    with StopSignals() as stop:
        stop.check()
        os.kill(os.getpid(), getattr(signal, name))
        with pytest.raises(Stopped, match=name):
            stop.check()
        os.kill(os.getpid(), signal.SIGTERM)  # a second one adds nothing
        with pytest.raises(Stopped, match=name):
            stop.check()
    assert signal.getsignal(getattr(signal, name)) == before


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with StopSignals(), pytest.raises(KeyboardInterrupt):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_another_thread_changes_no_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def inside() -> None:
        with StopSignals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [before]


def test_a_worker_leaves_signals_to_its_parent() -> None:
    code = "import os, signal; from fedmtl.stopping import stand_by, SIGNALS; stand_by()\n"
    code += "[os.kill(os.getpid(), getattr(signal, name)) for name in SIGNALS]; print('alive')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "alive\n"


def test_the_second_sigterm_ends_a_worker() -> None:
    code = "import signal; from fedmtl.stopping import stand_by; stand_by(); signal.raise_signal(signal.SIGTERM)\n"
    code += "print('alive', flush=True); signal.raise_signal(signal.SIGTERM); print('still')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.returncode) == ("alive\n", -signal.SIGTERM)
