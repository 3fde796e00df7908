"""The gallery of recipes: `tersor recipes`, `tersor recipes show NAME`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tersor.cli.options import PRESETS, console
from tersor.words import _, shown

if TYPE_CHECKING:
    from tersor.pipeline.gallery import Shown

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

recipes = typer.Typer(name="recipes", invoke_without_command=True, rich_markup_mode="rich")


@recipes.callback()
def listed(context: typer.Context, json: AsJson = False) -> None:
    """List the presets: what each does, whether it needs data, and where its result runs."""
    if context.invoked_subcommand is not None:
        return
    from tersor.pipeline.gallery import gallery

    found = gallery()
    if json:
        _echo_json([asdict(one) for one in found])
        return
    console.print(gallery_table(found))
    console.print(_("\n`tersor recipes show NAME > mine.yaml` writes one to edit, and `--recipe mine.yaml` takes it."))


@recipes.command()
def show(
    name: Annotated[str, typer.Argument(help=f"{PRESETS}, or a YAML file.")],
    json: AsJson = False,
) -> None:
    """Print a recipe as YAML, to be saved, edited and shared."""
    from tersor.recipe import resolve

    recipe = resolve(name)
    if json:
        _echo_json(recipe.model_dump(mode="json"))
    else:
        typer.echo(recipe.to_yaml(), nl=False)


def gallery_table(found: "tuple[Shown, ...]") -> Table:
    """The presets as a table, whose names are never broken."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(_("recipe"), no_wrap=True)
    table.add_column(_("bits"), no_wrap=True)
    table.add_column(_("needs data"), no_wrap=True)
    table.add_column(_("runs in"), min_width=11)
    table.add_column(_("what it does"), ratio=1, overflow="fold")
    for one in found:
        data = _("yes") if one.needs_data else _("no")
        table.add_row(one.name, bits(one), data, runs_in(one), shown(one.description))
    return table


def bits(one: "Shown") -> str:
    """Bits of weights and activations, such as ``W4 A32``."""
    return f"W{one.weight_bits} A{one.activation_bits}"


def runs_in(one: "Shown") -> str:
    """The engines of tasks, and whether folders of language models are taken."""
    return ", ".join([*one.engines, *([_("model folders")] if one.folders else [])])


def _echo_json(value: object) -> None:
    from json import dumps

    typer.echo(dumps(value, indent=1, ensure_ascii=False))
