"""deploy/alerts.yml: what rules ask for is there, and they fire when they should.

promtool, where it is installed, checks the syntax and plays deploy/alerts.test.yml; what needs no promtool is
checked in any case, against the real /metrics.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from api.prometheus import BOUNDS_SECONDS, DatabaseCollector
from api.request_counts import RequestCounts
from luthier import events
from luthier.installation import open_installation
from luthier.job_sums import JobSums
from luthier.service import control, endings, recording
from luthier.settings import Settings
from tests.factories import NOW, claim, create_prepared_job

ROOT = Path(__file__).parents[1]
ALERTS = ROOT / "deploy" / "alerts.yml"
RULES = [rule for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"] for rule in group["rules"]]
_SELECTOR = re.compile(r"(luthier_\w+)(?:\{([^}]*)\})?")


@pytest.fixture
def metrics(sqlite_url: str, tmp_path: Path) -> dict[str, set[str]]:
    """Names of samples with their labels, from an installation in which one job runs and one has ended."""
    installation = open_installation(Settings(data_dir=tmp_path / "data", database_url=sqlite_url))
    with installation.database.transaction() as session:
        create_prepared_job(session, "ftjob-runs")
        taken = claim(session)
        assert taken is not None
        lines = [events.RunStarted(), events.StepLogged(step=7, total_steps=96, epoch=0.1)]
        recording.record_events(session, taken.lease, lines, offset=1, now=NOW)
        create_prepared_job(session, "ftjob-ended")
        other = claim(session)
        assert other is not None
        control.request_cancel(session, other.job, now=NOW)
        endings.stop_run(session, other.lease, exit_code=85, now=NOW)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(DatabaseCollector(installation, JobSums(BOUNDS_SECONDS)))
    requests = RequestCounts()
    requests.add({"method": "GET"}, 200)
    registry.register(requests)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    found: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    installation.database.close()
    return found


def test_every_rule_asks_for_metrics_and_labels_that_exist(metrics: dict[str, set[str]]) -> None:
    for rule in RULES:
        selectors = _SELECTOR.findall(rule["expr"])
        assert selectors or re.search(r"\bup\{", rule["expr"]), rule["alert"]
        for name, matchers in selectors:
            assert name in metrics, f"{rule['alert']} asks for {name}"
            assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= metrics[name], rule["alert"]


def test_every_rule_says_how_urgent_it_is_and_what_it_means() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]


def test_every_alert_is_explained() -> None:
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    assert [rule["alert"] for rule in RULES if f"`{rule['alert']}`" not in text] == []


@pytest.mark.parametrize(
    "arguments", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts.test.yml")]
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        return  # the tests above hold what they can
    answer = subprocess.run(
        [promtool, *arguments], cwd=ROOT / "deploy", capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
