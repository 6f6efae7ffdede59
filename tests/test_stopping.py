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


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the sender of a signal is not known here")
def test_sigterm_ends_a_worker_only_if_its_parent_sends_it() -> None:
    code = "import time; from fedmtl.stopping import stand_by; stand_by(); print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        for _ in range(3):
            subprocess.run([sys.executable, "-c", f"import os; os.kill({worker.pid}, {signal.SIGTERM:d})"], check=True)
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(0.2)
        worker.terminate()
        assert worker.wait(30) == 0
