"""What an image is made of, as far as that can be told without building one; deploy/build_image.sh does that."""

import re
from configparser import RawConfigParser
from fnmatch import fnmatch
from pathlib import Path

import pytest

from deploy import pip_configuration
from model_store import __version__
from service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
FINAL = DOCKERFILE.rpartition("\nFROM ")[2]
IGNORED = (ROOT / ".dockerignore").read_text().split()
LISTING = """\
:env:.find-links='/wheels /nowhere'
:env:.default-timeout='60'
global.constraint='{folder}/constraints.txt'
global.extra-index-url='file://{folder}/index/simple'
global.default-timeout='15'
install.no-binary='it isn"t'
a line that pip has not written
"""


def test_what_is_copied_is_there_and_sent_to_the_build() -> None:
    sent = [pattern.removeprefix("!") for pattern in IGNORED if pattern.startswith("!")]
    assert IGNORED[0] == "*"
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        for source in [word for word in line.split() if not word.startswith("--")][:-1]:
            assert (ROOT / source).exists(), source
            assert any(source.startswith(allowed) for allowed in sent), source
    assert not any(fnmatch("training", allowed) for allowed in sent)


def test_the_image_is_not_roots_and_takes_signals() -> None:
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", FINAL, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["ood-serve"\]$', FINAL, re.MULTILINE)  # a shell would keep SIGTERM for itself
    assert re.search(r'^HEALTHCHECK .* CMD \["ood-healthcheck"\]$', FINAL, re.MULTILINE)
    assert not re.search(r"pip|venv", FINAL)


def test_its_variables_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = dict(re.findall(r"(OOD_\w+)=(\S+)", FINAL))
    assert variables.keys() <= {PREFIX + name.upper() for name in Settings.model_fields}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.host, settings.port) == ("0.0.0.0", int(re.findall(r"^EXPOSE (\d+)$", FINAL, re.MULTILINE)[0]))
    assert f" {settings.cache_dir} {settings.cache_dir}\n" in FINAL  # where the build has left what it converted
    assert f"ARG VERSION={__version__}\n" in FINAL


def test_pips_configuration_is_one_file_that_names_what_is_mounted(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").touch()
    (tmp_path / "index" / "simple").mkdir(parents=True)
    sections = pip_configuration.read(LISTING.format(folder=tmp_path))
    assert list(pip_configuration.local_paths(sections)) == [tmp_path / "constraints.txt", tmp_path / "index"]
    assert pip_configuration.moved(sections, "/host") == {
        "global": {
            "find-links": "/wheels /nowhere",
            "default-timeout": "60",
            "constraint": f"/host{tmp_path}/constraints.txt",
            "extra-index-url": f"file:///host{tmp_path}/index/simple",
        },
        "install": {"no-binary": 'it isn"t'},
    }


def test_pip_reads_that_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pip_configuration.main(tmp_path / "pip.conf", "/host")
    assert all(Path(line).exists() for line in capsys.readouterr().out.splitlines())
    written = RawConfigParser()
    assert written.read(tmp_path / "pip.conf")
