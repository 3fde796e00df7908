"""The type checks that the package runs under while it is tested."""

from pathlib import Path
from typing import Any

from beartype import BeartypeConf, FrozenDict, beartype
from beartype.claw import beartype_packages
from jaxtyping import install_import_hook
from pydantic import SerializationInfo

# A protocol of pydantic's that cannot be checked at run time. As for any type checker, an int is a float.
CONF = BeartypeConf(
    hint_overrides=FrozenDict({SerializationInfo: Any}), is_pep484_tower=True, claw_is_pep526=False
)


# The rooms whose annotations are known to hold under the tests; add one when its tests pass with it.
ROOMS = ("numerics", "solvers")


def install(source: Path) -> None:
    """Check the arguments and results of every function of ROOMS; call it before anything imports them.

    Modules that state shapes go through jaxtyping, which holds the shapes of one call together, and costs some
    microseconds a call; the others through beartype alone, which costs a hundredth of that.
    """
    files = [path for room in ROOMS for path in (source / "tersor" / room).rglob("*.py")]
    shaped = [path for path in files if "jaxtyping" in path.read_text(encoding="utf8")]
    names = [".".join(path.relative_to(source).with_suffix("").parts) for path in shaped]
    install_import_hook(names, "checking.check")
    beartype_packages([f"tersor.{room}" for room in ROOMS], conf=CONF)


def check(function: Any) -> Any:
    """What jaxtyping's hook checks a function or method with."""
    return beartype(function, conf=CONF)
