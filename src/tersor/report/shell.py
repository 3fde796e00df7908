"""What every page has in common: the head with its policy, our style and script, and the words of the reader."""

import base64
import hashlib
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from tersor.inert import plain
from tersor.words import _, language, plural, shown

# In the order in which they apply.
_STYLES = ("base.css", "charts.css", "tables.css", "graph.css", "phone.css")
_SCRIPTS = ("values.js", "tables.js", "details.js", "hover.js", "graph.js")

# Of every page: the policy first, so that nothing precedes it. The icon is empty: no browser asks for another.
_HEAD = """<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="POLICY">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="tersor">
<style>STYLE</style>"""


def rendered(template: str, **view: object) -> str:
    """Render a template of this package; all text in ``view`` is escaped and made plain.

    The page runs this package's script and style and nothing else, whatever stands in ``view``: it has no other
    sources, and both are named by their hashes.
    """
    environment = Environment(
        loader=FunctionLoader(_text), autoescape=True, undefined=StrictUndefined, finalize=_inert,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals.update(_=_, plural=plural, shown=shown, lang=language(), stop=_("."))
    style, script = _joined(_STYLES), _joined(_SCRIPTS)
    policy = f"style-src {_digest(style)}; script-src {_digest(script)}; base-uri 'none'; form-action 'none'"
    head = _HEAD.replace("POLICY", f"default-src 'none'; {policy}").replace("STYLE", style)
    parts = {name: Markup(ours) for name, ours in (("head", head), ("foot", f"<script>{script}</script>"))}  # noqa: S704
    return environment.get_template(template).render(**parts, **view)


@cache
def _text(name: str) -> str:
    return files("tersor.report").joinpath("page", name).read_text(encoding="utf-8")


def _joined(names: tuple[str, ...]) -> str:
    """The files as one, without what only we read: indentation and lines of comment."""
    lines = (line.strip() for name in names for line in _text(name).splitlines())
    return "".join(f"{line}\n" for line in lines if line and not line.startswith("//"))


def _digest(text: str) -> str:
    """A source of a content security policy: the text with this hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _inert(value: object) -> object:
    return value if isinstance(value, Markup) else plain(str(value))
