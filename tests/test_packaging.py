"""What holds the house together: the direction of dependencies, the documented commands, the wheel."""

import ast
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
README = (ROOT / "README.md").read_text()
ALLOWED = {
    "model_store": {"model_store"},
    "training": {"training", "model_store"},
    "service": {"service", "model_store"},
}


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_dependencies_point_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert _imports(path) & ALLOWED.keys() <= ALLOWED[package], path


@pytest.mark.parametrize("module", ["model_store.store", "model_store.cli", "service"])
def test_module_starts_without_what_it_does_not_need(module: str) -> None:
    code = f"import sys, {module}; print({{'torchvision', 'sklearn', 'matplotlib', 'training'}} & sys.modules.keys())"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_readme_commands_run(tmp_path: Path) -> None:
    """The commands of README's first screen, word for word, from a folder of their own; `make test` runs others."""
    shell = [shlex.split(line, comments=True) for block in _blocks("sh")[:3] for line in block.splitlines()]
    assert [command[:2] for command in shell[:3:2]] == [["make", "serve"], ["make", "test"]]
    assert shell[1][0] == "curl"  # sent to a server by the service's tests
    commands = shell[2:]
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    for command in commands[1:]:
        program = BIN / Path(command[0]).name
        finished = subprocess.run([program, *command[1:]], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "store/tiny/1/manifest.json").exists()


def test_readme_example_runs() -> None:
    finished = subprocess.run([sys.executable, "-c", _blocks("python")[0]], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert len(lines) == 10
    assert sum(line.startswith("frog p = ") for line in lines) >= 7


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
        assert target.startswith("https://") or ((ROOT / page).parent / target).exists(), target


def test_make_has_the_documented_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z-]+)", README + (ROOT / ".ci/run").read_text())):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_wheel_carries_the_packages_and_the_bundle(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(next(name for name in names if name.endswith("METADATA"))).decode()
        scripts = wheel.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    if (ROOT / ".git").exists():  # not in a copy of the sources
        tracked = subprocess.run(["git", "ls-files", *ALLOWED], cwd=ROOT, capture_output=True, text=True, check=True)
        assert tracked.stdout
        assert set(tracked.stdout.split()) <= names
    assert not [name for name in names if name.startswith("tests")]
    assert any(name.startswith("model_store/bundles/cifar10/1/") for name in names)
    assert "Name: energy-ood" in metadata
    assert re.search(r"License-Expression: Apache-2\.0", metadata)
    assert any(name.endswith("licenses/NOTICE") for name in names)
    assert "ood-serve = service.cli:main" in scripts
    assert "ood-store = model_store.cli:main" in scripts
    assert "ood-train = training.cli:main" in scripts
