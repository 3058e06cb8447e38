"""What pages share: templates, style, scripts, and a policy by which a browser runs those alone and asks no address."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from n4flow import __version__
from n4flow.report import text

TEMPLATES = Path(__file__).with_name("templates")
FILTERS = ("change", "duration", "label", "number", "percent", "shown")


def render(template: str, scripts: Sequence[str] = (), **values: Any) -> str:
    """Return a page of a template, which needs nothing else and loads nothing.

    Parameters
    ----------
    template : str
    scripts : sequence of str
        Files of code beside it, which the page may run.
    **values
        What the template shows; text in it is escaped.
    """
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update({name: getattr(text, name) for name in FILTERS}, quote=shlex.quote)
    code = [asset(name) for name in scripts]
    values |= {"version": __version__, "style": asset("style.css"), "scripts": code, "policy": policy(code)}
    return environment.get_template(template).render(values)


def asset(name: str) -> str:
    """Return a file beside the templates as text."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def policy(scripts: Sequence[str]) -> str:
    """Return a content security policy: no address is asked, and no code runs but these scripts and what they make."""
    digests = (base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in scripts)
    allowed = " ".join([*(f"'sha256-{digest}'" for digest in digests), "blob:"]) if scripts else "'none'"
    return f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {allowed}"
