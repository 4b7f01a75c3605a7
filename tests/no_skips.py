"""A pytest plugin that fails a session in which a test was skipped: `pytest -p tests.no_skips`.

`.ci/run` uses it, since a skipped test is one whose database or server was not there, and shows nothing.
Tests that a marker leaves out (`full`, `gpu`) are not skipped, they are not asked for.
"""

import pytest


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Turn a success with skips into a failure."""
    if exitstatus == pytest.ExitCode.OK and _skipped(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why, above pytest's own closing line."""
    if count := _skipped(terminalreporter.config):
        terminalreporter.write_line(f"{count} skipped, and none may be: see SKIPPED above", red=True)


def _skipped(config: pytest.Config) -> int:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return len(reporter.stats.get("skipped", [])) if reporter is not None else 0
