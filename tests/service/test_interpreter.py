"""What a serving process is set to; in one of its own, since it is for good."""

import subprocess
import sys


def test_threads_take_turns_sooner_and_what_is_loaded_is_kept_from_the_collector() -> None:
    code = (
        "import gc, sys\nfrom service import interpreter\n"
        "before = sys.getswitchinterval(), gc.get_freeze_count()\ninterpreter.prepare()\n"
        "print(*before, round(sys.getswitchinterval(), 6), gc.get_freeze_count() > 1000,"
        "gc.get_threshold()[0])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["0.005", "0", "0.0005", "True", "20000"]
