"""ood-serve: a bundle, served over HTTP; or a contact sheet of the images that were captured."""

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from service.errors import CaptureError, SettingsError, StartError
from service.settings import PREFIX, Settings

REVIEW = "review"
"""The first argument that asks for a contact sheet of captured images instead of a server."""


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Return the settings of flags, then of `OOD_*` variables, then the defaults.

    Raises:
        SettingsError: an unknown variable, or values that are impossible; each named.
    """
    flags = {name: value for name, value in vars(_parser().parse_args(arguments)).items() if value is not None}
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise SettingsError(f"unknown variables {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    try:
        return Settings(**flags)
    except ValidationError as err:
        raise SettingsError("; ".join(_explain(fault) for fault in err.errors())) from None


def _parser() -> argparse.ArgumentParser:
    """Return a parser with a flag for each setting; values stay text, for Settings to check."""
    parser = argparse.ArgumentParser(
        prog="ood-serve",
        description="Serve bundles over HTTP. Each flag has an OOD_* variable; flags win.",
        epilog="`ood-serve review DIR --out FILE` makes a contact sheet of captured images: `ood-serve review --help`.",
    )
    for name, field in Settings.model_fields.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", metavar="VALUE", help=(field.description or "").replace("%", "%%")
        )
    return parser


def _explain(fault: Mapping[str, object]) -> str:
    where = fault["loc"]
    name = str(where[0]) if isinstance(where, tuple) and where else ""
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not name:
        return message
    given = "(hidden)" if name == "api_keys" else repr(fault["input"])
    return f"--{name.replace('_', '-')} / {PREFIX}{name.upper()} is {given}: {message}"


def main() -> None:
    """Serve until a signal; exit status 1 with a message if it can't start or an engine dies."""
    # Until a server takes them: for the first process of a container no signal has a default, SIGTERM would be ignored,
    # and SIGINT would be told in a traceback.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: os._exit(128 + received))
    try:
        if sys.argv[1:2] == [REVIEW]:
            from service.capture.review import review

            raise SystemExit(review(sys.argv[2:]))
        raise SystemExit(serve(read_settings(sys.argv[1:], os.environ)))
    except (SettingsError, StartError, CaptureError) as err:
        print(f"ood-serve: {err}", file=sys.stderr)  # noqa: T201
        raise SystemExit(1) from None


def serve(settings: Settings) -> int:
    """Load, listen, and serve until a signal or the death of an engine; return the exit status.

    Raises:
        StartError: it can't start.
        CaptureError: images are to be captured, and what that needs is not installed.
    """
    from service.capture.capture import require_library
    from service.tracing import require_usable

    require_usable(os.environ)  # refusals are told before anything is loaded
    require_library(settings)
    if settings.workers > 1:
        return _serve_with_workers(settings)
    from service import interpreter, logs  # the heavy imports wait until the settings are known to be good
    from service.app import create_app
    from service.greeting import address, greeting
    from service.listener import bind
    from service.server import Server

    logs.set_up(settings.log_level)
    listener = bind(settings.host, settings.port)
    app = create_app(settings)
    hello = greeting(app.state.service.models, address(listener), closed=bool(settings.api_keys))
    server = Server(app, settings, hello)
    interpreter.prepare()
    server.run(sockets=[listener])
    return 1 if server.engine_died else 0


def _serve_with_workers(settings: Settings) -> int:
    from service import logs
    from service.listener import bind
    from service.processes.supervisor import supervise

    logs.set_up(settings.log_level, process="supervisor")
    with bind(settings.host, settings.port) as listener:
        return supervise(settings, listener)
