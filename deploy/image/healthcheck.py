#!/usr/bin/env python3
"""Exit with 0 if the server in this container is alive, else with 1 and the reason."""

import os
from http.client import HTTPConnection, HTTPException

TIMEOUT_S = 4


def fault(port: int, key: str | None) -> str | None:
    """Return why the server on this port of the loopback address is not alive; None if it is."""
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/healthz", headers={"Authorization": f"Bearer {key}".encode()} if key else {})
        reply = connection.getresponse()
        return None if reply.status == 200 else f"{reply.status} {reply.read(500).decode(errors='replace')}"
    except (OSError, HTTPException) as err:
        return repr(err)
    finally:
        connection.close()


def main() -> None:
    """Ask at `OOD_PORT`, with the first of `OOD_API_KEYS` if there are any."""
    key = os.environ.get("OOD_API_KEYS", "").split(",")[0].strip()
    found = fault(int(os.environ.get("OOD_PORT", "8000")), key or None)
    if found:
        raise SystemExit(found)


if __name__ == "__main__":
    main()
