"""How a template becomes a page: Python makes plain data and no HTML, the templates all HTML."""

import functools
from pathlib import Path

import jinja2
from markupsafe import Markup

from dl_slicer.report import words

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: object) -> str:
    """Give a page as HTML; values: what its template names, escaped by it."""
    return _environment().get_template(template).render(values)


def own_file(name: str) -> Markup:
    """Give a style or script of ours, which needs no escaping."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": words.count,
        "data_uri": words.data_uri,
        "interval": words.interval,
        "network_name": words.network_name,
        "percent": words.percent,
        "points": words.points,
    }
    return environment


def _finalize(value: object) -> object:
    """What becomes of a value before it is escaped: names may hold what HTML has no place for."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return words.replace_unprintable(value)
    return value
