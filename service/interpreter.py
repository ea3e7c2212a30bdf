"""How the interpreter is set for serving."""

import gc
import sys

SWITCH_S = 0.0005
"""The event loop asks for the interpreter, which an engine's or a decoding thread holds, after so long and not after
5 ms. One run on two cores, WRN-40-2: with 16 clients 3 % more requests a second in float32 and 15 % in bfloat16, with
64 clients 2 % and 6 %; 0.1 ms was slower in float32."""

YOUNG_OBJECTS = 20_000
"""Objects more than before that set off the garbage collector. With its 700 it ran whenever requests came faster than
they were answered, through all that were under way: 7 % of the event loop's time in an overloaded server."""


def prepare() -> None:
    """Set this process up for requests, once all that stays is loaded."""
    sys.setswitchinterval(SWITCH_S)
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
    gc.collect()  # or a model that failed to load would stay, frozen with all else
    gc.freeze()  # to look through what stays for garbage, again and again, would hold up requests
