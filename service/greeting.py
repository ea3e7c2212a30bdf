"""What a server says when it listens: where, what it serves, and a line to try."""

import shlex
import socket

import model_store
from service.served_models import Models


def greeting(models: Models, url: str, *, closed: bool, workers: int = 1) -> str:
    """Return a few lines for the person who started the server; a closed one wants a key."""
    processes = f", {workers} workers," if workers > 1 else ""
    lines = [f"energy-ood {model_store.__version__}{processes} on {url}"]
    for engine in models.engines:
        verdict = engine.bundle.manifest.verdict
        calibration = engine.bundle.manifest.calibrations[verdict]
        lines.append(
            f"  {engine.name}  flags {verdict.replace('_', ' ')} <= {calibration.threshold:.4f} "
            f"(alpha {100 * calibration.alpha:g} %)  {engine.runtime_name}"
        )
    lines += [f"  {failed.ref}  not loaded: {failed.reason}" for failed in models.failed]
    first = models.engines[0].bundle
    image = first.folder / first.manifest.golden[0].file
    key = "-H 'Authorization: Bearer KEY' " if closed else ""
    lines += [
        "try it:",
        f"  curl {key}--data-binary @{shlex.quote(str(image))} {url}/predict",
        f"pages: {url}/ and {url}/docs",
    ]
    return "\n".join(lines)


def address(listener: socket.socket) -> str:
    """Return the URL at which a bound socket can be reached from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
