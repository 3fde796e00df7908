"""SIGTERM and SIGHUP end a command as Ctrl-C does; a killed parent takes the child that measures memory with it."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tersor.cli.signals import ending
from tersor.measure import memory

ENDING = (signal.SIGTERM, signal.SIGHUP)


# In a process of its own, since a signal may end more than what is tested.
COMMAND = """
import os, signal, sys, time
import tersor.cli
from tersor.files import temporary_folder
number, handlers = int(sys.argv[1]), [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)]
def command(words):
    with temporary_folder() as folder:
        print(folder, flush=True)
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), number)  # a second one does not disturb the end of the first
tersor.cli.app = command
try:
    tersor.cli.main()
finally:
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)] == handlers
"""


@pytest.mark.parametrize("number", ENDING)
def test_a_command_that_is_asked_to_end_undoes_what_it_does(number):
    words = [sys.executable, "-c", COMMAND, str(int(number))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 128 + number, done.stderr
    assert not Path(done.stdout.strip()).exists()


def test_what_ended_otherwise_ends_so_and_an_ignored_signal_stays_ignored():
    with ExitStack() as after:
        after.callback(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_IGN))

        def hung_up():
            os.kill(os.getpid(), signal.SIGHUP)
            sys.exit(3)

        with pytest.raises(SystemExit) as ended, ending():
            hung_up()
        assert ended.value.code == 3
        with pytest.raises(KeyboardInterrupt), ending():
            raise KeyboardInterrupt


def test_the_package_sets_no_handler():
    code = "import signal, tersor, tersor.cli; print(signal.getsignal(15), signal.getsignal(1))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["0", "0"] or done.stdout.count("SIG_DFL") == 2


@pytest.mark.slow
def test_the_child_that_measures_memory_dies_with_its_parent():
    child = memory._CHILD.replace("from tersor.measure.memory.probe import main\nmain()", "import time; time.sleep(60)")
    code = f"import sys\nfrom tersor.measure.memory import _in_child\n_in_child([sys.executable, '-c', {child!r}], 60)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    seen = psutil.Process(parent.pid)
    until = time.monotonic() + 60
    while not (children := seen.children()):
        assert time.monotonic() < until
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
