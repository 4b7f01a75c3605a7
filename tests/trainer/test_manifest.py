"""`run.json`: enough to do the run again, in one schema for those who write and who read it."""

import pytest

from luthier.events import EventWriter
from luthier.spec import DataFile, DatasetRequest, RunManifest
from trainer import provenance, recipe


def manifest_of(run):
    return RunManifest.model_validate_json((run.artifacts / "run.json").read_bytes())


def test_the_manifest_tells_data_settings_software_and_machine(make_run, make_rows):
    run = make_run(
        files=[(make_rows(8), 1.0), (make_rows(8, first=30), 2.0)], validation=make_rows(4, first=60)
    )

    ended = run.train()

    manifest = manifest_of(run)
    assert [split.weight for split in manifest.data.train] == [1.0, 2.0]
    assert manifest.data.validation.sha256 == run.spec.data.validation.sha256
    assert manifest.hyperparameters == run.spec.hyperparameters
    assert manifest.results == ended.result
    assert manifest.software.libraries["torch"]
    assert manifest.hardware.cpu_count >= 1
    assert manifest.hardware.device_memory_bytes > 2**20
    assert {"loading_model", "training", "evaluating", "elapsed"} <= set(manifest.seconds)


def test_the_users_files_and_rules_are_in_it(make_run):
    run = make_run()
    source = DataFile(param="training_file", filename="rows.jsonl", sha256="ab" * 32)
    rules = DatasetRequest(train_on="last")
    spec = run.spec.model_copy(update={"files": (source,), "rules": rules})
    events = EventWriter(run.folder / "events.jsonl")

    recipe.train(spec, run.folder, events, lambda: False)
    events.close()

    assert manifest_of(run).data.files == (source,)
    assert manifest_of(run).data.rules == rules


def test_steps_in_the_manifest_are_exact(make_run, make_rows):
    run = make_run(rows=make_rows(24), packing=True, are_steps_estimated=True, max_steps=500, n_epochs=1)

    ended = run.train()

    settings = manifest_of(run).hyperparameters
    assert (settings.max_steps, settings.are_steps_estimated) == (ended.step, False)


def test_a_build_says_its_commit(monkeypatch):
    monkeypatch.setenv("LUTHIER_COMMIT", "abc123")

    assert provenance.commit() == "abc123"


def test_a_source_without_a_checkout_has_no_commit(monkeypatch, tmp_path):
    monkeypatch.delenv("LUTHIER_COMMIT", raising=False)
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)

    assert provenance.commit() is None


@pytest.mark.parametrize("given", ["{{ messages }}", None])
def test_the_template_of_the_data_lies_beside_the_adapter(make_run, given, tiny):
    run = make_run(max_steps=1)
    data = run.spec.data.model_copy(update={"chat_template": given})
    events = EventWriter(run.folder / "events.jsonl")

    recipe.train(run.spec.model_copy(update={"data": data}), run.folder, events, lambda: False)
    events.close()

    own = (tiny / "chat_template.jinja").read_text()
    assert (run.artifacts / "adapter/chat_template.jinja").read_text() == (given or own)
