"""Write the runbook as the page that Prometheus serves, where alerts link to: `make rules`."""

import posixpath
import re
from pathlib import Path

from markdown_it import MarkdownIt

HERE = Path(__file__).parent
RUNBOOK = HERE / "runbook.md"
PAGE = HERE / "prometheus" / "user" / "runbook.html"
HEAD = """\
<!doctype html>
<!-- Made of deploy/runbook.md by `make rules`. -->
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Runbook: energy-ood</title>
<style>
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
body { max-width: 46rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h2 { margin-top: 2.5rem; border-top: 1px solid; padding-top: 1rem; }
pre { white-space: pre-wrap; padding-left: 1rem; border-left: 2px solid; }
:target { border-top: 4px solid #c2410c; }
</style>
</head>
<body>
"""
END = "</body>\n</html>\n"


def generate() -> str:
    """Return the page: an entry's anchor is the alert's name in lower case, as on Git hosts."""
    markdown = MarkdownIt()
    tokens = markdown.parse(_name_files(RUNBOOK.read_text()))
    for at, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", tokens[at + 1].content.lower())
    body: str = markdown.renderer.render(tokens, markdown.options, {})
    return HEAD + body + END


def _name_files(text: str) -> str:
    """Put, for each link to a file of the repository, which is not beside the page, that file's path there."""

    def path(link: "re.Match[str]") -> str:
        return f"`{posixpath.normpath(posixpath.join(HERE.name, link[1]))}`"

    return re.sub(r"\[[^\]]*\]\((?!https?:)([^)#]+)[^)]*\)", path, text)


def main() -> None:
    """Write it."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(generate())


if __name__ == "__main__":
    main()
