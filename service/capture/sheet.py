"""The contact sheet: one HTML page of captured images, which asks nothing of a network."""

import re
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from itertools import groupby

from model_store.errors import ImageError
from service.capture.captured import CapturedImage
from service.capture.thumbnail import thumbnail

_CONTROL_PARTS = 4
"""Where not all are shown, a quarter of those shown are control images, as far as there are so many."""


def page(found: Sequence[CapturedImage], *, limit: int, damaged: int = 0) -> str:
    """Return the page: grouped by predicted class, least negative energy first.

    Args:
        found: what is captured.
        limit: how many of them are shown, those of the least negative energies.
        damaged: parts of the index that could not be read, which the page mentions.
    """
    shown = choose(found, limit)
    groups = _by_class(shown)
    parts = {
        "@STYLE@": _resource("sheet.css"),
        "@SCRIPT@": _resource("sheet.js"),
        "@SUMMARY@": _summary(found, shown, damaged),
        "@CLASSES@": "".join(_class_link(at, group) for at, group in enumerate(groups)),
        "@IMAGES@": "".join(_section(at, group) for at, group in enumerate(groups)),
    }
    # In one pass: a class may be named as a mark is.
    return re.sub("|".join(parts), lambda mark: parts[mark[0]], _resource("sheet.html"))


def choose(found: Sequence[CapturedImage], limit: int) -> list[CapturedImage]:
    """Return what is shown, least negative energy first."""
    ordered = sorted(found, key=lambda image: image.row.negative_energy)
    flagged = [image for image in ordered if image.row.kind == "flagged"]
    control = [image for image in ordered if image.row.kind != "flagged"]
    controls = min(len(control), max(limit // _CONTROL_PARTS, limit - len(flagged)))
    chosen = flagged[: limit - controls] + control[:controls]
    return sorted(chosen, key=lambda image: image.row.negative_energy)


def _by_class(shown: Sequence[CapturedImage]) -> list[list[CapturedImage]]:
    """Return groups of one predicted class each, that of the least negative energy first."""
    by_name = sorted(shown, key=lambda image: image.row.class_name)  # stable: the order within stays
    groups = [list(group) for _, group in groupby(by_name, key=lambda image: image.row.class_name)]
    return sorted(groups, key=lambda group: group[0].row.negative_energy)


def _summary(found: Sequence[CapturedImage], shown: Sequence[CapturedImage], damaged: int) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in _lines(found, shown, damaged))


def _lines(found: Sequence[CapturedImage], shown: Sequence[CapturedImage], damaged: int) -> Iterator[str]:
    if not found:
        yield "No image is captured yet."
    else:
        models = sorted({image.row.model for image in found})
        times = [image.row.time for image in found]
        yield (
            f"{_count(found)}, judged by {', '.join(models)} from {min(times):%Y-%m-%d %H:%M:%S} to "
            f"{max(times):%Y-%m-%d %H:%M:%S} UTC. The class is the model's guess, of flagged images too."
        )
    if len(shown) < len(found):
        yield f"The page is limited to {len(shown):,} of them, the least negative energies: {_count(shown)}."
    if damaged:
        yield f"{damaged:,} parts of the index are damaged; their images are left out."


def _count(images: Sequence[CapturedImage]) -> str:
    flagged = sum(image.row.kind == "flagged" for image in images)
    noun = "image" if len(images) == 1 else "images"
    return f"{len(images):,} {noun} ({flagged:,} flagged, {len(images) - flagged:,} control)"


def _class_link(at: int, group: Sequence[CapturedImage]) -> str:
    return f'<li><a href="#class-{at}">{escape(group[0].row.class_name)}</a> {len(group):,}</li>'


def _section(at: int, group: Sequence[CapturedImage]) -> str:
    name = escape(group[0].row.class_name)
    items = "".join(map(_item, group))
    return f'<section><h2 id="class-{at}" tabindex="-1">{name}</h2><ul class="grid">{items}</ul></section>'


def _item(image: CapturedImage) -> str:
    row = image.row
    time = row.time.isoformat(timespec="microseconds")
    sort = f'data-energy="{row.negative_energy!r}" data-p="{row.p_value!r}" data-time="{escape(time)}"'
    facts = {
        "negative energy": f"{row.negative_energy:.3f}",
        "p-value": f"{row.p_value:.4f}",
        "time": f"{row.time:%Y-%m-%d %H:%M:%S}",
    }
    listing = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return (
        f'<li class="{"flagged" if row.kind == "flagged" else "control"}" {sort} data-class="{escape(row.class_name)}">'
        f"<figure>{_picture(image)}<figcaption><strong>{escape(row.class_name)}</strong> "
        f'<span class="kind">{escape(row.kind)}</span><dl>{listing}</dl>'
        f"<details><summary>more</summary><p>{_details(image)}</p></details></figcaption></figure></li>"
    )


def _picture(image: CapturedImage) -> str:
    try:
        picture = thumbnail(image.path.read_bytes())
    except (ImageError, OSError):
        return '<div class="missing">The image can\'t be read.</div>'
    alt = escape(f"{image.row.kind}, taken for {image.row.class_name}")
    return f'<img src="{picture.url}" width="{picture.width}" height="{picture.height}" alt="{alt}" loading="lazy">'


def _details(image: CapturedImage) -> str:
    row = image.row
    file = "/".join(image.path.parts[-4:])
    lines = (
        f"file {file}",
        f"{row.bytes:,} bytes, {row.encoding}, sent as {row.sent_as}",
        f"model {row.model}",
        f"confidence {row.confidence:.1%}; p-value by {row.score}",
        f"request {row.request_id}",
    )
    return "<br>".join(map(escape, lines))


def _resource(name: str) -> str:
    return files("service.capture").joinpath(name).read_text(encoding="utf-8")
