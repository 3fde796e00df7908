"""The verifier: it checks every invariant of a graph after each rewrite and correction."""

from collections.abc import Callable
from typing import Any

from tersor.errors import RewriteError, TersorError
from tersor.network.invariants import INVARIANTS, Facts
from tersor.network.network import Network, title


def verify(network: Network, after: str = "", error: type[TersorError] = RewriteError) -> Network:
    """The network itself, if it satisfies every invariant.

    Args:
        after: the step that produced the network, for the message.

    Raises:
        RewriteError: (or ``error``) naming the node, the invariant and the fault.

    >>> import torch
    >>> from tersor.network.capture import capture
    >>> network = capture(torch.nn.Linear(2, 3).eval(), (torch.zeros(1, 2),))
    >>> verify(network) is network
    True
    """
    facts = Facts(network)
    for invariant in INVARIANTS:
        for node, fault in invariant.faults(facts):
            name = "the graph" if node is None else node.name
            place = name if node is None or title(node) == name else f"{title(node)} ({name})"
            made = f"after {after}, " if after else ""
            raise error(
                f"{made}{place}: {fault}. Invariant {invariant.name!r}: {invariant.states}. The model is not at fault: "
                "please report this"
            )
    return network


def rewritten(network: Network, rewrite: Callable[..., Network], *arguments: Any) -> Network:
    """``rewrite(network, *arguments)``, verified: every rewrite and correction is applied through this function.

    Raises:
        RewriteError: the result violates an invariant.
    """
    return verify(rewrite(network, *arguments), getattr(rewrite, "__name__", type(rewrite).__name__))
