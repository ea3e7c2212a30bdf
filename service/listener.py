"""The address that a server listens on: claimed before the models are loaded, given up without losing anybody."""

import ctypes
import socket
import struct
import sys
from contextlib import suppress

from service.errors import StartError

_SO_ATTACH_FILTER = 26
_FLAGS, _SYN, _SYN_OR_ACK = 13, 0x02, 0x12
"""The byte of a TCP header that has its flags, and those that tell who begins to connect."""
_LOAD_BYTE, _AND, _JUMP_IF_EQUAL, _RETURN = 0x30, 0x54, 0x15, 0x06
_ALL = 0xFFFFFFFF
_WITHOUT_NEWCOMERS = (
    (_LOAD_BYTE, 0, 0, _FLAGS),
    (_AND, 0, 0, _SYN_OR_ACK),
    (_JUMP_IF_EQUAL, 0, 1, _SYN),
    (_RETURN, 0, 0, 0),
    (_RETURN, 0, 0, _ALL),
)
"""A program of the kernel's packet filter: code, how many to skip if true and if false, operand (man 4 bpf)."""


def bind(host: str, port: int) -> socket.socket:
    """Claim an address without listening on it yet, so that nobody connects before the models are ready.

    Raises:
        StartError: it is taken, or not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as err:
        raise _refused(host, port, err) from err
    claimed = socket.socket(family, kind, protocol)
    try:
        claimed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        claimed.bind(address)
    except OSError as err:
        claimed.close()
        raise _refused(host, port, err) from err
    return claimed


def listen(claimed: socket.socket, backlog: int) -> None:
    """Listen on a claimed address, before a loop does: uvloop's tells nobody that it could not, and then serves nobody.

    Raises:
        StartError: another server, which had claimed it too, was sooner.
    """
    try:
        claimed.listen(backlog)
    except OSError as err:
        host, port = claimed.getsockname()[:2]
        raise _refused(host, port, err) from err


def _refused(host: str, port: int, reason: OSError | UnicodeError) -> StartError:
    why = getattr(reason, "strerror", None) or reason
    return StartError(f"cannot listen on {host}:{port} ({why}); choose another --host or --port")


def turn_away(listener: socket.socket) -> None:
    """Let nobody begin to connect any more; who has begun gets through, and is to be accepted before it is closed.

    Without this, who connects between the last accept and the close is reset. Their systems ask again after a second
    and are refused then, or reach another server that listens on the address. It holds for every process that shares
    the socket. Only Linux can do it, and some let only the privileged; elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _WITHOUT_NEWCOMERS))
    described = struct.pack("HP", len(_WITHOUT_NEWCOMERS), ctypes.addressof(program))
    with suppress(PermissionError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
