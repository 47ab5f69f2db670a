"""A page taken apart without a browser: strict about what a browser would silently mend."""

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Parsed(HTMLParser):
    """Elements with their attributes and texts; raises where a tag is not closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if not set(self.open) & {"style", "script"}:
            self.texts.append((tuple(self.open), data))

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    def under(self, tag):
        """The texts directly or deeper inside elements of a kind, one string each run."""
        return [data.strip() for path, data in self.texts if tag in path and data.strip()]

    @property
    def words(self):
        return " ".join(" ".join(data for _, data in self.texts).split())


def addresses(page):
    """Whatever a browser might fetch: no address inside the page, no data of its own."""
    named = ("src", "href", "xlink:href", "action", "data", "poster", "srcset")
    found = [attrs[name] for _, attrs in page.elements for name in named if name in attrs]
    return [address for address in found if not address.startswith(("#", "data:"))]
