"""One kind of page: a single HTML file that loads nothing, with its style inside."""

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


def render_html(
    template: str, filters: dict[str, Callable[..., Any]] | None = None, **values: Any
) -> str:
    """Render a template of this folder, which extends ``page.html.jinja``.

    The page's Content-Security-Policy allows the style inside it, and pictures and
    sound that are part of the file (``data:``); no script, and nothing from elsewhere.
    Values are escaped.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FileSystemLoader(_HERE, encoding="utf-8"),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters or {}
    style = (_HERE / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "media-src data:; base-uri 'none'; form-action 'none'"
    )
    page = environment.get_template(template)
    # Ours, so that its digest is that of what stands in the page.
    return page.render(style=Markup(style), policy=policy, **values)


def data_uri(content: bytes, kind: str) -> str:
    """Return a picture or sound as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
