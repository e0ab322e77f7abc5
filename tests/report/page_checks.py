"""What tests look at in a page: its text as HTML, and in a browser what cannot be read there."""

from html.parser import HTMLParser

import browser
import pytest

VOID = {"meta", "link", "img", "br", "hr", "input"}

needs_browser = pytest.mark.skipif(
    browser.CHROMIUM is None,
    reason="no chromium here to open the report in (Debian: apt-get install chromium)",
)

# What reaches beyond the window and is in no box that scrolls by itself.
WIDE = """[...document.body.querySelectorAll('*')]
  .filter(e => !e.closest('.sr') && e.getBoundingClientRect().right > innerWidth + 1
    && !e.parentElement.closest('.scroll, pre'))
  .map(e => e.outerHTML.slice(0, 80))"""

# The smallest contrast of text with its ground (WCAG 2), over all words outside pictures.
CONTRAST = """(() => {
  const words = 'p, dt, dd span, a, td, th, b, li, h1, h2, h3, summary, figcaption, caption, pre,'
    + ' button';
  const rgb = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) =>
    0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour.length == 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const contrast = e => {
    const text = luminance(rgb(getComputedStyle(e).color));
    const [light, dark] = [text, luminance(ground(e))].sort((x, y) => y - x);
    return (light + 0.05) / (dark + 0.05);
  };
  return Math.min(...[...document.body.querySelectorAll(words)].map(contrast));
})()"""

# An image that a name or number smuggled in.
SMUGGLED = "document.querySelectorAll('[onerror], img[src=x]').length"


class Checker(HTMLParser):
    """Notes what is not well formed, all ids, and the attributes of all tags."""

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.faults = []
        self.ids = []
        self.tags = []
        self.text = []
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> is left open" for tag in self.open]

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes something else")

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def attributes_of(self, tag):
        """The attributes of all elements of a kind."""
        return [attributes for name, attributes in self.tags if name == tag]

    def words(self):
        """The text with single spaces."""
        return " ".join(" ".join(self.text).replace("\u00a0", " ").split())


def check(file):
    """Read a page."""
    return Checker(file.read_text(encoding="utf-8"))
