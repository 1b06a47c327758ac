"""A browser shows the report on phones and desks, in light and dark."""

from pathlib import Path

import browser
import pytest

LEAST_CONTRAST = r"""(() => {
  const light = colour => colour.match(/[\d.]+/g).slice(0, 3).map(Number).map(part => part / 255)
    .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, number) => sum + part * [0.2126, 0.7152, 0.0722][number], 0);
  const texts = [...document.querySelectorAll('body *')].filter(element =>
    element.tagName != 'title' && [...element.childNodes].some(node => node.nodeType == 3 && node.data.trim()));
  return Math.min(...texts.map(element => {
    const style = getComputedStyle(element);
    let behind = element;
    while (getComputedStyle(behind).backgroundColor == 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
    const two = [style[element instanceof SVGElement ? 'fill' : 'color'], getComputedStyle(behind).backgroundColor];
    const [low, high] = two.map(light).sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }));
})()"""


@pytest.mark.skipif(browser.FOUND is None, reason="needs Chromium: apt-get install chromium")
def test_a_browser_shows_it_on_phones_and_desks_in_light_and_dark(page: Path, tmp_path: Path) -> None:
    from io import BytesIO

    from PIL import Image

    with browser.chromium(tmp_path / "profile") as tab:
        for width in (400, 1200, 1400):
            for scheme in ("light", "dark"):
                tab.open(page, width, scheme)
                assert tab.complaints == []
                assert tab.value("document.documentElement.scrollWidth") == width
                frame = "document.querySelector('.figures .scroll')"
                assert width == 400 or tab.value(f"{frame}.scrollWidth <= {frame}.clientWidth")
                tab.value("document.querySelectorAll('details').forEach(details => details.open = true)")
                assert tab.value("document.documentElement.scrollWidth") == width
                drawn = "[...document.querySelectorAll('.line')].filter(line => line.getTotalLength() > 20).length"
                assert tab.value(drawn) > 20
                assert tab.value("[...document.images].every(image => image.naturalWidth > 0)")
                assert tab.value("getComputedStyle(document.querySelector('.line')).stroke") != "none"
                assert tab.value(LEAST_CONTRAST) >= 4.5
                corner = Image.open(BytesIO(tab.screenshot())).convert("L").getpixel((2, 2))
                assert (corner > 200) == (scheme == "light")
