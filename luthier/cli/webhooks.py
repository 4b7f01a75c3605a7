"""`luthier webhooks`: who is told of jobs, and the log of what became of it."""

from enum import StrEnum
from typing import Annotated

import typer

from luthier.cli.output import (
    After,
    All,
    AsJson,
    Column,
    Format,
    Limit,
    Output,
    format_of,
    show_list,
    show_one,
)
from luthier.cli.terminal import misuse, say, time_of
from luthier.client import Client, WebhookDelivery, WebhookEndpoint

app = typer.Typer(no_args_is_help=True, help="Have URLs told of jobs, and see what became of it.")

EndpointId = Annotated[str, typer.Argument(metavar="ENDPOINT_ID", help="Such as whep_9aB...")]
Events = Annotated[
    list[str] | None,
    typer.Option("--event", help="Such as succeeded, or fine_tuning.job.succeeded; may be repeated."),
]
_FAMILY = "fine_tuning.job."
_ENDS = ("succeeded", "failed", "cancelled")


class _Status(StrEnum):
    """Whether an endpoint is told of anything."""

    ENABLED = "enabled"
    DISABLED = "disabled"


def _short(event_types: list[str]) -> str:
    return ", ".join(name.removeprefix(_FAMILY) for name in event_types)


def _status_of(endpoint: WebhookEndpoint) -> str:
    return f"{endpoint.status} ({endpoint.disabled_reason})" if endpoint.disabled_reason else endpoint.status


_ENDPOINTS = (
    Column[WebhookEndpoint]("ID", lambda one: one.id, is_whole=True),
    Column[WebhookEndpoint]("NAME", lambda one: one.name),
    Column[WebhookEndpoint]("URL", lambda one: one.url),
    Column[WebhookEndpoint]("EVENTS", lambda one: one.event_types, _short),
    Column[WebhookEndpoint]("STATUS", _status_of, is_cut=True),
)
_DELIVERIES = (
    Column[WebhookDelivery]("ID", lambda one: one.id, is_whole=True),
    Column[WebhookDelivery]("TIME", lambda one: one.created_at, time_of, is_cut=True),
    Column[WebhookDelivery]("EVENT", lambda one: [one.event_type], _short),
    Column[WebhookDelivery]("JOB", lambda one: one.data_id),
    Column[WebhookDelivery]("ATTEMPT", lambda one: one.attempt),
    Column[WebhookDelivery]("ANSWER", lambda one: one.status_code or one.error),
    Column[WebhookDelivery]("MS", lambda one: one.milliseconds),
    Column[WebhookDelivery]("NEXT", lambda one: one.next_attempt_at, time_of, is_cut=True),
)


@app.command()
def create(
    url: Annotated[str, typer.Argument(help="Such as https://example.com/luthier.")],
    name: Annotated[str, typer.Option(help="What it is for; shown in lists.")],
    events: Events = None,
    as_json: AsJson = False,
) -> None:
    """Add an endpoint and print its signing secret, this once; by default it is told of all ends of jobs."""
    with Client() as client:
        endpoint = client.webhooks.create(name=name, url=url, event_types=_types(events or _ENDS))
    _show_secret(endpoint, as_json=as_json)


@app.command("list")
def list_endpoints(
    limit: Limit = 20,
    after: After = None,
    output: Output = Format.TABLE,
    everything: All = False,
    as_json: AsJson = False,
) -> None:
    """List endpoints, newest first."""
    with Client() as client:
        rows = client.webhooks.list(limit=limit, after=after)
        show_list(rows, _ENDPOINTS, format_of(output, as_json), limit=limit, is_all=everything)


@app.command()
def get(endpoint_id: EndpointId, output: Output = Format.JSON) -> None:
    """Show one endpoint."""
    with Client() as client:
        show_one(client.webhooks.get(endpoint_id), output)


@app.command()
def update(
    endpoint_id: EndpointId,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    url: Annotated[str | None, typer.Option(help="Another URL.")] = None,
    events: Events = None,
    status: Annotated[_Status | None, typer.Option(help="Switch it off, or on again.")] = None,
) -> None:
    """Change an endpoint; what is not given stays, and --event names all of its events."""
    asked = {
        "name": name,
        "url": url,
        "event_types": _types(events) if events else None,
        "status": status and status.value,
    }
    changes = {key: value for key, value in asked.items() if value is not None}
    if not changes:
        misuse("what is to change? give --name, --url, --event or --status")
    with Client() as client:
        show_one(client.webhooks.update(endpoint_id, **changes), Format.JSON)


@app.command()
def delete(endpoint_id: EndpointId) -> None:
    """Delete an endpoint with its log; what was still to be sent to it is not sent."""
    with Client() as client:
        client.webhooks.delete(endpoint_id)
    say(f"Deleted {endpoint_id}")


@app.command()
def rotate(
    endpoint_id: EndpointId,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Sign with the old secret, too, for 24 hours.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Give an endpoint a new signing secret and print it, this once."""
    with Client() as client:
        endpoint = client.webhooks.rotate_secret(endpoint_id, keep_old=keep_old)
    _show_secret(endpoint, as_json=as_json)


@app.command("test")
def send_sample(
    endpoint_id: EndpointId,
    event: Annotated[str, typer.Option(help="The event of the sample.")] = "succeeded",
) -> None:
    """Have a sample sent now; exit code 1 where the target did not take it."""
    with Client() as client:
        answer = client.webhooks.test(endpoint_id, _types([event])[0])
    say(f"The target answered {answer.status_code} to {answer.event_type} in {answer.milliseconds} ms")
    if not 200 <= answer.status_code < 300:
        raise typer.Exit(1)


@app.command()
def deliveries(
    endpoint_id: EndpointId,
    *,
    limit: Limit = 20,
    after: After = None,
    output: Output = Format.TABLE,
    everything: All = False,
    as_json: AsJson = False,
) -> None:
    """List the attempts to tell an endpoint of something, newest first."""
    with Client() as client:
        rows = client.webhooks.deliveries(endpoint_id, limit=limit, after=after)
        show_list(rows, _DELIVERIES, format_of(output, as_json), limit=limit, is_all=everything)


@app.command()
def redeliver(
    endpoint_id: EndpointId,
    delivery_id: Annotated[str, typer.Argument(metavar="DELIVERY_ID", help="Such as whdl_9aB...")],
) -> None:
    """Send the message of an attempt again."""
    with Client() as client:
        delivery = client.webhooks.redeliver(endpoint_id, delivery_id)
    say(f"{delivery.event_id} is sent again")


def _show_secret(endpoint: WebhookEndpoint, *, as_json: bool) -> None:
    if as_json:
        show_one(endpoint, Format.JSON)
        return
    say(f"The signing secret of {endpoint.id}, shown this once:")
    print(endpoint.signing_secret)


def _types(names: list[str] | tuple[str, ...]) -> list[str]:
    """The names of events in full."""
    return [name if "." in name else f"{_FAMILY}{name}" for name in names]
