"""The end of a listener: who has connected is served, who comes later is refused, nobody is reset in between."""

import errno
import re
import select
import socket
from contextlib import closing

import pytest

from service.errors import StartError
from service.listener import bind, turn_away

SO_LOCK_FILTER = 44


def begin_to_connect(address: tuple[str, int]) -> socket.socket:
    newcomer = socket.socket()
    newcomer.setblocking(False)
    newcomer.connect_ex(address)
    return newcomer


def is_connected(newcomer: socket.socket, seconds: float) -> bool:
    """Whether its attempt has ended well by then."""
    _, ended, _ = select.select([], [newcomer], [], seconds)
    return bool(ended) and newcomer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@pytest.mark.parametrize("host", ["a..b", ".", "256.0.0.1.invalid"])
def test_a_host_that_is_none_is_refused_by_name(host: str) -> None:
    with pytest.raises(StartError, match=re.escape(f"cannot listen on {host}:0 (")):
        bind(host, 0)


@pytest.mark.parametrize("turned_away", [False, True])
def test_who_has_connected_gets_through_and_newcomers_only_while_it_is_open(*, turned_away: bool) -> None:
    listener = bind("127.0.0.1", 0)
    listener.listen()
    with closing(listener), socket.create_connection(listener.getsockname()) as waiting:
        if turned_away:
            turn_away(listener)
        with begin_to_connect(listener.getsockname()) as newcomer:
            assert is_connected(newcomer, 0.1) == (not turned_away)
        accepted, _ = listener.accept()
        with accepted:
            waiting.sendall(b"question")
            assert accepted.recv(8) == b"question"
            accepted.sendall(b"answer")
            assert waiting.recv(8) == b"answer"


def test_who_was_turned_away_is_refused_once_it_is_closed() -> None:
    listener = bind("127.0.0.1", 0)
    listener.listen()
    turn_away(listener)
    with begin_to_connect(listener.getsockname()) as newcomer:
        listener.close()
        _, ended, _ = select.select([], [newcomer], [], 10)  # its system asks again after a second
        assert ended
        assert newcomer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


def test_where_the_kernel_forbids_filters_newcomers_connect_still() -> None:
    """As in a container whose user has no rights; here since the socket's filter is locked."""
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        listener.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)
        turn_away(listener)
        with begin_to_connect(listener.getsockname()) as newcomer:
            assert is_connected(newcomer, 5)
