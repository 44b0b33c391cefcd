"""Draw a survey as bars, for each root and for all of them, as SVG or PNG by the file's suffix.

Route: Survey -> `_make_chart`, shapes with their places -> written as SVG here, or painted as PNG by Pillow, which is
an extra (`plot`) and is imported before anything is listed.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from coordinator.commands.output import format_bytes
from coordinator.errors import BaleenError, UsageError
from coordinator.survey.survey import Survey

WIDTH = 960
BARS_FROM, BARS_TO = 130, 800
BAR, GAP, HEADING, TEXT, TITLE = 18, 6, 30, 13, 18
MARGIN = 20
#: Only the roots that store most are drawn.
ROOTS_DRAWN = 20
INK, PALE, LOGICAL, STORED, SHARED = "#1f2933", "#667785", "#c3ccd4", "#3b7dd8", "#1b998b"


class Bar(NamedTuple):
    x: float
    y: float
    width: float
    height: float
    colour: str


class Label(NamedTuple):
    x: float
    #: Of the middle of the line.
    y: float
    text: str
    size: int
    colour: str
    right: bool = False


class Chart(NamedTuple):
    height: int
    shapes: Sequence[Bar | Label]


def make_renderer(file: Path) -> Callable[[Survey], None]:
    """Return a function that draws into the file; raises UsageError or BaleenError if none can."""
    kind = file.suffix.lower()
    if not file.parent.is_dir():
        raise UsageError(f"There is no directory {str(file.parent)!r} for the plot: create it.")
    if kind == ".svg":
        return lambda found: _save_file(file, render_svg(_make_chart(found)).encode())
    if kind == ".png":
        try:
            import PIL  # noqa: F401, PLC0415 - an extra
        except ImportError as error:
            raise BaleenError(
                "A PNG needs Pillow, which is not installed: run `pip install '.[plot]'` in a checkout of Baleen, "
                "or name a .svg file."
            ) from error
        return lambda found: _save_file(file, render_png(_make_chart(found)))
    raise UsageError(f"{str(file)!r} is neither .svg nor .png: choose one of these suffixes.")


def render_svg(chart: Chart) -> str:
    shapes = "\n".join(map(_render_element, chart.shapes))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{chart.height}" '
        f'viewBox="0 0 {WIDTH} {chart.height}" font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{shapes}\n</svg>\n'
    )


def _render_element(shape: Bar | Label) -> str:
    if isinstance(shape, Bar):
        return (
            f'<rect x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" height="{shape.height:.1f}" '
            f'fill="{shape.colour}"/>'
        )
    anchor = ' text-anchor="end"' if shape.right else ""
    return (
        f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size}" fill="{shape.colour}" '
        f'dominant-baseline="central"{anchor}>{escape(_shorten_text(shape.text))}</text>'
    )


def render_png(chart: Chart) -> bytes:
    """Paint at twice the resolution, for high-density screens."""
    from io import BytesIO  # noqa: PLC0415

    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415

    scale = 2
    image = Image.new("RGB", (WIDTH * scale, chart.height * scale), "#ffffff")
    draw = ImageDraw.Draw(image)
    for shape in chart.shapes:
        x, y = shape.x * scale, shape.y * scale
        if isinstance(shape, Label):
            font = ImageFont.load_default(shape.size * scale)
            draw.text((x, y), _shorten_text(shape.text), shape.colour, font, anchor="rm" if shape.right else "lm")
        else:
            # Pillow's rectangle includes its last row and column.
            right, bottom = x + max(1, shape.width * scale) - 1, y + shape.height * scale - 1
            draw.rectangle((x, y, right, bottom), shape.colour)
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _make_chart(found: Survey) -> Chart:
    shapes: list[Bar | Label] = []
    longest = max(found.logical_bytes, found.stored_bytes, 1)
    y = MARGIN + TITLE / 2
    shapes.append(Label(MARGIN, y, "What deduplication saves", TITLE, INK))
    y += TITLE + GAP
    saved = found.saving_bytes / found.stored_bytes if found.stored_bytes else 0
    summary = f"one shared layer would save {format_bytes(found.saving_bytes)}, {saved:.0%} of what is stored"
    shapes.append(Label(MARGIN, y, summary, TEXT, PALE))
    y += HEADING
    for heading, bars in _group_bars(found):
        shapes.append(Label(MARGIN, y, heading, TEXT, INK))
        y += HEADING / 2 + GAP / 2
        for name, size, colour in bars:
            shapes += [
                Label(BARS_FROM - 10, y + BAR / 2, name, TEXT, PALE, right=True),
                Bar(BARS_FROM, y, (BARS_TO - BARS_FROM) * size / longest, BAR, colour),
                Label(
                    BARS_FROM + (BARS_TO - BARS_FROM) * size / longest + 8, y + BAR / 2, format_bytes(size), TEXT, INK
                ),
            ]
            y += BAR + GAP
        y += HEADING / 2
    return Chart(round(y + MARGIN), shapes)


def _group_bars(found: Survey) -> Iterator[tuple[str, Sequence[tuple[str, int, str]]]]:
    number = len(found.roots)
    yield (
        "all roots" if number > 1 else "in all",
        (
            ("logical", found.logical_bytes, LOGICAL),
            ("stored", found.stored_bytes, STORED),
            ("shared layer", found.shared_layer_bytes, SHARED),
        ),
    )
    largest = sorted(found.roots, key=lambda root: -root.stored_bytes)
    for root in largest[:ROOTS_DRAWN]:
        yield root.url, (("logical", root.logical_bytes, LOGICAL), ("stored", root.stored_bytes, STORED))
    if number > ROOTS_DRAWN:
        yield f"and {number - ROOTS_DRAWN:,} smaller roots", ()


def _shorten_text(text: str) -> str:
    """Replace control characters, and truncate text that does not fit."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= 120 else f"{shown[:119]}…"


def _save_file(file: Path, content: bytes) -> None:
    try:
        file.write_bytes(content)
    except OSError as error:
        raise BaleenError(f"{str(file)!r} cannot be written ({error.strerror}): name another file.") from error
