"""Which tests run where: GPU tests need a device, `images` tests a folder; in CI nothing else may be skipped."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

settings.register_profile("unhurried", parent=settings(), deadline=None)
settings.load_profile("unhurried")  # a busy machine is no error
DATA = Path(__file__).parent / "data"
LEFT_OUT = pytest.StashKey[int]()
"""How many `images` tests were left out for want of TEST_IMAGES."""


@pytest.hookimpl(trylast=True)  # after those that -m and -k leave out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "TEST_IMAGES" not in os.environ:
        left_out = [item for item in items if item.get_closest_marker("images")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("images")]
        config.stash[LEFT_OUT] = len(left_out)
        if hasattr(config, "workeroutput"):  # of pytest-xdist, whose workers alone collect
            config.workeroutput["left_out"] = len(left_out)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if (
        report.skipped
        and os.environ.get("CI")
        and not item.get_closest_marker("gpu")
        and not hasattr(report, "wasxfail")
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what an xdist worker counted, unless it crashed."""
    if "left_out" in (output := getattr(node, "workeroutput", {})):
        node.config.stash[LEFT_OUT] = output["left_out"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what the stress tests did, and how often, as their processes' output would be lost; and what was left out."""
    if left_out := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"tests marked `images` that were left out: {left_out}; TEST_IMAGES=DIR runs them")
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    for text in (value for report in reports for name, value in report.user_properties if name == "ran"):
        terminalreporter.write_line(text)


@pytest.fixture(scope="session")
def image_sets() -> Path:
    """A few hundred real images: cifar10 (train, test), outliers, svhn, textures."""
    return DATA / "images"


@pytest.fixture(scope="session")
def full_image_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The full image sets of TEST_IMAGES, unpacked as .npz."""
    source, target = Path(os.environ["TEST_IMAGES"]), tmp_path_factory.mktemp("image-sets")
    subprocess.run([sys.executable, source / "unpack.py", "--to", target, "--npz"], check=True, capture_output=True)
    return target


@pytest.fixture(scope="session")
def openvino_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of conversions for OpenVINO that all processes of the tests share: each bundle is converted once."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "openvino-cache"


@pytest.fixture
def run_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command's `main` in this process, which has imported all it needs, as from a shell in `tmp_path`."""

    def run(main: Callable[[], None], *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [main.__module__, *map(str, arguments)]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", command)
        for name, value in {"COLUMNS": "200", **environment}.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code
        return subprocess.CompletedProcess(command, status, *capsys.readouterr())

    return run
