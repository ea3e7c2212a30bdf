"""ood-store: look into a store, verify bundles, and put them into other servers' forms."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from model_store.bundle import load_bundle, read_manifest
from model_store.errors import BundleError
from model_store.manifest import Manifest
from model_store.store import SHIPPED, BundleRef, Store
from model_store.triton import export_triton

app = typer.Typer(
    help="Look into a store of bundles, verify and export them.", no_args_is_help=True, pretty_exceptions_enable=False
)
StoreOption = Annotated[
    Path, typer.Option("--store", envvar="OOD_STORE", help="The store's directory; the bundles that ship by default.")
]
BundleArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help="NAME or NAME@VERSION; the newest by default.")]
_UNBOUNDED = 100_000
"""Columns that no table fills."""


@app.command("list")
def list_bundles(store: StoreOption = SHIPPED) -> None:
    """List every published bundle."""
    titles = ("bundle", "network", "classes", "test error", "false flags", "description")
    table = Table(*(Column(title, overflow="fold") for title in titles), box=None)
    for ref in Store(store).refs():
        try:
            manifest = read_manifest(Store(store).resolve(ref))
        except BundleError as err:
            table.add_row(str(ref), "[red]damaged[/]", "", "", "", escape(str(err)))
            continue
        said = (manifest.network.title, str(len(manifest.classes)), *_figures(manifest), manifest.description)
        table.add_row(str(ref), *map(escape, said))
    console = Console()
    if not console.is_terminal:  # a file or a program, which wants a bundle a line
        console.width = _UNBOUNDED
    console.print(table if table.row_count else escape(f"no bundles in {store}"))


@app.command()
def show(bundle: BundleArgument, store: StoreOption = SHIPPED) -> None:
    """Print a bundle's manifest as JSON."""
    folder = Store(store).resolve(BundleRef.parse(bundle))
    typer.echo(read_manifest(folder).model_dump_json(indent=2))


@app.command()
def verify(bundle: BundleArgument, store: StoreOption = SHIPPED) -> None:
    """Verify a bundle whole: files, network, threshold, golden images."""
    loaded = load_bundle(Store(store).resolve(BundleRef.parse(bundle)))
    manifest, calibration = loaded.manifest, loaded.manifest.calibrations[loaded.manifest.verdict]
    typer.echo(
        f"{manifest.name}@{manifest.version} is whole: {len(manifest.files)} files, {manifest.network.title}, "
        f"{len(manifest.golden)} golden images, flags {manifest.verdict} <= {calibration.threshold:.4f}\n"
        f"sha256 {loaded.sha256}"
    )


@app.command()
def export(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Option("--out", help="The model repository's directory; made if it is not there.")],
    onnx: Annotated[
        bool, typer.Option("--onnx", help="One ONNX graph, pixels to verdicts, with config.pbtxt.")
    ] = False,
    store: StoreOption = SHIPPED,
) -> None:
    """Export a bundle into a model repository of Triton; onnxruntime must agree with the bundle's predictor."""
    if not onnx:
        raise typer.BadParameter("name the form to export to; there is one, --onnx")
    loaded = load_bundle(Store(store).resolve(BundleRef.parse(bundle)), device=torch.device("cpu"))
    typer.echo(export_triton(loaded, out))


def _figures(manifest: Manifest) -> tuple[str, str]:
    if manifest.evaluation is None:
        return "", ""
    served = manifest.evaluation.served.get("as they are")
    return f"{manifest.evaluation.fine_tuned.test_error:.2f} %", f"{served.false_flags:.2f} %" if served else ""


def main() -> None:
    """Run the command; a bundle, a place or an output that is not right ends it with a message and exit status 1."""
    try:
        app()
    except (BundleError, OSError) as err:
        typer.echo(f"ood-store: {err}", err=True)
        raise SystemExit(1) from None
