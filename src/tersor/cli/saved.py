"""The commands that take a saved folder: run it, export it, report on it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tersor.cli.common import console, notes, working
from tersor.cli.options import Threads, using_threads
from tersor.engines import ENGINES
from tersor.words import _, shown


def generate(
    folder: Annotated[Path, typer.Argument(help="The folder of a language model, compressed or not.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The beginning of the text.")],
    tokens: Annotated[int, typer.Option(help="Largest number of new tokens.", min=1)] = 100,
    engine: Annotated[
        str,
        typer.Option("--engine", "-e", help="{decoding}, or auto: the first that supports the model."),
    ] = "auto",
    threads: Threads = None,
) -> dict[str, Any]:
    """Continue a prompt with a language model, by greedy decoding."""
    import time

    from tersor.pipeline.folder.deployed import InFolder
    from tersor.pipeline.folder.prompt import check_prompt, check_tokens
    from tersor.pipeline.folder.text import tokenizer_of

    check_prompt(prompt)
    with working(_("loading")), using_threads(threads):
        tokenizer = tokenizer_of(folder)
        model = InFolder(folder, engine, threads)
        used, why_not = model.engine, model.skip_reason
    if why_not is not None:
        notes.print(_("running in {engine}, as {reason}", engine=used, reason=shown(why_not)), soft_wrap=True)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    check_tokens(folder, ids, tokens)
    options = {"do_sample": False} if ENGINES[used].runs_modules else {"eos_token_id": tokenizer.eos_token_id}
    start = time.perf_counter()
    with using_threads(threads):
        out = model.runner.generate(ids, max_new_tokens=tokens, **options)
    seconds, count = time.perf_counter() - start, out.shape[1] - ids.shape[1]
    text, rate = tokenizer.decode(out[0], skip_special_tokens=True), count / seconds
    console.print(text, soft_wrap=True)
    notes.print(
        _(
            "{count} tokens in {seconds} s, {rate} per second, in {engine}",
            count=count, seconds=f"{seconds:.2f}", rate=f"{rate:.1f}", engine=used,
        )
    )  # fmt: skip
    return {"text": text, "new_tokens": count, "seconds": seconds, "engine": used}


def export(
    folder: Annotated[Path, typer.Argument(help="The folder of a language model, compressed or not.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .gguf file to write.", dir_okay=False)],
    kind: Annotated[
        str, typer.Option(help="Type of matrices whose codes GGUF cannot hold: q4_0, q8_0, q4_k or f16.")
    ] = "q4_0",
    ragged: Annotated[
        bool, typer.Option("--ragged-f16", help="Write rows that blocks do not divide in FP16, instead of stopping.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> dict[str, Any]:
    """Write a Llama as one GGUF file for llama.cpp; codes that fit are stored bit-exactly."""
    from collections import Counter

    from tersor.pipeline.folder.export import export_gguf

    found = export_gguf(folder, out, kind, ragged="f16" if ragged else "raise", force=force)  # type: ignore[arg-type]
    counts = Counter(found.values())
    kinds = _(", ").join(f"{count} {name}" for name, count in counts.most_common())
    console.print(_("written to {file}: {tensors}", file=out, tensors=kinds), soft_wrap=True)
    return {"file": str(out), "tensors": dict(counts)}


def report(
    folder: Annotated[Path, typer.Argument(help="A folder that `tersor compress --out` wrote.")],
) -> dict[str, Any]:
    """Print the report of a saved folder again."""
    from tersor.report import print_report
    from tersor.report.language import print_language_report

    found = _read(folder)
    (print_report if hasattr(found, "layers") else print_language_report)(found, console)
    return _data(folder)


def _read(folder: Path) -> Any:
    from tersor.measure import read_report
    from tersor.measure.language import is_language_report, read_language_report

    return (read_language_report if is_language_report(folder) else read_report)(folder)


def _data(folder: Path) -> dict[str, Any]:
    return {"folder": str(folder), "report": json.loads(_read(folder).to_json())}


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Two or more folders that `tersor compress --out` wrote.")],
    html: Annotated[Path | None, typer.Option("--html", help="Also write a .html page.")] = None,
) -> dict[str, Any]:
    """Compare the reports of saved folders side by side, with the best in each row marked."""
    from tersor.checkpoints.destination import check_file, write_page
    from tersor.report.compare import compared, page, plots, table

    if html is not None:
        check_file(html, ".html")
    found = compared(folders)
    console.print(table(found))
    console.print(plots(found))
    if html is not None:
        write_page(html, page(found, html.parent))
        console.print("\n" + _("Open {page} in a browser.", page=html), soft_wrap=True)
    return {"runs": [_data(folder) for folder in folders]}


def run(
    folder: Annotated[Path, typer.Argument(help="A folder that `tersor compress --out` wrote.")],
    input: Annotated[
        list[Path], typer.Option("--input", "-i", help="A .npy file; repeat the option for each input of the network.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .npy file to write; several outputs are numbered.")
    ],
    threads: Threads = None,
    finite: Annotated[bool, typer.Option("--check-finite", help="Refuse inputs that hold NaN or infinity.")] = False,
) -> dict[str, Any]:
    """Run a saved network on NumPy files, without the network's source code."""
    from tersor.checkpoints.destination import check_file
    from tersor.pipeline.graph.deployed import load_network as load
    from tersor.pipeline.graph.files import run_files

    check_file(output, ".npy", sources=input)
    written = [*run_files(load(folder, threads), input, output, finite)]
    for path in written:
        console.print(_("written to {file}", file=path), soft_wrap=True)
    return {"files": [str(path) for path in written]}
