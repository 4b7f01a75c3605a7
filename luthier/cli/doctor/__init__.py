"""`luthier doctor`: what is wrong here, and what to do about it.

Each check yields findings and changes nothing. Those that need the server's packages are left out, and told,
where these are not installed.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pkgutil import resolve_name
from typing import Annotated

import typer

from luthier.cli.doctor import host, software
from luthier.cli.doctor.finding import Finding, failed
from luthier.cli.terminal import console
from luthier.settings import Settings

_MARKS = {"ok": "[green]ok[/]     ", "warning": "[yellow]warning[/]", "failed": "[red]FAILED[/] "}

app = typer.Typer()


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check this machine and installation, and say what to do; exit code 1 if something is broken."""
    findings = list(examine(Settings()))
    if as_json:
        console().print_json(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            _print(finding)
    if any(finding.status == "failed" for finding in findings):
        raise typer.Exit(1)


def examine(settings: Settings) -> Iterator[Finding]:
    """All findings, in the order in which they are worth reading."""
    yield software.check_python()
    yield from software.check_packages()
    yield from software.check_libraries()
    yield host.check_settings(settings)
    yield from host.check_folders(settings)
    yield from _with_server_packages("services:check_services", settings)
    yield host.check_devices(settings)
    yield from _with_server_packages("models:check_models", settings)


def _with_server_packages(check: str, settings: Settings) -> Iterator[Finding]:
    """Findings of a check whose module needs packages that a machine with only the client lacks."""
    try:
        examine_part = resolve_name(f"luthier.cli.doctor.{check}")
    except ModuleNotFoundError as error:
        name = check.partition(":")[0]
        yield failed(name, f"cannot be checked without {error.name}", "pip install 'luthier[server]'")
        return
    yield from examine_part(settings)


def _print(finding: Finding) -> None:
    screen = console()
    screen.print(f"{_MARKS[finding.status]} {finding.check}: ", end="")
    screen.print(finding.message, markup=False)
    if finding.remedy is not None:
        screen.print(f"        {finding.remedy}", markup=False)
