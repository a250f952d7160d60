"""The verbs. This is the composition root: it may import everything, nobody imports it.

Each command imports what it needs when it runs, so that ``status`` answers within a second and
``serve`` never loads torch.
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from dicom_node.cli import logs
from dicom_node.errors import NodeError

app = typer.Typer(
    name="dicom-node",
    help="Receives studies, drafts chest X-ray reports, returns them as DICOM SR.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks print local variables: patient data
)
db_app = typer.Typer(help="The database schema.", no_args_is_help=True)
models_app = typer.Typer(help="Report models.", no_args_is_help=True)
reports_app = typer.Typer(help="The radiologists' final reports.", no_args_is_help=True)
evaluate_app = typer.Typer(help="How good the drafts are.", no_args_is_help=True)
app.add_typer(db_app, name="db")
app.add_typer(reports_app, name="reports")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(models_app, name="models")

Config = Annotated[
    Path | None, typer.Option("--config", envvar="DICOM_NODE_CONFIG", help="dicom-node.toml")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document for machines.")]
Limit = Annotated[int, typer.Option(min=1, max=10_000)]
StudyUid = Annotated[str, typer.Argument(metavar="STUDY_UID")]


def main() -> None:
    """Entry point: an expected failure is one line and exit code 1, a bug is a traceback."""
    logs.quiet_libraries()
    try:
        app()
    except NodeError as error:
        _end(error)
    except _inference_error() as error:  # asked only now: the guard looks before anyone imports
        _end(error)


def _inference_error() -> type[Exception]:
    from inference.findings import InferenceError

    return InferenceError


def _end(error: Exception) -> NoReturn:
    print(f"dicom-node: {error}", file=sys.stderr)
    sys.exit(1)


@app.command()
def run(
    config: Config = None,
    data: Annotated[Path | None, typer.Option(help="Folder for everything we write.")] = None,
) -> None:
    """Run the whole node on this machine; Ctrl-C or SIGTERM stops it."""
    from dicom_node.cli import services, wiring

    services.run(wiring.settings(config, {"node.data": data}))


@app.command()
def serve(config: Config = None) -> None:
    """Run the DICOM side only: receive, settle, nudge."""
    from dicom_node.cli import services, wiring

    services.serve(wiring.settings(config))


@app.command(hidden=True)
def tick(config: Config = None) -> None:
    """Part of serve: settle and nudge, without listening."""
    from dicom_node.cli import services, wiring

    services.tick(wiring.settings(config))


@app.command(hidden=True)
def receive(config: Config = None) -> None:
    """Part of serve: one of several processes that receive on one port."""
    from dicom_node.cli import services, wiring

    services.receive(wiring.settings(config))


@app.command()
def work(
    config: Config = None,
    queues: Annotated[
        str, typer.Option(help="gpu (reads studies), net (sends drafts)")
    ] = "gpu,net",
) -> None:
    """Run a worker."""
    from dicom_node.cli import services, wiring

    services.work(wiring.settings(config), queues)


@app.command()
def status(
    config: Config = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option(help="Again every 2 s until Ctrl-C.")] = False,
) -> None:
    """Show how the node is; exit code 1 when something needs a person."""
    from dicom_node.cli import looking, wiring

    looking.status(wiring.settings(config), as_json=as_json, watch=watch)


@app.command()
def doctor(
    peer: Annotated[
        str | None, typer.Argument(help="Only this peer, or AE@HOST:PORT: the whole way to it.")
    ] = None,
    config: Config = None,
    as_json: Json = False,
    store: Annotated[
        bool, typer.Option("--store", help="With PEER: leave a marked test object there.")
    ] = False,
) -> None:
    """Check each part and each peer; name the fault and the fix."""
    from dicom_node.cli import services, wiring

    if store and peer is None:
        raise typer.BadParameter("--store goes with PEER")
    services.doctor(wiring.settings(config), peer, as_json=as_json, store=store)


@app.command()
def studies(
    config: Config = None,
    state: Annotated[str | None, typer.Option(help="receiving or complete")] = None,
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """List studies, newest first."""
    from dicom_node.cli import looking, wiring

    looking.studies(wiring.settings(config), state=state, limit=limit, as_json=as_json)


@app.command()
def study(study_uid: StudyUid, config: Config = None, as_json: Json = False) -> None:
    """Show one study's whole way."""
    from dicom_node.cli import looking, wiring

    looking.study(wiring.settings(config), study_uid, as_json=as_json)


@app.command()
def draft(
    study_uid: StudyUid,
    config: Config = None,
    output: Annotated[Path | None, typer.Option(help="Write the DICOM file here.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Print it as text (default).")] = False,
    kind: Annotated[
        str | None, typer.Option(help="text_sr, coded_sr, pdf, ...; default: the first there is")
    ] = None,
) -> None:
    """Get a study's current draft, as the object that was made or as text."""
    from dicom_node.cli import looking, wiring

    looking.draft(wiring.settings(config), study_uid, kind=kind, output=output, text=text)


@app.command()
def retry(
    study_uid: Annotated[str | None, typer.Argument(metavar="STUDY_UID")] = None,
    config: Config = None,
    failed: Annotated[bool, typer.Option("--failed", help="Everything that failed.")] = False,
    peer: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --failed: only deliveries to this one.")
    ] = None,
) -> None:
    """Queue a study's job and its failed deliveries again."""
    from dicom_node.cli import acting, wiring

    if (study_uid is None) != failed:
        raise typer.BadParameter("give STUDY_UID or --failed")
    if peer is not None and not failed:
        raise typer.BadParameter("--peer goes with --failed")
    acting.retry(wiring.settings(config), study_uid, peer)


@app.command()
def deliveries(
    config: Config = None,
    state: Annotated[
        str | None, typer.Option(help="due, sending, sent, delivered, failed, withheld or dropped")
    ] = None,
    peer: Annotated[str | None, typer.Option(metavar="NAME", help="Only to this peer.")] = None,
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """List drafts on their way to destinations, newest first; failed: those given up, and why."""
    from dicom_node.cli import looking, wiring

    found = wiring.settings(config)
    looking.deliveries(found, state=state, peer=peer, limit=limit, as_json=as_json)


@app.command()
def retention(
    config: Config = None,
    now: Annotated[bool, typer.Option("--now", help="Delete what is due, at once.")] = False,
    limit: Limit = 100,
    as_json: Json = False,
) -> None:
    """Show which studies will be deleted when, and why the others are kept."""
    from dicom_node.cli import keeping, wiring

    if now:
        keeping.apply(wiring.settings(config), as_json=as_json)
    else:
        keeping.show(wiring.settings(config), limit=limit, as_json=as_json)


@app.command()
def send(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...")],
    to: Annotated[str, typer.Option(metavar="PEER|AE@HOST:PORT")],
    config: Config = None,
) -> None:
    """Send files or folders by C-STORE or STOW-RS."""
    from dicom_node.cli import acting, wiring

    acting.send(wiring.settings(config), paths, to)


@app.command()
def echo(
    target: Annotated[str, typer.Argument(metavar="PEER|AE@HOST:PORT")], config: Config = None
) -> None:
    """Verify a peer by C-ECHO."""
    from dicom_node.cli import acting, wiring

    acting.echo(wiring.settings(config), target)


@app.command()
def search(
    text: Annotated[str | None, typer.Argument(metavar="TEXT")] = None,
    config: Config = None,
    image: Annotated[Path | None, typer.Option(help="DICOM or picture file.")] = None,
    study: Annotated[str | None, typer.Option(metavar="UID", help="A study we hold.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="image or report; default: images for TEXT, else reports")
    ] = None,
    limit: Limit = 5,
    as_json: Json = False,
) -> None:
    """Find studies by words, by an image or by another study."""
    from dicom_node.cli import looking, wiring

    if sum(one is not None for one in (text, image, study)) != 1:
        raise typer.BadParameter("give TEXT, --image FILE or --study UID")
    if kind not in (None, "image", "report"):
        raise typer.BadParameter("--kind is image or report")
    query = looking.Query(text=text, image=image, study=study, kind=kind, limit=limit)
    looking.search(wiring.settings(config), query, as_json=as_json)


@app.command()
def reconcile(
    config: Config = None,
    day: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="Default: the last days."),
    ] = None,
    peer: Annotated[str | None, typer.Option(metavar="NAME", help="Only this peer.")] = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch what is missing.")] = False,
    as_json: Json = False,
) -> None:
    """Show chest studies that the PACS has and we have not."""
    from dicom_node.cli import asking, wiring

    date = f"{day:%Y%m%d}" if day else None
    found = wiring.settings(config)
    asking.reconcile(found, day=date, peer=peer, fetch=fetch, as_json=as_json)


@app.command()
def priors(
    study_uid: StudyUid,
    config: Config = None,
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch those we have not.")] = False,
    as_json: Json = False,
) -> None:
    """Show the earlier chest studies of a study's patient, here and at the PACS."""
    from dicom_node.cli import asking, wiring

    asking.show_priors(wiring.settings(config), study_uid, fetch=fetch, as_json=as_json)


@app.command()
def conformance(
    config: Config = None,
    output: Annotated[
        Path | None, typer.Option(help="Write it to this file instead of printing it.")
    ] = None,
) -> None:
    """Write the DICOM Conformance Statement of a node with this configuration, as Markdown."""
    from dicom_node.cli import conforming, wiring

    conforming.conformance(wiring.settings(config), output)


@app.command()
def demo() -> None:
    """Show the whole way of one phantom study on this machine, then stop everything."""
    from dicom_node.cli import demonstration

    demonstration.show()


ModelName = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Default: the configured one.")
]
Source = Annotated[
    Path, typer.Option(help="The published model folder, or the folder around all of them.")
]
Base = Annotated[
    Path | None, typer.Option(help="The base language model's folder, if not in SOURCE.")
]
Quantize = Annotated[
    Literal["nf4", "none"], typer.Option(help="nf4: projections in 4 bits; none: all in float32")
]


@models_app.command("list")
def models_list(config: Config = None, as_json: Json = False) -> None:
    """List the models that are installed, and what each needs."""
    from dicom_node.cli import modelling, wiring

    modelling.show_models(wiring.settings(config), as_json=as_json)


@models_app.command("pull")
def models_pull(
    output: Annotated[Path, typer.Option(help="Folder for the published files.")],
    config: Config = None,
    model: ModelName = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Our site accepts the terms shown.")
    ] = False,
) -> None:
    """Show what a model needs and under which terms; fetch it once they are accepted."""
    from dicom_node.cli import modelling, wiring

    name = model or wiring.settings(config).model.name
    modelling.pull(name, output, accepted=accept_licence)


@models_app.command("prepare")
def models_prepare(
    source: Source,
    output: Annotated[Path, typer.Option(help="New folder for the prepared weights.")],
    config: Config = None,
    model: ModelName = None,
    base: Base = None,
    quantize: Quantize = "nf4",
) -> None:
    """Turn published weights into the one folder that the node loads."""
    from dicom_node.cli import modelling, wiring

    name = model or wiring.settings(config).model.name
    modelling.prepare(name, source, base, output, quantize)


@models_app.command("verify")
def models_verify(
    config: Config = None,
    model: ModelName = None,
    path: Annotated[Path | None, typer.Option(help="Prepared folder. Default: configured.")] = None,
    as_json: Json = False,
) -> None:
    """Check prepared weights, and that this machine computes with them what it should."""
    from dicom_node.cli import modelling, wiring

    modelling.verify(wiring.settings(config), model, path, as_json=as_json)


@models_app.command("trace")
def models_trace(
    source: Source,
    output: Annotated[Path, typer.Option(metavar="OUT.safetensors")],
    config: Config = None,
    model: ModelName = None,
    base: Base = None,
    image: Annotated[Path | None, typer.Option(help="DICOM, or a picture taken as it is.")] = None,
    indication: Annotated[str | None, typer.Option(metavar="TEXT")] = None,
    text: Annotated[str | None, typer.Option(metavar="TEXT", help="For retrieval.")] = None,
    quantize: Quantize = "none",
) -> None:
    """Write every stage of one image or text, to compare with another implementation."""
    from dicom_node.cli import modelling, wiring

    if image is None and text is None:
        raise typer.BadParameter("give --image, --text or both")
    asked = modelling.Traced(image=image, indication=indication, text=text)
    name = model or wiring.settings(config).model.name
    modelling.trace(name, source, base, asked, quantize, output)


@models_app.command("demo")
def models_demo(
    output: Annotated[
        Path | None, typer.Option(help="Copy its published layout here, for practice.")
    ] = None,
) -> None:
    """Say what the demo model is."""
    from dicom_node.cli import modelling

    modelling.demo(output)


@reports_app.command("import")
def reports_import(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...")], config: Config = None
) -> None:
    """Take in final reports: SR documents, HL7 messages (ORU^R01), tables (.csv)."""
    from dicom_node.cli import reporting, wiring

    reporting.take(wiring.settings(config), files)


@reports_app.command("list")
def reports_list(
    config: Config = None,
    parked: Annotated[
        bool, typer.Option("--parked", help="Only those without a study, and why.")
    ] = False,
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """List final reports, newest first."""
    from dicom_node.cli import reporting, wiring

    reporting.show(wiring.settings(config), parked=parked, limit=limit, as_json=as_json)


@evaluate_app.command("feedback")
def evaluate_feedback(
    config: Config = None,
    weeks: Annotated[int | None, typer.Option(min=1, help="Only the last so many weeks.")] = None,
    as_json: Json = False,
) -> None:
    """Hold drafts against the final reports that followed, by model version and week."""
    from dicom_node.cli import reporting, wiring

    reporting.show_feedback(wiring.settings(config), weeks=weeks, as_json=as_json)


@db_app.command()
def upgrade(config: Config = None) -> None:
    """Bring the database to this version's schema."""
    from dicom_node import db
    from dicom_node.cli import wiring

    db.upgrade(wiring.database_url(wiring.settings(config)))


@db_app.command()
def current(config: Config = None) -> None:
    """Print the database's revision and the one this version wants."""
    from dicom_node import db
    from dicom_node.cli import wiring

    present, wanted = db.revisions(wiring.database_url(wiring.settings(config)))
    print(f"{present or 'empty'} (this version: {wanted})")
    if present != wanted:
        raise NodeError("run `dicom-node db upgrade`")
