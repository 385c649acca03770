"""How a command hears the signals that stop it, how a child ends with its
parent, and what memory it keeps."""

import os
import signal
import subprocess
import sys
import time

import pytest

from openclip_superclip.__main__ import _signals_raise
from openclip_superclip.errors import InputError
from openclip_superclip.runs.signals import STOPPED_BY, Stopped, stopped_by_signals


def test_the_signals_are_as_before_after_an_error_and_ignored_after_a_stop():
    before = {each: signal.getsignal(each) for each in STOPPED_BY}
    with pytest.raises(InputError), stopped_by_signals():
        raise InputError("--data is missing")
    assert {each: signal.getsignal(each) for each in STOPPED_BY} == before
    try:
        with pytest.raises(Stopped), stopped_by_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_fork_ignores_a_ctrl_c_that_its_parent_raises():
    with pytest.raises(KeyboardInterrupt), _signals_raise():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("parent", [os.getpid(), 1], ids=["alive", "died before"])
def test_a_process_ends_if_the_one_that_started_it_is_gone(parent):
    code = (
        "from openclip_superclip.environment import end_with_parent; "
        f"end_with_parent({signal.SIGTERM.value}, parent={parent})"
    )
    expected = 0 if parent == os.getpid() else -signal.SIGTERM
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == expected


def test_a_process_keeps_freed_memory_for_its_next_arrays():
    code = """
import resource
from openclip_superclip.environment import keep_freed_memory
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
keep_freed_memory()
bytearray(2**26)
before = faults()
bytearray(2**26)
print(faults() - before)
"""
    assert int(subprocess.check_output([sys.executable, "-c", code])) < 100  # of 16,384 pages
