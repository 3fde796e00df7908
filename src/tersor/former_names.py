"""Former parameter names, which are still accepted in calls."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from tersor.errors import TaskError

Target = TypeVar("Target", bound=Callable[..., Any])


def takes_former_name(former: str, name: str) -> Callable[[Target], Target]:
    """Decorate a function, or a class, so that it also accepts the parameter ``name`` by its former keyword ``former``.

    A call with both raises TaskError.

    >>> @takes_former_name("colour", "color")
    ... def paint(color="red"):
    ...     return color
    >>> paint(), paint(color="blue"), paint(colour="green")
    ('red', 'blue', 'green')
    """

    def translated(function: Callable[..., Any], title: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if former in kwargs:
                if name in kwargs:
                    raise TaskError(f"{title} got `{name}` and `{former}`, its former name; give `{name}` alone")
                kwargs[name] = kwargs.pop(former)
            return function(*args, **kwargs)

        return call

    def decorate(target: Any) -> Any:
        if not isinstance(target, type):
            return translated(target, target.__name__)
        target.__init__ = translated(target.__init__, target.__name__)
        return target

    return decorate
