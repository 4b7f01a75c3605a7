// What a program for Node does with OpenAI's API: upload, submit, poll until it has ended, read what happened.
// Its argument is a `Running` of conftest.py in JSON. An assertion that fails ends it with an error.

import assert from "node:assert/strict";
import { setTimeout as wait } from "node:timers/promises";

import OpenAI, { toFile } from "openai";

const there = JSON.parse(process.argv[2]);
const client = new OpenAI({ baseURL: there.url, apiKey: there.key, maxRetries: 0 });

const row = { messages: [{ role: "user", content: "Q" }, { role: "assistant", content: "A" }] };
const data = Buffer.from(`${JSON.stringify(row)}\n`.repeat(4));

const file = await client.files.create({ file: await toFile(data, "rows.jsonl"), purpose: "fine-tune" });
assert.equal((await client.files.waitForProcessing(file.id)).status, "processed");
assert.deepEqual(Buffer.from(await (await client.files.content(file.id)).arrayBuffer()), data);

const upload = await client.uploads.create({
  bytes: data.length, filename: "rows.jsonl", mime_type: "text/jsonl", purpose: "fine-tune",
});
const first = await client.uploads.parts.create(upload.id, { data: await toFile(data.subarray(0, 99)) });
const second = await client.uploads.parts.create(upload.id, { data: await toFile(data.subarray(99)) });
const done = await client.uploads.complete(upload.id, { part_ids: [first.id, second.id] });
assert.equal(done.file.bytes, data.length);

let job = await client.fineTuning.jobs.create({
  model: "tiny",
  training_file: file.id,
  method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 1 } } },
});
while (["validating_files", "queued", "running"].includes(job.status)) {
  await wait(100);
  job = await client.fineTuning.jobs.retrieve(job.id);
}
assert.equal(job.status, "succeeded");

const messages = [];
for await (const event of client.fineTuning.jobs.listEvents(job.id, { limit: 3 })) {
  messages.push(event.message);
}
assert.equal(messages.at(-1), `Created fine-tuning job: ${job.id}`);
assert.equal(messages[0], "The job has successfully completed");

const checkpoints = await client.fineTuning.jobs.checkpoints.list(job.id);
const names = [job.fine_tuned_model, checkpoints.data[0].fine_tuned_model_checkpoint, there.base];
for (const name of names) {
  assert.equal((await client.models.retrieve(name)).id, name);
}

await assert.rejects(
  client.fineTuning.jobs.cancel(job.id),
  (error) => error instanceof OpenAI.BadRequestError && error.code === "job_already_terminal",
);
console.log(JSON.stringify({ job: job.id }));
