"""The Recipe, a sequence of steps, and the presets, which recipes extend by name."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, PlainValidator, SerializationInfo, ValidationError, model_serializer, model_validator

from tersor.errors import RecipeError
from tersor.recipe.forms import as_steps, explained, read_step
from tersor.recipe.presets import PARTS, Preset
from tersor.recipe.quantization import Strict
from tersor.recipe.steps import Quantize, Step, check_order
from tersor.recipe.yaml_text import load_yaml, recipe_text, written
from tersor.tables import found, nearest


class Recipe(Strict):
    """What to do with a network: steps, in order.

    A recipe of the one step ``quantize`` may be written flat, with the options of the step as its own; they are then
    read as attributes, too. ``base`` names a preset that the options extend: mappings such as ``weights`` field by
    field, ``rules`` after those of the preset.

    Args:
        steps: values of the classes in ``tersor.recipe.STEPS``, or ``{name: options}``.
        name: as shown in reports.
        description: what it is for, in a sentence for people.
        seed: of everything random.
        options: of the step ``quantize``, in place of ``steps``.

    Raises:
        ValueError: options that do not exist or contradict each other, or an order of steps that makes no sense.

    >>> from tersor.recipe import Quantization
    >>> recipe = Recipe(weights=Quantization(format="int4", granularity="group:32"))
    >>> Recipe.from_yaml(recipe.to_yaml()) == recipe == Recipe(steps=(Quantize(weights=recipe.weights),))
    True
    >>> Recipe(base="int4-gptq", weights={"granularity": "channel"}).weights.solver
    'gptq'
    """

    name: str = "custom"
    description: str = ""
    steps: tuple[Annotated[Step, PlainValidator(lambda value: read_step(value, steps_of))], ...] = (Quantize(),)
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] = 0

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            steps: Sequence[Step | Mapping[str, Any]] = ...,
            base: str = ...,
            name: str = "custom",
            description: str = "",
            seed: int = 0,
            **options: Any,
        ) -> None: ...

    @model_validator(mode="before")
    @classmethod
    def _of_any_form(cls, data: Any) -> Any:
        return as_steps(data, steps_of) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.steps:
            raise ValueError("a recipe has at least one step")
        check_order(self.steps)
        return self

    @property
    def quantize(self) -> Quantize:
        """The quantization step.

        Raises:
            RecipeError: there is none.
        """
        for step in self.steps:
            if isinstance(step, Quantize):
                return step
        names = ", ".join(step.name for step in self.steps)
        raise RecipeError(f"the recipe {self.name} has no step `quantize`, only {names}")

    def __getattr__(self, key: str) -> Any:
        """An option of the only step, ``quantize``."""
        if key not in Quantize.model_fields:
            raise AttributeError(f"a Recipe has no attribute {key!r}")
        if len(self.steps) > 1:
            raise AttributeError(f"the recipe {self.name} has several steps; read `recipe.quantize.{key}`")
        return getattr(self.quantize, key)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values; options of the step ``quantize`` change that step.

        Raises:
            RecipeError: a key that does not exist.

        >>> int8_static().model_copy(update={"equalize": "off", "seed": 1}).equalize
        'off'
        """
        own, options = {}, {}
        for key, value in (update or {}).items():
            if key not in {**type(self).model_fields, **Quantize.model_fields}:
                raise RecipeError(f"a recipe has no key `{key}`{nearest(key, Quantize.model_fields)}; leave it out")
            (own if key in type(self).model_fields else options)[key] = value
        if options:
            changed = self.quantize.model_copy(update=options)
            own["steps"] = tuple(changed if step is self.quantize else step for step in self.steps)
        return super().model_copy(update=own, deep=deep)

    @model_serializer
    def _written(self, info: SerializationInfo) -> dict[str, Any]:
        options = [step.model_dump(mode=info.mode or "python") for step in self.steps]
        about = {"name": self.name} | ({"description": self.description} if self.description else {})
        if isinstance(self.steps[0], Quantize) and len(self.steps) == 1:
            return {**about, **options[0], "seed": self.seed}
        steps = [{step.name: given} for step, given in zip(self.steps, options, strict=True)]
        return {**about, "steps": steps, "seed": self.seed}

    def to_yaml(self) -> str:
        """The recipe as YAML, which reads back as the same recipe; flat if ``quantize`` is its only step."""
        return written(self.model_dump(mode="json"))

    @classmethod
    def from_yaml(cls, text: str, source: str = "recipe") -> "Recipe":
        """Read a recipe in any of its forms.

        Raises:
            RecipeError: naming the key, the value and what is allowed.

        >>> Recipe.from_yaml("steps: [quantize: int8-tflite]").activations.range
        'minmax'
        """
        data = load_yaml(text, source)
        if not isinstance(data, dict):
            raise RecipeError(f"{source} must be a mapping of keys such as `weights:` and `rules:`")
        if odd := [key for key in data if not isinstance(key, str)]:
            raise RecipeError(f"{source}: unknown key `{str(odd[0])[:100]}`: keys are words such as `weights:`")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise RecipeError(f"{source}: {explained(error, data)}") from error


def _recipe(make: Callable[[], Preset]) -> Callable[[], Recipe]:
    """The preset as a function that returns its Recipe."""

    def preset() -> Recipe:
        made = make()
        return Recipe(name=made.name, description=made.description, steps=made.steps)

    preset.__name__, preset.__doc__ = make.__name__, make.__doc__
    return preset


PRESETS: dict[str, Callable[[], Recipe]] = {name: _recipe(make) for name, make in PARTS.items()}
"""All presets by name: functions that return a Recipe."""

int8_static, int8_dynamic, int8_weight = (PRESETS[name] for name in ("int8-static", "int8-dynamic", "int8-weight"))


def steps_of(preset: str) -> tuple[Step, ...]:
    """The steps of a preset.

    Raises:
        ValueError: there is no such preset, with the nearest name.
    """
    try:
        return found(PRESETS, preset, "preset")().steps
    except RecipeError as error:
        raise ValueError(str(error)) from error


def resolve(recipe: "Recipe | str | Path") -> Recipe:
    """A recipe, the name of a preset, or the path of a YAML file, as a Recipe.

    Raises:
        RecipeError: no such preset or file, with the nearest preset.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        raise RecipeError("the recipe is a dict: give tersor.Recipe(**options), the name of a preset, or a YAML file")
    name = str(recipe)
    if name in PRESETS:
        return PRESETS[name]()
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or _is_file(path):
        if not _is_file(path):
            raise RecipeError(f"there is no recipe file {name[:300]!r}")
        return Recipe.from_yaml(recipe_text(path), str(path))
    known = f"presets are {', '.join(PRESETS)}"
    near = nearest(name[:100], PRESETS)
    raise RecipeError(f"no recipe {name[:300]!r}{near}; {known}; or give the path of a .yaml file")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # the name is too long for any file
        return False
