"""Reads the pages that commands write: elements, attributes, text, and what is embedded in them."""

import base64
import io
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input", "hr", "rect", "line"}


class Page(HTMLParser):
    """Collects elements with their attributes, and checks that tags nest."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)

    @property
    def sections(self):
        """Names of the page's sections, in order."""
        return self.attributes("section", "aria-labelledby")

    def attributes(self, tag, name):
        return [values[name] for kind, values in self.elements if kind == tag and name in values]


def decode_uri(uri):
    """Kind and content of a data: URI."""
    kind, content = uri.removeprefix("data:").split(";base64,")
    return kind, io.BytesIO(base64.b64decode(content))
