"""The type checks that the package runs under while it is tested."""

import inspect
import sys
from fnmatch import fnmatch
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from beartype import BeartypeConf, FrozenDict, beartype
from jaxtyping import install_import_hook
from pydantic import SerializationInfo

# typer reads the annotations of commands itself. The others refuse values of wrong types in words of their own, or
# count the lookups and frames of their callers, which tests try.
SKIPPED = (
    "tersor.cli*",
    "tersor.engines.openvino",
    "tersor.engines.openvino.decoder*",
    "tersor.metrics*",
    "tersor.network.planned",
    "tersor.pipeline.compressed",
    "tersor.pipeline.folder.compress",
    "tersor.pipeline.folder.job",
    "tersor.pipeline.folder.text",
    "tersor.pipeline.graph.compress",
    "tersor.pipeline.graph.finetune",
    "tersor.pipeline.graph.recording",
    "tersor.pipeline.load",
    "tersor.pipeline.modules.loops",
    "tersor.task",
)
# Where the shapes of one call are held together, too.
SHAPED = ("numerics", "observers", "solvers")
# A protocol of pydantic's that cannot be checked at run time. As for any type checker, an int is a float.
CONF = BeartypeConf(hint_overrides=FrozenDict({SerializationInfo: Any}), is_pep484_tower=True)


def install(source: Path) -> None:
    """Check the arguments and results of every function of the package; call it before anything imports it.

    Modules of SHAPED that state shapes go through jaxtyping, which costs some microseconds a call; the others through
    beartype alone, which costs a hundredth of that.
    """
    files = [path for room in SHAPED for path in (source / "tersor" / room).rglob("*.py")]
    shaped = [path for path in files if "jaxtyping" in path.read_text(encoding="utf8")]
    names = [".".join(path.relative_to(source).with_suffix("").parts) for path in shaped]
    sys.meta_path.insert(0, Finder())
    install_import_hook(names, "checking.check")


def check(function: Any) -> Any:
    """What jaxtyping's hook checks a function or method with."""
    return beartype(function, conf=CONF)


class Finder(MetaPathFinder):
    """Finds the package's modules, to load them through ``Checked``."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """None for modules of others and for what is skipped."""
        if not name.startswith("tersor.") or any(fnmatch(name, skipped) for skipped in SKIPPED):
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Checked(name, spec.loader.path)
        return spec


class Checked(SourceFileLoader):
    """Checks every function and class that a module defines."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then put checks around what it defines."""
        super().exec_module(module)
        for name, value in list(vars(module).items()):
            if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__:
                setattr(module, name, check(value))
