"""What a serving process is set to; in one of its own, since it is for good."""

import subprocess
import sys


def test_threads_take_turns_sooner_and_what_is_loaded_is_kept_from_the_collector_but_not_what_is_left() -> None:
    code = (
        "import gc, sys, weakref\nfrom service import interpreter\n"
        "class Cycle: ...\ngc.disable()\nleft = Cycle()\nleft.itself = left\nleft = weakref.ref(left)\n"
        "before = sys.getswitchinterval(), gc.get_freeze_count()\ninterpreter.prepare()\n"
        "print(*before, round(sys.getswitchinterval(), 6), gc.get_freeze_count() > 1000,"
        "gc.get_threshold()[0], left())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["0.005", "0", "0.0005", "True", "20000", "None"]
