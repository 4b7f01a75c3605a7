"""What a program that speaks to many services through LiteLLM does: upload, submit, look, list, cancel.

A program of its own, whose argument is a `Running` of conftest.py in JSON.
"""

import io
import json
import sys
from typing import Any

import litellm

_ROW = b'{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}\n'


def main(there: dict[str, Any]) -> None:
    service = {"custom_llm_provider": "openai", "api_base": there["url"], "api_key": there["key"]}
    file = litellm.create_file(file=("rows.jsonl", io.BytesIO(_ROW * 4)), purpose="fine-tune", **service)
    assert litellm.file_retrieve(file_id=file.id, **service).status == "processed"
    assert litellm.file_content(file_id=file.id, **service).content == _ROW * 4
    job = litellm.create_fine_tuning_job(model="tiny", training_file=file.id, **service)
    assert job.status == "queued", job
    assert litellm.retrieve_fine_tuning_job(fine_tuning_job_id=job.id, **service).id == job.id
    assert job.id in [each.id for each in litellm.list_fine_tuning_jobs(limit=5, **service)]
    assert litellm.cancel_fine_tuning_job(fine_tuning_job_id=job.id, **service).status == "cancelled"
    done = litellm.retrieve_fine_tuning_job(fine_tuning_job_id=there["tuned"], **service)
    print(json.dumps({"tuned": done.fine_tuned_model}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
