"""Optional packages: all that are missing are named in one error, with the command that installs them."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tersor.errors import EngineError, TersorError
from tersor.process import importing

# What each extra of pyproject.toml installs, and what every installation has, by import name.
EXTRAS: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "transformers": ("transformers", "re2"),
    "metrics": ("sklearn", "jiwer"),
    "train": ("accelerate",),
}
CORE = (
    "torch", "numpy", "openvino", "pydantic", "yaml", "typer", "rich", "jinja2", "safetensors", "scipy", "psutil",
    "jaxtyping", "annotated_types",
)  # fmt: skip
_INSTALLED_AS = {"re2": "google-re2", "sklearn": "scikit-learn", "yaml": "pyyaml", "annotated_types": "annotated-types"}


def missing(modules: Sequence[str]) -> tuple[str, ...]:
    """The pip names of the packages whose modules are not installed.

    >>> missing(["torch", "no_such_module"])
    ('no_such_module',)
    """
    return tuple(_INSTALLED_AS.get(name, name) for name in modules if importlib.util.find_spec(name) is None)


@contextmanager
def needing(
    what: str, extra: str, modules: Sequence[str] = (), kind: type[TersorError] = EngineError
) -> Iterator[None]:
    """Wrap the imports of an extra: if one fails, an error names all missing packages and how to install them.

    Args:
        what: what needs them, the subject of the message.
        modules: the modules it needs; by default all of the extra.

    >>> with needing("This", "metrics", ["no_such_module", "nor_this"]):
    ...     import no_such_module
    Traceback (most recent call last):
    tersor.errors.EngineError: This needs no_such_module and nor_this, not installed here; run: pip install
    "tersor[metrics]"
    """
    try:
        with importing():
            yield
    except ImportError as error:
        raise kind(f'{what} {_lacks(modules or EXTRAS[extra], error)}; run: pip install "tersor[{extra}]"') from error


def of_every_installation(error: ModuleNotFoundError) -> TersorError | None:
    """The error to show for a package that every installation has, or None for any other package."""
    if (error.name or "").partition(".")[0] not in CORE:
        return None
    return TersorError(f"Tersor {_lacks(CORE, error)}; run: pip install --upgrade --force-reinstall tersor")


def _lacks(modules: Sequence[str], error: ImportError) -> str:
    root = (error.name or "").partition(".")[0]
    partly = (_INSTALLED_AS.get(root, root),) if isinstance(error, ModuleNotFoundError) and root in modules else ()
    names = missing(modules) or partly
    if not names:
        return f"cannot import what it needs ({error})"
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"needs {listed}, not installed here"
