"""The shell of every page that Volcast writes to a file, and the parts that pages share: text in, escaped markup out.

Rules of this package:
- A page is a jinja2 template in the folder `templates` beside the module that fills it; no markup is made elsewhere.
- What a template is given is text, and is escaped. A name that it was not given is an error.
- A page is one file without a script of ours. It loads nothing from anywhere, and forbids the browser to.
"""

from __future__ import annotations

import base64
from collections.abc import Callable

from jinja2 import BaseLoader, Environment, PackageLoader, StrictUndefined


class _Packages(BaseLoader):
    """Finds `package/name` in the folder `templates` of that package."""

    def get_source(self, environment: Environment, template: str) -> tuple[str, str, Callable[[], bool] | None]:
        package, _, name = template.partition("/")
        return PackageLoader(package).get_source(environment, name)


def data_uri(svg: bytes) -> str:
    """An SVG as the address of an image."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def sentence(text: str) -> str:
    """A remark, begun and ended as a sentence."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


TEMPLATES = Environment(
    loader=_Packages(),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    # What is installed does not change under a process that runs.
    auto_reload=False,
)
TEMPLATES.filters |= {"data_uri": data_uri, "sentence": sentence}


def render(template: str, **values: object) -> str:
    """The template `package/name`, filled."""
    return TEMPLATES.get_template(template).render(values)
