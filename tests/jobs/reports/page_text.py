"""What of a page a reader sees."""

from __future__ import annotations

from html.parser import HTMLParser


class Text(HTMLParser):
    """The words of a page, the tags that occur in it, and how many images it holds."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.images = 0
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        self.images += tag == "img"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())
