"""Write pip's whole configuration here, files and `PIP_*` variables, as one pip.conf: pip_configuration.py FILE MOUNT.

Of what it names on this machine (certificates, constraints, folders of wheels) the paths in FILE begin with MOUNT, and
the true ones are printed, one a line: whoever builds elsewhere puts them there.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from configparser import RawConfigParser
from pathlib import Path

Sections = Mapping[str, Mapping[str, str]]
_LINE = re.compile(r"""(?P<section>:env:|[\w-]+)\.(?P<key>[\w-]+)=(?P<value>'.*'|".*")""")
_URL = "file://"


def read(listing: str) -> Sections:
    """Return section to key to value of what `pip config list` printed; variables win, as they do in pip."""
    found = [match.groupdict() for match in map(_LINE.fullmatch, listing.splitlines()) if match]
    sections: dict[str, dict[str, str]] = {}
    for entry in sorted(found, key=lambda entry: entry["section"] == ":env:"):
        section = "global" if entry["section"] == ":env:" else entry["section"]
        sections.setdefault(section, {})[entry["key"]] = ast.literal_eval(entry["value"])
    return sections


def local_paths(sections: Sections) -> Iterator[Path]:
    """Yield the paths among the values that exist; of an index, a `file:` URL, its parent, which has the files."""
    words = {word for section in sections.values() for value in section.values() for word in value.split()}
    for word in sorted(words):
        path = Path(word.removeprefix(_URL)).parent if word.startswith(_URL) else Path(word)
        if path.is_absolute() and path.exists():
            yield path


def moved(sections: Sections, mount: str) -> Sections:
    """Return the same with every path that exists here below `mount`."""

    def move(word: str) -> str:
        url, path = (_URL, word.removeprefix(_URL)) if word.startswith(_URL) else ("", word)
        return f"{url}{mount}{path}" if Path(path).is_absolute() and Path(path).exists() else word

    return {
        name: {key: " ".join(map(move, value.split())) for key, value in section.items()}
        for name, section in sections.items()
    }


def main(file: Path, mount: str) -> None:
    """Write the file, print the paths."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    sections = read(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # noqa: S603
    parser = RawConfigParser()
    parser.read_dict(moved(sections, mount))
    with file.open("w") as out:
        parser.write(out)
    for path in local_paths(sections):
        print(path)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
