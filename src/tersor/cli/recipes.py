"""The gallery of recipes: `tersor recipes`, `tersor recipes show NAME`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from tersor.cli.common import console, everywhere
from tersor.cli.language import Command, Group
from tersor.words import _, shown

if TYPE_CHECKING:
    from tersor.pipeline.gallery import Entry

recipes = typer.Typer(name="recipes", cls=Group, invoke_without_command=True, rich_markup_mode="rich")


def listed(context: typer.Context) -> list[dict[str, Any]] | None:
    """List the presets: what each does, whether it needs data, and where its result runs."""
    if context.invoked_subcommand is not None:
        return None
    from tersor.pipeline.gallery import gallery

    found = gallery()
    console.print(gallery_table(found))
    console.print(
        "\n" + _("`tersor recipes show NAME > mine.yaml` writes one to edit, and `--recipe mine.yaml` takes it.")
    )
    return [asdict(one) for one in found]


def show(name: Annotated[str, typer.Argument(help="{presets}, or a YAML file.")]) -> dict[str, Any]:
    """Print a recipe as YAML, to be saved, edited and shared."""
    from tersor.recipe import resolve

    recipe = resolve(name)
    if not console.quiet:
        typer.echo(recipe.to_yaml(), nl=False)
    return recipe.model_dump(mode="json")


recipes.callback()(everywhere(listed, tabular=True))
recipes.command(cls=Command)(everywhere(show))


def gallery_table(found: "tuple[Entry, ...]") -> RenderableType:
    """The presets as a table, whose names are never broken."""
    from tersor.report.tables.grid import Column, Grid

    grid = Grid(
        Column(_("recipe")),
        Column(_("bits"), drop=1),
        Column(_("needs data"), drop=2),
        Column(_("runs in"), drop=3),
        Column(_("what it does"), sentences=True),
    )
    for one in found:
        data = _("to train") if one.trains else _("yes") if one.needs_data else _("no")
        grid.add(one.name, bits(one), data, runs_in(one), shown(one.description))
    return grid


def bits(one: "Entry") -> str:
    """Bits of weights and activations, such as ``W4 A32``."""
    return f"W{one.weight_bits} A{one.activation_bits}"


def runs_in(one: "Entry") -> str:
    """The engines of tasks, and whether folders of language models are taken."""
    return ", ".join([*one.engines, *([_("model folders")] if one.folders else [])])
