"""What every page of the project promises: it is whole, and loads nothing."""

import base64
import hashlib
import html
import re
from html.parser import HTMLParser

#: How pictures and sounds inside a page begin.
KINDS = {"image/png": (b"\x89PNG",), "audio/ogg": (b"OggS",), "audio/wav": (b"RIFF",)}


class _Page(HTMLParser):
    """Tags that are open, and what the page would load."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.anchors = [], [], set()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        self.anchors.add(attrs.get("id"))
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            if name in attrs:
                self.loads.append(attrs[name])
        assert "style" not in attrs and tag not in ("script", "iframe")
        assert tag != "img" or attrs["alt"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(page):
    """Raise where something of a page leads outside; return its number of pictures."""
    parser = _Page()
    parser.feed(page)
    assert parser.open == []
    images = 0
    for target in parser.loads:
        if target.startswith("#"):
            assert target[1:] in parser.anchors
            continue
        if target == "data:,":
            continue
        kind, content = re.fullmatch(r"data:([\w/]+);base64,(.*)", target).groups()
        assert base64.b64decode(content, validate=True).startswith(KINDS[kind])
        images += kind == "image/png"
    text = re.sub(r'"data:[\w/]+;base64,[^"]*"', '""', page)
    assert not re.search(r"https?:|//|@import|url\(", text)
    # The policy allows the one style, and nothing that the page would have to load.
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    rules = dict(rule.split(None, 1) for rule in html.unescape(policy).split(";"))
    assert rules["default-src"] == "'none'" and "script-src" not in rules
    assert {rules["img-src"], rules["media-src"]} == {"data:"}
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"sha256-{digest}" in rules["style-src"]
    return images
