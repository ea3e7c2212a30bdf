"""Try the watch on one machine: a server under replayed images, Prometheus and Alertmanager, until Ctrl-C."""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx

from deploy.alarms import Alarm, alarms, changes
from deploy.programs import MissingProgramError, PortTakenError, ProgramEndedError, answers
from deploy.replay import Pools, Sent, load_pools, mixed, replaying
from deploy.stack import Ports, Stack, running_stack

INTERVAL_S = 5
"""How often Prometheus looks, in place of the 15 s that ship: whoever tries it waits for it."""
CAPTURED = "captured"
"""The folder of captured images, in that of the trial."""
LOOK_S = 2.0
TOLD_EVERY_S = 60.0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="observe", description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="the server's")
    parser.add_argument("--prometheus-port", type=int, default=9090)
    parser.add_argument("--alertmanager-port", type=int, default=9093)
    parser.add_argument("--ood-share", type=_share, default=0.2, help="share of OOD images, 0 to 1")
    parser.add_argument("--images-per-s", type=_rate, default=20.0, help="images sent a second")
    return parser.parse_args(arguments)


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share; it must be from 0 to 1")
    return share


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate <= 1000:
        raise argparse.ArgumentTypeError(f"{text} images a second; it must be above 0 and at most 1000")
    return rate


def watch_settings(pools: Pools, images_per_s: float, captured: Path) -> dict[str, str]:
    """Return how a server should watch replayed images, and keep some in a folder.

    The window has as many images as the pool: more would only show how the pool differs from all images.
    """
    return {
        "OOD_WATCH_WINDOW_IMAGES": str(len(pools.in_distribution)),
        "OOD_WATCH_IMAGES_PER_HOUR": str(3600 * images_per_s),
        "OOD_CAPTURE_DIR": str(captured),
    }


def where_to_look(stack: Stack, sent: str) -> str:
    """Return what is running, and where it shows."""
    pages = [f"{stack.prometheus}{path}" for path in ("/alerts", "/classic/alerts")]  # Debian ships the classic one
    shown = next((page for page in pages if answers(page)), f"{stack.prometheus}/api/v1/alerts")
    model = httpx.get(f"{stack.service}/models").raise_for_status().json()["models"][0]
    name = f"{model['name']}@{model['version']}"
    return "\n".join(
        (
            f"sending {sent}",
            f"  the server     {stack.service}/",
            f"  what it sees   {stack.service}/models/{name}/watch",
            f"  Prometheus     {stack.prometheus}/",
            f"  alerts         {shown}",
            f"  Alertmanager   amtool alert --alertmanager.url={stack.alertmanager}",
            f"  logs           {stack.folder}",
            f"  flagged images ood-serve review {stack.folder / CAPTURED} --out flagged.html",
            f"  runbook        {stack.prometheus}/user/runbook.html",
            "dashboards for Grafana: deploy/grafana/dashboards; Ctrl-C ends it",
        )
    )


def report_alarms(stack: Stack, sent: Sent, say: Callable[[str], None]) -> None:
    """Say which alerts begin and end, and now and then what was sent, until interrupted.

    Raises:
        httpx.HTTPError: Prometheus does not answer any more.
    """
    before: list[Alarm] = []
    told_at = time.monotonic()
    while True:
        now = alarms(stack.prometheus)
        for line in changes(before, now):
            say(line)
        before = now
        if time.monotonic() - told_at >= TOLD_EVERY_S:
            told_at = time.monotonic()
            say(f"{sent.images} images sent, {sent.flagged} flagged, {sent.failures} requests failed")
        time.sleep(LOOK_S)


def _say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)  # noqa: T201


def observe(options: argparse.Namespace) -> None:
    """Run it all until interrupted.

    Raises:
        MissingProgramError: Prometheus or Alertmanager is not installed.
        PortTakenError: somebody listens already at one of the ports.
        ProgramEndedError: something could not be started.
        httpx.HTTPError: Prometheus does not answer any more.
    """
    pools = load_pools()
    ports = Ports(options.port, options.prometheus_port, options.alertmanager_port)
    images = mixed(pools, options.ood_share, seed=0)
    with tempfile.TemporaryDirectory(prefix="observe-") as name, ExitStack() as running:
        folder = Path(name)
        settings = watch_settings(pools, options.images_per_s, folder / CAPTURED)
        stack = running.enter_context(running_stack(folder, ports, interval_s=INTERVAL_S, settings=settings))
        sent = running.enter_context(replaying(stack.service, images, options.images_per_s))
        _say(where_to_look(stack, f"{options.images_per_s:g} images/s, {100 * options.ood_share:g} % of them OOD"))
        report_alarms(stack, sent, _say)


def main(arguments: Sequence[str] | None = None) -> int:
    """Observe until Ctrl-C or SIGTERM; return the exit status, 1 with a message if something is missing."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        observe(options)
    except KeyboardInterrupt:
        _say("stopped")
    except (MissingProgramError, PortTakenError, ProgramEndedError, httpx.HTTPError) as err:
        print(f"observe: {err}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
