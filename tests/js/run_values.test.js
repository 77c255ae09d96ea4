// What the server sends about runs is checked field by field.

import assert from "node:assert/strict";
import { test } from "node:test";

import { finite, isRunId, isTrainer, readEvent, readPage, readPhase, readRecord, samplePrompts, sampleRow, text } from "../../js/run_values.js";

const ID = "lora-0123456789ab";

test("finite numbers and texts", () => {
  assert.deepEqual([0, -2.5, NaN, Infinity, "1", null].map(finite), [0, -2.5, null, null, null, null]);
  assert.deepEqual([text("abcdef", 3), text(1.5), text(true), text({}), text(null)], ["abc", "1.5", "true", "", ""]);
  assert.equal(text("x".repeat(301)).length, 300);
});

test("ids of runs have a technique and twelve hexadecimal digits", () => {
  assert.ok(isRunId(ID));
  assert.ok(isRunId("textual-inversion-00000000000f"));
  for (const wrong of ["", "lora-0123456789a", "lora-0123456789AB", "../lora-0123456789ab", `${ID}\n`, 7, null]) {
    assert.equal(isRunId(wrong), false, String(wrong));
  }
});

test("an event without a run is none", () => {
  assert.equal(readEvent(null), null);
  assert.equal(readEvent("text"), null);
  assert.equal(readEvent({ step: 1 }), null);
});

test("the fields of an event are read in their types", () => {
  const event = readEvent({
    run_id: ID,
    node_id: "1:2",
    workflow: "w".repeat(100),
    step: 3,
    steps: "400",
    state: "kept",
    image: "step-3.png",
    text: "x".repeat(500),
    loss: 0.25,
    loss_ema: NaN,
    images_per_second: Infinity,
    eta_s: 12,
    memory_mb: "many",
    seconds: 61.5,
    unknown: 1,
  });
  assert.deepEqual(event, {
    id: ID,
    node: "1:2",
    workflow: "w".repeat(80),
    step: 3,
    steps: null,
    state: "kept",
    image: "step-3.png",
    text: "x".repeat(400),
    loss: 0.25,
    leak: null,
    comparison: null,
    loss_ema: null,
    lr: null,
    found_rate: null,
    images_per_second: null,
    eta_s: 12,
    memory_mb: null,
    seconds: 61.5,
  });
});

test("paths, states, steps and file names that cannot be right are left out", () => {
  const read = (fields) => readEvent({ run_id: ID, ...fields });
  for (const node of ["1;2", "1:", 3, "<b>"]) assert.equal(read({ node_id: node }).node, "");
  for (const step of [-1, 1.5, 1e9 + 1, null]) assert.equal(read({ step }).step, null);
  assert.equal(read({ step: 1e9 }).step, 1e9);
  assert.equal(read({ state: "exploded" }).state, null);
  for (const image of ["../a.png", "a/b.png", "a..png", "a.svg", ".png", 1]) assert.equal(read({ image }).image, null, String(image));
});

test("a phase has a node and a known name, and its position is counted from 1", () => {
  assert.deepEqual(readPhase({ node_id: "1:2", workflow: "w", phase: "pictures", done: 0, total: 12 }), {
    node: "1:2",
    phase: { kind: "pictures", position: 1, total: 12, workflow: "w" },
  });
  assert.deepEqual(readPhase({ node_id: "3", phase: "sample" }).phase, { kind: "sample", position: 0, total: 0, workflow: "" });
  assert.deepEqual(readPhase({ node_id: "3", phase: "scoring", done: 4, total: 12 }).phase, {
    kind: "scoring",
    position: 5,
    total: 12,
    workflow: "",
  });
  assert.deepEqual(readPhase({ node_id: "3", phase: "captions", done: 99, total: 5 }).phase.position, 5);
  for (const wrong of [null, "text", {}, { phase: "sample" }, { node_id: "3", phase: "<b>" }, { node_id: "a/b", phase: "sample" }]) {
    assert.equal(readPhase(wrong), null);
  }
  assert.deepEqual(["BespokeTrainLora", "KSampler", "toString", null].map(isTrainer), [true, false, false, false]);
});

test("a record is read with gaps, limits and defaults", () => {
  const record = readRecord({
    id: ID,
    technique: "lora",
    seconds: 65,
    state: "finished",
    node: "4",
    settings: { steps: 3, rank: 8, nested: {}, note: "y".repeat(3000) },
    losses: [1, "x", null, 2],
    best: [2, 0.5],
    held_out: [[2, 0.5], [3, NaN], "no", [1], [-1, 1]],
    // sqrt(1 / 4), nothing moved, the captions alone did not, no number
    leak: [[1, 1, 4], [2, 0, 0], [3, 1, 0], [4, null, 1], "no", [5]],
    samples: [[2, "a.png"], [3, "../b.png"]],
  });
  assert.deepEqual(record.leak, [[1, 0.5], [2, 0]]);
  assert.deepEqual(record.losses, [1, NaN, NaN, 2]);
  assert.equal(record.steps_done, 4);
  assert.deepEqual(record.best, [2, 0.5]);
  assert.deepEqual(record.held_out, [[2, 0.5]]);
  assert.deepEqual(record.samples, [[2, "a.png"]]);
  assert.deepEqual(Object.keys(record.settings), ["steps", "rank", "note"]);
  assert.equal(record.settings.note.length, 2000);
  assert.deepEqual([record.seconds, record.images, record.trigger], [65, 0, ""]);
  assert.equal(readRecord({ id: "no id" }), null);
  const summary = readRecord({ id: ID, state: "?", steps_done: 7 });
  assert.deepEqual(summary.leak, []);
  assert.deepEqual([summary.state, summary.losses, summary.steps_done, summary.best], ["failed", null, 7, null]);
});

test("a page of the list", () => {
  assert.deepEqual(readPage({ unchanged: true, runs: [] }), { unchanged: true });
  assert.deepEqual(readPage(null), { runs: [], total: 0, page: 0, pages: 0, stamp: "", unread: [] });
  const page = readPage({ runs: [{ id: ID }, { id: "no id" }, null], total: 2, page: 0, pages: 1, stamp: "s" });
  assert.deepEqual([page.runs.map(({ id }) => id), page.total, page.pages, page.stamp], [[ID], 2, 1, "s"]);
  assert.deepEqual(readPage({ unread: [ID, "<b>", 7] }).unread, [ID]);
  const running = (live) => readPage({ runs: [{ id: ID, state: "running" }], live }).runs[0].state;
  assert.deepEqual([running([ID]), running([]), running(null)], ["running", "cut off", "cut off"]);
});

test("comparisons of held-out scores are read with their margin of two standard errors", () => {
  const event = readEvent({ run_id: ID, step: 40, comparison: [40, 20, 0.25, 0.05, 20] });
  assert.deepEqual(event?.comparison, { step: 40, lowest: 20, difference: 0.25, margin: 0.1 });
  for (const wrong of [null, 3, [40, 20, null, 0.05], [40, 20, 0.25, -1], ["x", 20, 0.25, 0.05], [40]]) {
    assert.equal(readEvent({ run_id: ID, comparison: wrong })?.comparison, null);
  }
  const record = readRecord({ id: ID, comparisons: [[20, 0, -0.5, 0.05, 20], "row", [40, 20, 0.25, null, 20]] });
  assert.deepEqual(record?.comparisons, [{ step: 20, lowest: 0, difference: -0.5, margin: 0.1 }]);
  assert.deepEqual(readRecord({ id: ID })?.comparisons, []);
});

test("the row of a sample is that of its prompt, and prompts are read without their options", () => {
  assert.deepEqual(["000040.png", "000040_02.png", "000040_16.png", "x_00.png"].map(sampleRow), [0, 1, 15, 0]);
  assert.deepEqual(samplePrompts("a cat --n dog --w 512\n\n  a -- dash \n--d 5"), ["a cat", "a -- dash", ""]);
  assert.deepEqual([samplePrompts(""), samplePrompts(undefined)], [[], []]);
});
