"""The command line: thin; every command is one call of the package."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tersor import __version__
from tersor.errors import TaskError, TersorError
from tersor.recipe import PRESETS
from tersor.task import Task

app = typer.Typer(
    name="tersor",
    help="Make a trained PyTorch network smaller and faster, run it on a real engine, and prove what it gained.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
_OF_TASKS, _OF_FOLDERS = "int8-static", "int4-gptq"
console = Console()
errors = Console(stderr=True)

TaskFile = Annotated[
    Path,
    typer.Argument(
        help="A Python file with a function `task() -> tersor.Task`; `file.py:name` names another."
    ),
]
Source = Annotated[
    Path,
    typer.Argument(
        help="A Python file with a function `task() -> tersor.Task` (`file.py:name` names another), or the folder of a "
        "language model in the Hugging Face layout."
    ),
]
RecipeName = Annotated[
    str, typer.Option("--recipe", "-r", help=f"{', '.join(PRESETS)}, or a YAML file.")
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        "-e",
        help="openvino, onnxruntime, torch (a simulation), tensorrt (files only); compress also takes auto: the "
        "fastest that is here.",
    ),
]
ChosenRecipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        help=f"{', '.join(PRESETS)}, or a YAML file; by default int8-static, of a language model int4-gptq.",
    ),
]
Layout = Annotated[
    str, typer.Option(help="Of a language model's files: compressed-tensors, gptq, gptq_v2 or awq.")
]
Threads = Annotated[int | None, typer.Option(help="Threads of the engine; by default all processors.", min=1)]


def main() -> None:
    """The entry point: errors raised on purpose are one message, not a traceback."""
    try:
        app()
    except TersorError as error:
        errors.print(f"[bold red]error:[/] {type(error).__name__}: ", end="")
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        console.print(f"tersor {__version__}", highlight=False)
        raise typer.Exit


@app.command()
def inspect(
    context: typer.Context,
    task: Source,
    recipe: ChosenRecipe = None,
    engine: EngineName = "openvino",
    layout: Layout = "compressed-tensors",
) -> None:
    """Show, before any data, what would be int8, what not and why, and the predicted size."""
    from tersor.engines import engine as find_engine
    from tersor.pipeline.prepare import predicted_bytes, prepare
    from tersor.recipe import resolve
    from tersor.report.plan import plan_table

    _refuse_foreign_options(context, task.is_dir())
    if task.is_dir():
        _inspect_folder(task, recipe or _OF_FOLDERS, layout)
        return
    with console.status("capturing the network"):
        prepared = prepare(load_task(task), resolve(recipe or _OF_TASKS), find_engine(engine).policy())
    console.print(
        plan_table(prepared.plan, *predicted_bytes(prepared.network, prepared.plan), prepared.original.notes)
    )


@app.command()
def compress(
    context: typer.Context,
    task: Source,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write; it must not exist yet.")],
    recipe: ChosenRecipe = None,
    engine: EngineName = "openvino",
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it exists.")] = False,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Judge original and compressed.")
    ] = True,
    threads: Threads = None,
    precision: Annotated[str, typer.Option(help="What float operators compute in: f32 or bf16.")] = "f32",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Of a language model: what to calibrate on, a text file, or a .jsonl file of records with `text` or "
            "`messages`.",
            dir_okay=False,
        ),
    ] = None,
    valid: Annotated[
        Path | None,
        typer.Option(help="Of a language model: another such file, to report perplexity on.", dir_okay=False),
    ] = None,
    samples: Annotated[int, typer.Option(help="Windows of --data that are used.", min=1)] = 128,
    length: Annotated[
        int | None, typer.Option(help="Tokens of a window; by default 512 or what the model takes.", min=2)
    ] = None,
    layout: Layout = "compressed-tensors",
) -> None:
    """Compress, measure, and write a folder with the network, report.json and report.html.

    A language model is a folder in the Hugging Face layout: it is read and written block by block, and a run that was
    killed goes on where it stopped. `tersor compress llama/ -r int4-gptq --data train.txt --valid valid.txt -o small`
    """
    from tersor.pipeline.compressed import check_free
    from tersor.pipeline.whole import compress as run
    from tersor.report import print_report

    check_free(out, force)
    _refuse_foreign_options(context, task.is_dir())
    if task.is_dir():
        from tersor.pipeline.language import compress_folder
        from tersor.report.language import print_language_report

        with _threads(threads):
            chosen, options = recipe or _OF_FOLDERS, {"samples": samples, "length": length, "force": force}
            found = compress_folder(task, out, chosen, data, evaluate=valid, layout=layout, **options)
        print_language_report(found, console)
    else:
        chosen, options = recipe or _OF_TASKS, {"threads": threads, "precision": precision, "evaluate": evaluate}
        done = run(load_task(task), chosen, engine, **options)
        done.save(out, force)
        assert done.report is not None
        print_report(done.report, console)
    console.print(
        f"\nwritten to {out}; the picture is {out / 'report.html'}", highlight=False, soft_wrap=True
    )


def _refuse_foreign_options(context: typer.Context, folder: bool) -> None:
    """Nothing that was asked for is ignored in silence."""
    of_tasks, of_folders = ("engine", "precision", "evaluate"), ("data", "valid", "samples", "length", "layout")
    for name in of_tasks if folder else of_folders:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            what = "a task, and this is a folder" if folder else "a folder of a language model, and this is a task"
            raise TaskError(f"--{name} is an option of {what}; leave it out")


def _inspect_folder(folder: Path, recipe: str, layout: str) -> None:
    from tersor.pipeline.language import prepare_job
    from tersor.report.language import plan_of_folder

    with console.status("reading headers"):
        job = prepare_job(folder, recipe, None, layout=layout, needs=False)
    console.print(plan_of_folder(job.targets, job.preflight))


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@app.command()
def generate(
    folder: Annotated[Path, typer.Argument(help="The folder of a language model, compressed or not.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="How the text begins.")],
    tokens: Annotated[int, typer.Option(help="How many tokens are added at most.", min=1)] = 100,
    engine: Annotated[str, typer.Option("--engine", "-e", help="torch or openvino.")] = "torch",
    threads: Threads = None,
) -> None:
    """Let a language model go on with a text, taking the likeliest token each time."""
    import time

    from tersor.pipeline.load import load
    from tersor.pipeline.text import tokenizer_of

    with console.status("loading"), _threads(threads):
        tokenizer = tokenizer_of(folder)
        model = load(folder, threads, engine)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    options = {"do_sample": False} if engine == "torch" else {"eos_token_id": tokenizer.eos_token_id}
    start = time.perf_counter()
    with _threads(threads):
        out = model.generate(ids, max_new_tokens=tokens, **options)
    seconds, count = time.perf_counter() - start, out.shape[1] - ids.shape[1]
    console.print(tokenizer.decode(out[0], skip_special_tokens=True), markup=False, highlight=False, soft_wrap=True)
    errors.print(f"{count} tokens in {seconds:.2f} s, {count / seconds:.1f} a second, in {engine}", highlight=False)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="The folder of a language model, compressed or not.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .gguf file to write.", dir_okay=False)],
    kind: Annotated[str, typer.Option(help="Of matrices that are float: q4_0, q8_0, q4_k or f16.")] = "q4_0",
    ragged: Annotated[
        bool, typer.Option("--ragged-f16", help="Keep in FP16 what the blocks do not divide, instead of stopping.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a Llama as one GGUF file for llama.cpp; codes that fit are kept bit by bit."""
    from collections import Counter

    from tersor.pipeline.export import export_gguf

    found = export_gguf(folder, out, kind, ragged="f16" if ragged else "raise", force=force)  # type: ignore[arg-type]
    kinds = ", ".join(f"{count} {name}" for name, count in Counter(found.values()).most_common())
    console.print(f"written to {out}: {kinds}", highlight=False, soft_wrap=True)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder that `tersor compress --out` wrote.")],
) -> None:
    """Print the report of a saved folder again."""
    from tersor.measure import read_report
    from tersor.measure.language import is_language_report, read_language_report
    from tersor.report import print_report
    from tersor.report.language import print_language_report

    if is_language_report(folder):
        print_language_report(read_language_report(folder), console)
    else:
        print_report(read_report(folder), console)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Two or more folders that `tersor compress --out` wrote.")],
    html: Annotated[Path | None, typer.Option("--html", help="Also write a page, a .html file.")] = None,
) -> None:
    """Put the reports of saved folders side by side, the best of every row marked."""
    from tersor.report.compare import compared, page, table

    found = compared(folders)
    console.print(table(found))
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page(found), encoding="utf-8")
        console.print(f"\nwritten to {html}", highlight=False, soft_wrap=True)


@app.command()
def run(
    folder: Annotated[Path, typer.Argument(help="A folder that `tersor compress --out` wrote.")],
    input: Annotated[
        list[Path], typer.Option("--input", "-i", help="A .npy file; once for every input of the network.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .npy file to write; several outputs get a number.")
    ],
    threads: Threads = None,
) -> None:
    """Run a saved network on numpy files; the network's source code is not needed."""
    from tersor.pipeline.compressed import load_network as load
    from tersor.pipeline.files import run_files

    for path in run_files(load(folder, threads), input, output):
        console.print(f"written to {path}", highlight=False, soft_wrap=True)


@app.command()
def calibrate(
    task: TaskFile,
    compare: Annotated[
        bool, typer.Option("--compare", help="Every range estimator side by side, per site.")
    ] = False,
    site: Annotated[
        str | None, typer.Option(help="Draw the histogram of this site with the thresholds (a glob).")
    ] = None,
    recipe: RecipeName = "int8-static",
    engine: EngineName = "openvino",
) -> None:
    """Gather ranges only: what each estimator would choose, its error, and a verdict on the data."""
    from tersor.pipeline.calibration import calibrated
    from tersor.report.calibration import comparison, drawing, ranges, verdict

    found = calibrated(load_task(task), recipe, engine)
    console.print(comparison(found) if compare else ranges(found))
    if site is not None:
        console.print(drawing(found, site))
    console.print(verdict(found))


@app.command()
def outliers(
    task: TaskFile,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .html file, or the folder for outliers.html.")
    ] = None,
    layer: Annotated[str, typer.Option(help="Only layers with such a name (a glob).")] = "*",
    samples: Annotated[int, typer.Option(help="How many calibration samples are looked at.", min=1)] = 64,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, with the range of every channel.")] = False,
) -> None:
    """Find the layers whose inputs have outliers, what these cost in int8, and what helps."""
    from tersor.pipeline.outliers import outliers as find

    found = find(load_task(task), samples, layer)
    page = None if out is None else found.to_html(out)
    if json:
        typer.echo(found.to_json())
        return
    console.print(found)
    if page is not None:
        console.print(f"\nwritten to {page}", highlight=False, soft_wrap=True)


@app.command()
def engines() -> None:
    """List the engines that are here, their versions, this CPU's instructions, and what that means."""
    from tersor.report.engines import engines_table

    console.print(engines_table())


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")] = Path("build/demo"),
    engine: EngineName = "openvino",
    recipe: RecipeName = "int8-static",
) -> None:
    """Compress the embedded example, a small residual network that reads handwritten digits."""
    from tersor.demo import task
    from tersor.pipeline.whole import compress as run
    from tersor.report import print_report

    done = run(task(), recipe, engine)
    done.save(out, force=True)
    assert done.report is not None
    print_report(done.report, console)
    console.print(
        f"\nwritten to {out}; open {out / 'report.html'} in a browser", highlight=False, soft_wrap=True
    )


def load_task(path: Path) -> Task:
    """The Task of a file; its folder is importable while it is read.

    Raises:
        TaskError: no such file, no such function, or no Task came of it.
    """
    name, _, function = str(path).partition(".py:")
    file = Path(f"{name}.py") if function else path
    function = function or "task"
    if not file.is_file():
        raise TaskError(
            f"there is no task file {file}; give a Python file with a function `task() -> tersor.Task`"
        )
    with _importable(file.resolve().parent):
        spec = importlib.util.spec_from_file_location(f"tersor_task_{file.stem}", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        make = getattr(module, function, None)
        if make is None:
            raise TaskError(f"{file} has no function {function}(); write `def {function}() -> tersor.Task:`")
        made = make()
    if not isinstance(made, Task):
        raise TaskError(f"{function}() of {file} returned a {type(made).__name__}, not a tersor.Task")
    return made


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


if __name__ == "__main__":
    main()
