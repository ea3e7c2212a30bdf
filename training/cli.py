"""ood-train: from images to a calibrated bundle."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from safetensors.torch import save

from model_store.bundle import Bundle, load_bundle
from model_store.errors import BundleError
from model_store.store import SHIPPED, BundleRef, Store
from training import report
from training.config import read_recipe
from training.datasets import how_to_get, locate
from training.distributed import ALONE, require_alone, tells
from training.errors import TrainingError
from training.evaluate_bundle import evaluate_bundle
from training.given_weights import SAFETENSORS
from training.onnx_import import read_onnx
from training.opening import console, find_device, interruptible, opened_by_first, opened_run
from training.optimise import (
    ALLOWED_FLIPS,
    LowPrecision,
    OptimisedRuntime,
    Optimiser,
    Target,
    find_source,
    recipe_of,
)
from training.progress import ConsoleProgress
from training.publish import bundle_ref
from training.reproduce.benchmark import read_benchmark
from training.reproduce.methods import read_only
from training.reproduce.report import REPORT, renew, write_report
from training.reproduce.results import RESULTS, read_results, write_text
from training.reproduce.run import Reproduction
from training.reproduce.size import read_size
from training.run_folder import exclusive, require_writable, write_bytes, writing
from training.run_sets import RunSets

app = typer.Typer(
    help="Train, calibrate, evaluate and publish classifiers that know when they don't know.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")]
BundleArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help="NAME or NAME@VERSION.")]
DataOption = Annotated[Path, typer.Option("--data", help="The folder that holds the image sets.")]
RunOption = Annotated[
    Path | None, typer.Option("--run", help="The run's folder; by default runs/ and the name of the recipe's file.")
]
StoreOption = Annotated[Path, typer.Option("--store", envvar="OOD_STORE", help="The store's directory.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cuda, cuda:1, cpu; CUDA where there is one.")]

DATA, STORE = Path("data"), Path("store")


@app.command()
def run(
    recipe: RecipeArgument,
    data: DataOption = DATA,
    run_folder: RunOption = None,
    store: StoreOption = STORE,
    device: DeviceOption = None,
) -> None:
    """Run every stage of a recipe, from images to a published bundle; after a kill, run it again to resume.

    A bundle that the recipe starts from is looked for in the store, then among those that ship.
    """
    with opened_run(recipe, data, run_folder, device, store) as opened:
        folder = opened.all(Store(store))
    if folder is None:
        console.print(f"{opened.recipe.name} holds out no calibration images: evaluated, not published")
    else:
        typer.echo(f"{bundle_ref(folder)} {folder}")


@app.command()
def pretrain(
    recipe: RecipeArgument,
    data: DataOption = DATA,
    run_folder: RunOption = None,
    store: StoreOption = STORE,
    device: DeviceOption = None,
) -> None:
    """Train the classifier, or take the network that the recipe starts from: a bundle's, or a file's.

    A bundle is looked for in the store, then among those that ship.
    """
    with opened_run(recipe, data, run_folder, device, store) as opened:
        opened.pretrain()


@app.command()
def select(
    recipe: RecipeArgument, data: DataOption = DATA, run_folder: RunOption = None, device: DeviceOption = None
) -> None:
    """Choose the margins, if the recipe asks for it, by outliers made of held-out training images."""
    with opened_run(recipe, data, run_folder, device) as opened:
        choice = opened.select()
        opened.processes.leave_to_first()
    for margins, figures in choice.candidates.items():
        mark = "  <- chosen" if margins == choice.chosen else ""
        typer.echo(f"margins {margins}: FPR95 {figures.fpr95:.2f} %, error {figures.error:.2f} %{mark}")


@app.command()
def finetune(
    recipe: RecipeArgument, data: DataOption = DATA, run_folder: RunOption = None, device: DeviceOption = None
) -> None:
    """Drive the energies of in-distribution images and outliers apart, from the classifier's weights."""
    with opened_run(recipe, data, run_folder, device) as opened:
        opened.finetune()


@app.command()
def average(
    recipe: RecipeArgument, data: DataOption = DATA, run_folder: RunOption = None, device: DeviceOption = None
) -> None:
    """Take the mean of the start bundles, or of classifier and fine-tuned network, with statistics of its own."""
    with opened_by_first(recipe, data, run_folder, device) as opened:
        opened.average()


@app.command()
def calibrate(
    recipe: RecipeArgument, data: DataOption = DATA, run_folder: RunOption = None, device: DeviceOption = None
) -> None:
    """Set every score's threshold on the held-out images."""
    with opened_by_first(recipe, data, run_folder, device) as opened:
        calibrated = opened.calibrate()
    spec = calibrated.spec
    typer.echo(
        f"flags {calibrated.verdict} <= {spec.threshold:.4f}: {spec.method}, alpha {spec.alpha}, k {spec.k} of {spec.n}"
    )
    for name, further in calibrated.specs.items():
        if name != calibrated.verdict:
            typer.echo(f"on request {name} <= {further.threshold:.4f}")


@app.command()
def evaluate(
    recipe: RecipeArgument,
    data: DataOption = DATA,
    run_folder: RunOption = None,
    bundle: Annotated[str | None, typer.Option(help="A published bundle instead of the run's network.")] = None,
    store: StoreOption = SHIPPED,
    device: DeviceOption = None,
) -> None:
    """Measure the run's network on the recipe's test sets, or with --bundle a published one."""
    with opened_by_first(recipe, data, run_folder, device) as opened:
        if bundle is None:
            evaluation, verdict = opened.evaluate(), opened.recipe.calibrate.verdict
        else:
            loaded = _load(bundle, store, device)
            evaluation, verdict = evaluate_bundle(loaded, opened), loaded.manifest.verdict
    Console().print(Markdown(report.tables(evaluation, verdict)))


@app.command()
def publish(
    recipe: RecipeArgument,
    data: DataOption = DATA,
    run_folder: RunOption = None,
    store: StoreOption = STORE,
    device: DeviceOption = None,
) -> None:
    """Put an evaluated run into a bundle of the store."""
    with opened_by_first(recipe, data, run_folder, device) as opened:
        folder = opened.publish(Store(store))
    typer.echo(f"{bundle_ref(folder)} {folder}")


@app.command("import")
def import_onnx(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A classifier as ONNX: images in, logits out.")],
    out: Annotated[Path, typer.Option("--out", help="The safetensors file to write.")],
    size: Annotated[int, typer.Option("--size", min=1, help="Of its images, where the graph leaves it open.")] = 224,
) -> None:
    """Make a classifier that was exported to ONNX weights for a recipe, and print the recipe's lines for it."""
    if out.suffix != SAFETENSORS:
        raise typer.BadParameter(f"--out is {out}; a recipe reads these weights from a file named *{SAFETENSORS}")
    imported = read_onnx(file, size)
    write_bytes(out, save(imported.weights))
    table = "\n".join(f"{key} = {json.dumps(value)}" for key, value in imported.spec.model_dump().items())
    typer.echo(f'weights = "{out.name}"  # where it lies below the data folder\n\n[network]\n{table}')


@app.command("optimize")
def optimise(
    bundle: BundleArgument,
    precision: Annotated[LowPrecision, typer.Option("--precision", help="bfloat16, or int8, on openvino alone.")],
    runtime: Annotated[OptimisedRuntime, typer.Option("--runtime", help="What it is measured on.")] = "openvino",
    data: DataOption = DATA,
    run_folder: RunOption = None,
    store: StoreOption = STORE,
    allow_flips: Annotated[
        float, typer.Option("--allow-flips", min=0, max=1, help="The share of verdicts that may change.")
    ] = ALLOWED_FLIPS,
    device: DeviceOption = None,
) -> None:
    """Put a float32 bundle into a lower precision: recalibrate, evaluate, compare, publish the next version.

    The bundle is looked for in the store, then among those that ship; the sets must be those that it was made of.
    """
    require_alone("optimize")
    target = Target(runtime, precision)
    chosen = find_device(device or ("cpu" if runtime == "openvino" else None))
    if runtime == "openvino" and chosen.type != "cpu":
        raise typer.BadParameter(f"{device!r} asked for, but openvino runs on the cpu")
    source = find_source(bundle, (Store(store), Store(SHIPPED)), chosen)
    manifest = source.manifest
    folder = run_folder or Path("runs") / f"{manifest.name}@{manifest.version}-{runtime}-{precision}"
    require_writable(store / manifest.name)
    with exclusive(folder), ConsoleProgress(console) as progress, interruptible(lambda: "nothing was published"):
        sets = RunSets(recipe_of(source), data, progress.say, ALONE)
        draft = Optimiser(source, sets, target, chosen, folder, progress.say).draft(allow_flips)
        with writing(store):
            published = Store(store).publish(draft, newer_than=manifest.version)
    if draft.manifest.optimisation is not None:
        Console().print(Markdown(report.optimisation_table(draft.manifest.optimisation)))
    typer.echo(f"{bundle_ref(published)} {published}")


@app.command()
def reproduce(
    out: Annotated[Path, typer.Option("--out", help="The folder of the results.")],
    data: DataOption = DATA,
    size: Annotated[
        Path, typer.Option("--size", help="paper, paper-short, robust, cpu, tests, or a file of one's own.")
    ] = Path("paper"),
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="In-distribution sets, experiments, methods, patterns; repeatable, or by commas."),
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Run the paper's experiments, and those past it; after a kill, run it again to go on.

    Every result is written as it is made: results.json, and at the end report.md with figures.
    """
    require_alone("reproduce")
    names = [name for given in only or () for name in given.split(",")]
    sizes, benchmark = read_size(size), read_benchmark()
    chosen, wanted = find_device(device), read_only(names, sizes, benchmark)
    command = shlex.join(["ood-train", *sys.argv[1:]])
    kept = f"what was finished is in {out}; run the same command to go on"
    with exclusive(out), ConsoleProgress(console) as progress, interruptible(lambda: kept):
        Reproduction(benchmark, sizes, wanted, data, out, command, chosen, progress, progress.say).all()
        write_report(out, progress.say)
    typer.echo(out / REPORT)


@app.command("report")
def renew_report(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder with a results.json of `ood-train reproduce`.")],
    into: Annotated[Path | None, typer.Option(help="Renew the summary between this document's markers too.")] = None,
) -> None:
    """Write report.md and the figures anew from results.json and the scores beside it."""
    if into is not None and not into.is_file():
        raise typer.BadParameter(f"{into} is no file to renew the summary in")
    write_report(out, console.print)
    if into is not None:
        write_text(into, renew(_text(into), read_results(out / RESULTS)))


@app.command("data")
def show_data(recipe: RecipeArgument = Path("cifar10"), data: DataOption = DATA) -> None:
    """Show which of a recipe's image sets are there, and how to get the others."""
    table = Table("role", "set", "found", box=None)
    missing = []
    spec = read_recipe(recipe).data
    for role, source in spec.sources().items():
        found = locate(source, data)
        table.add_row(role, source, str(found) if found else "[red]missing[/]")
        if found is None:
            missing.append(source)
    if spec.outliers_are_synthetic:
        table.add_row("outliers", spec.outliers, f"made of {spec.train}")
    Console().print(table)
    for source in missing:
        typer.echo(f"\n{source}: {how_to_get(source, data)}")
    if missing:
        raise typer.Exit(1)


@app.command()
def card(
    bundle: BundleArgument,
    store: StoreOption = SHIPPED,
    out: Annotated[Path | None, typer.Option(help="Write the model card here instead of to standard output.")] = None,
    readme: Annotated[Path | None, typer.Option(help="Renew the results between this document's markers.")] = None,
) -> None:
    """Write a bundle's model card, and its results into a README, from its manifest."""
    loaded = _load(bundle, store, "cpu")
    if readme is not None and not readme.is_file():
        raise typer.BadParameter(f"{readme} is no file to renew the results in")
    if readme is not None:
        with writing(readme):
            readme.write_text(report.replace_block(_text(readme), report.readme_block(loaded)))
    if out is not None:
        with writing(out):
            out.write_text(report.model_card(loaded))
    if readme is None and out is None:
        typer.echo(report.model_card(loaded))


def _load(bundle: str, store: Path, device: str | None) -> Bundle:
    chosen = None if device is None else find_device(device)  # an int8 bundle runs on the CPU where there is a GPU, too
    return load_bundle(Store(store).resolve(BundleRef.parse(bundle)), device=chosen)


def _text(document: Path) -> str:
    try:
        return document.read_text()
    except UnicodeDecodeError as err:
        raise TrainingError(f"{document} is not UTF-8 ({err}); name a document in Markdown, saved as UTF-8") from err


def main() -> None:
    """Run the command; what a user or an operator can mend ends it with a message and exit status 1."""
    try:
        app()
    except (TrainingError, BundleError, FloatingPointError, OSError) as err:
        if tells():
            typer.echo(f"ood-train: {err}", err=True)
        raise SystemExit(1) from None
