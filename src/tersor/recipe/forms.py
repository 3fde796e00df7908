"""The forms in which a recipe is written, as plain data: flat, as steps, and on top of a preset."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError

from tersor.recipe.steps import STEPS, Quantize, Step
from tersor.tables import nearest

Presets = Callable[[str], Sequence[Step]]
# What other libraries call an option.
_ALIASES = {
    "lr": "rate", "learning_rate": "rate", "scale_lr": "scale_rate", "wd": "weight_decay", "ema": "average",
    "max_grad_norm": "clip", "early_stopping": "patience", "teacher": "distill", "loss": "distill", "bits": "format",
    "dtype": "format", "group_size": "granularity", "observer": "range",
}  # fmt: skip
_OWN = ("name", "description", "steps", "seed", "base")


def as_steps(data: Mapping[str, Any], preset: Presets) -> dict[str, Any]:
    """Any form as a mapping with ``steps``, each of them a Step or data for ``read_step``.

    Args:
        preset: the steps of the preset that ``base`` names.

    Raises:
        ValueError: anything that this form cannot express; pydantic's ValidationError for options of the flat form.
    """
    own = {key: data[key] for key in ("name", "description", "seed") if key in data}
    options = {key: value for key, value in data.items() if key not in (*own, "base", "steps")}
    base = preset(data["base"]) if "base" in data else ()
    if "steps" not in data:
        under = next((step for step in base if isinstance(step, Quantize)), None)
        step = Quantize.model_validate(options if under is None else overlaid(under, options))
        return {**own, "steps": [step if s is under else s for s in base] or [step]}
    for key in options:
        if key in Quantize.model_fields:
            raise ValueError(f"`{key}` stands beside `steps`; write it into the step, as `quantize: {{{key}: …}}`")
    steps, named = data["steps"], {step.name: step for step in base}
    if not isinstance(steps, (list, tuple)):
        raise ValueError("`steps` is a list, each item one step with its options: `- quantize: {weights: …}`")
    steps = [_item(step) for step in steps]
    for name in named:
        if not any(isinstance(step, Mapping) and name in step for step in steps):
            raise ValueError(f"`steps` leaves out `{name}` of the base; add `- {name}:` where it belongs")
    return {**own, **options, "steps": [_extended(step, named) for step in steps]}


def read_step(value: Any, preset: Presets) -> Step:
    """A step from ``{name: options}``, where the options may be None (the defaults) or the name of a preset.

    Raises:
        ValueError: no such step or preset; pydantic's ValidationError for options, located below the step's name.

    >>> read_step({"quantize": {"equalize": "off"}}, lambda name: ()).equalize
    'off'
    """
    if isinstance(value, Step):
        return value
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ValueError("a step is its name with its options, as `quantize: {weights: …}`")
    [(name, options)] = value.items()
    if name not in STEPS:
        raise ValueError(f"unknown step {name!r}{nearest(str(name), STEPS)}; one of {', '.join(STEPS)}")
    if isinstance(options, str):
        for step in preset(options):
            if step.name == name:
                return step
        raise ValueError(f"the preset {options!r} has no step `{name}`")
    located: Any = dict[str, STEPS[name]]
    return TypeAdapter(located).validate_python({name: options or {}})[name]


def overlaid(step: Step, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options on top of a step's: those of ``weights`` and the like field by field, rules after its own.

    >>> step = Quantize(weights={"format": "int4"})
    >>> overlaid(step, {"weights": {"range": "mse"}, "awq": True})
    {'weights': {'format': 'int4', 'range': 'mse'}, 'awq': True}
    """
    merged = _named(step)
    for key, value in options.items():
        under, value = getattr(step, key, None), _named(value) if isinstance(value, BaseModel) else value
        if isinstance(under, BaseModel) and isinstance(value, Mapping):
            value = {**_named(under), **value}
        elif key == "rules" and isinstance(under, tuple) and isinstance(value, (list, tuple)):
            value = [*under, *value]
        merged[key] = value
    return merged


def explained(error: ValidationError, data: Mapping[str, Any]) -> str:
    """The first faults of a recipe, each with the path of its key, and its value; of an unknown key what there is.

    Args:
        data: the recipe, in any form.
    """
    lines, listed = [], set[tuple[str, ...]]()
    for item in error.errors(include_url=False)[:20]:
        where = ".".join(str(part) for part in item["loc"]) or "recipe"
        if item["type"] == "extra_forbidden":
            known = _options_at(item["loc"], "steps" in data)
            key = str(item["loc"][-1])[:100]
            near = _ALIASES.get(key) if _ALIASES.get(key) in known else None
            every = f"; one of {', '.join(known)}" if known and known not in listed else ""
            listed.add(known)
            fault = f"unknown key `{where[:200]}` (value {item['input']!r})"[:400]
            lines.append(fault + nearest(near or key, known) + every)
        else:
            lines.append(f"`{where}`: {item['msg'].removeprefix('Value error, ')} (value {item['input']!r})"[:400])
    return "; ".join(lines)


def _options_at(place: Sequence[Any], stepwise: bool) -> tuple[str, ...]:
    """The options where a key stands, given by its path; none if they cannot be told."""
    if place[0] == "steps" and len(place) > 3 and place[2] in STEPS:
        model, path = STEPS[place[2]], place[3:-1]
    elif stepwise:
        return _OWN
    else:
        model, path = Quantize, place[:-1]
        if not path:
            return tuple(dict.fromkeys((*model.model_fields, *_OWN)))
    for part in path:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        model = None if field is None else _model_in(field.annotation)
        if model is None:
            return ()
    return tuple(model.model_fields)


def _model_in(kind: Any) -> type[BaseModel] | None:
    """The class of options in an annotation such as ``tuple[Rule, ...]``."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    return next((found for part in get_args(kind) if (found := _model_in(part)) is not None), None)


def _named(value: Any) -> dict[str, Any]:
    """The options that were given when the value was created."""
    return value.model_dump(exclude_unset=True)


def _item(step: Any) -> Any:
    """A step without options may be its bare name."""
    return {step: None} if isinstance(step, str) else step


def _extended(step: Any, base: Mapping[str, Step]) -> Any:
    if not isinstance(step, Mapping) or len(step) != 1:
        return step
    [(name, options)] = step.items()
    if name not in base or isinstance(options, str):
        return step
    return {name: overlaid(base[name], options or {})}
