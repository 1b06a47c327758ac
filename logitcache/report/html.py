"""HTML as a tree of elements: whatever text comes from a run or a cache, it can only ever be text."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from xml.etree.ElementTree import Element, SubElement, tostring

Child = str | Element | None | Iterable["Child"]

_BLOCKS = ("section", "figure", "table", "tr", "li", "p", "h2", "h3", "details", "meta", "style", "svg", "dl")


def tag(name: str, *children: Child, **attributes: object) -> Element:
    """Make an element.

    Args:
        name: of the element.
        children: text, elements, lists of them; None leaves one out.
        attributes: by name, with `class_` for class and `aria_label` for aria-label; None leaves one out.
    """
    given = {key.rstrip("_").replace("_", "-"): str(v) for key, v in attributes.items() if v is not None}
    made = Element(name, given)
    for child in _flat(children):
        if isinstance(child, Element):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + child
        else:
            made.text = (made.text or "") + child
    return made


def table(
    caption: str | None, columns: Sequence[Child], rows: Iterable[Sequence[Child]], *, name: str
) -> Element:
    """Make a table whose first column heads its rows, in a frame that scrolls by itself on a narrow page.

    Args:
        caption: above the table.
        columns: heads of the columns.
        rows: cells, the first of each row its head.
        name: of the frame, for those who cannot see it.
    """
    made = tag("table", caption and tag("caption", caption))
    made.append(tag("thead", tag("tr", [tag("th", column, scope="col") for column in columns])))
    body = SubElement(made, "tbody")
    for head, *cells in rows:
        body.append(tag("tr", tag("th", head, scope="row"), [tag("td", cell) for cell in cells]))
    return tag("div", made, class_="scroll", tabindex="0", role="region", aria_label=name)


class Ids:
    """Ids that are given out once: `new("chart")` is chart-1, chart-2, …"""

    def __init__(self) -> None:
        self._numbers: dict[str, count[int]] = {}

    def new(self, kind: str) -> str:
        """Give out the next one of a kind."""
        return f"{kind}-{next(self._numbers.setdefault(kind, count(1)))}"


def written(root: Element) -> str:
    """Write a whole page."""
    for element in root.iter():
        if element.tag in _BLOCKS and not element.tail:
            element.tail = "\n"
    return "<!doctype html>\n" + tostring(root, encoding="unicode", method="html")


def _flat(children: Iterable[Child]) -> Iterator[str | Element]:
    for child in children:
        if isinstance(child, str | Element):
            yield child
        elif child is not None:
            yield from _flat(child)
