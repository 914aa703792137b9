"""Templates and styles of the report, which the live pages use as well."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

TEMPLATES = Path(__file__).parent / "templates"
STYLE = TEMPLATES / "alloop.css"


def make_environment(*folders: Path) -> Environment:
    """Return templates that escape every value.

    Args:
        folders: Folders with further templates, the first one first.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FileSystemLoader([*folders, TEMPLATES]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["words"] = _words
    return environment


def _words(text: str) -> Markup:
    """Escape a sentence, and show what stands between backticks as code."""
    parts = (
        Markup("<code>{}</code>").format(part) if at % 2 else escape(part) for at, part in enumerate(text.split("`"))
    )
    return Markup("").join(parts)
