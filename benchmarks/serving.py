"""Our server beside its peers, in turns on one machine: throughput, latency, overload, start-up, memory.

LitServe, mosec and a plain FastAPI server serve the same network and get the same images, once with eager PyTorch
inside, as their users run them, and once with our OpenVINO model. On a GPU ours is measured alone. Exit status 1 if
anything failed; whether targets are met is in the report and is no error.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.bundles import publish_wrn_40_2
from benchmarks.conditions import conditions, peer_versions
from benchmarks.contenders import PEERS_PYTHON, Contender, cpu_contenders, cuda_contenders
from benchmarks.http_requests import sample_images
from benchmarks.report import FOLDER, REPORT, RESULTS, report
from benchmarks.results import write_results
from benchmarks.run import FULL, SMALL, Plan, Run
from benchmarks.wrk import WrkError, find_wrk, wrk_version

PARTS = Path("runs/bench")
"""Where small runs and runs of some contenders leave their results, so that they are not taken for the whole."""


class UnfitError(Exception):
    """Something that the benchmark needs is not here."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; return the exit status: 1 if a contender failed, 2 if there is nothing to measure with."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no server is left behind
    options = _parser().parse_args(arguments)
    folder = FOLDER if not (options.small or options.only) else PARTS
    options.out, options.report = options.out or folder / RESULTS, options.report or folder / REPORT
    try:
        return _measure(options)
    except (UnfitError, WrkError) as err:
        print(f"serving: {err}", file=sys.stderr)
        return 2


def _measure(options: argparse.Namespace) -> int:
    find_wrk()
    plan, pixels = _plan(options), sample_images()
    contenders = chosen(options.device, options.only, small=options.small)
    where = _conditions(contenders, plan)
    with tempfile.TemporaryDirectory() as folder:
        store = publish_wrn_40_2(Path(folder, "store"))
        run = Run(plan, contenders, pixels, store, Path(folder, "cache"), lambda text: print(text, flush=True))
        run.prepare()
        for number in range(1, plan.rounds + 1):
            run.round(number)
            write_results(options.out, run.results(where))
    results = run.results(where)
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(report(results))
    print(f"{options.report}, {options.out}")
    return 1 if results.failures else 0


def chosen(device: str | None, only: Sequence[str], *, small: bool) -> list[Contender]:
    """Return the contenders of a device, CUDA where there is one, whose name holds any of `only`; all without.

    small: peers get the first of their settings instead of a choice.

    Raises:
        UnfitError: there are none, or the peers are not installed.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UnfitError("device is cuda; there is no CUDA device here")
    everyone = (cuda_contenders if device == "cuda" else cpu_contenders)(sample_images())
    found = [each for each in everyone if not only or any(part in each.name for part in only)]
    if not found:
        names = "; ".join(each.name for each in everyone)
        raise UnfitError(f"--only {' '.join(only)} is in no contender's name: {names}")
    if not all(each.entrant.is_ours for each in found) and not PEERS_PYTHON.exists():
        raise UnfitError(f"{PEERS_PYTHON} is not there: run `make bench`, which installs the peers")
    return [replace(each, candidates=each.candidates[:1]) for each in found] if small else found


def _plan(options: argparse.Namespace) -> Plan:
    given = {"rounds": options.rounds, "closed_s": options.seconds, "open_s": options.open_seconds}
    return replace(
        SMALL if options.small else FULL, **{key: value for key, value in given.items() if value is not None}
    )


def _conditions(contenders: Sequence[Contender], plan: Plan) -> dict[str, Any]:
    found = conditions("benchmarks.serving") | {"wrk": wrk_version(), "plan": asdict(plan)}
    if not all(each.entrant.is_ours for each in contenders):
        found["peers"] = peer_versions(PEERS_PYTHON)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serving", description=__doc__)
    parser.add_argument("--small", action="store_true", help="see in a minute or two that everything works")
    parser.add_argument("--rounds", type=int, help="how often each has its turn")
    parser.add_argument("--seconds", type=float, help="how long each closed loop lasts, in whole seconds")
    parser.add_argument("--open-seconds", type=float, help="how long each open loop lasts")
    parser.add_argument("--only", nargs="+", default=[], help="parts of contenders' names, any of which is enough")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="CUDA where there is one")
    parser.add_argument("--out", type=Path, help="all figures and their conditions, as JSON")
    parser.add_argument("--report", type=Path, help="the report, in Markdown")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
