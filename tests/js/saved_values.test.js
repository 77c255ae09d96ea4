// Saved values: which lists are right, moved or lost, and what is dropped from blueprints.

import assert from "node:assert/strict";
import { test } from "node:test";

import { dropDefaultsOfBlueprints, judge } from "../../js/saved_values.js";

const WIDGETS = [
  { name: "mode", kind: "string", choices: ["a", "b"] },
  { name: "rank", kind: "number", choices: null },
  { name: "keep", kind: "boolean", choices: null },
  { name: "scheduler", kind: "string", choices: ["normal"] },
];
const RIGHT = ["a", 8, true, "normal"];
const NAMED = { mode: "a", rank: 8, keep: true, scheduler: "normal" };
const MOVED = [8, true, "normal", null]; // without its first value, the last place empty

test("values that fit the widgets are right", () => {
  assert.equal(judge(WIDGETS, RIGHT, NAMED), "right");
  assert.equal(judge(WIDGETS, RIGHT, undefined), "right");
  assert.equal(judge(WIDGETS, [], NAMED), "right");
  assert.equal(judge(WIDGETS, ["a", 8], undefined), "right"); // a shorter list of an older version
});

test("an entry that is missing from an open list is right", () => {
  assert.equal(judge(WIDGETS, ["a", 8, true, "of another installation"], undefined), "right");
});

test("moved values are restored by name", () => {
  assert.equal(judge(WIDGETS, MOVED, NAMED), "moved");
});

test("moved values without names are lost, and so are names with wrong types", () => {
  assert.equal(judge(WIDGETS, MOVED, undefined), "lost");
  assert.equal(judge(WIDGETS, MOVED, { mode: 8, rank: true, keep: "normal", scheduler: null }), "lost");
  assert.equal(judge(WIDGETS, MOVED, "no object"), "lost");
});

test("one value that does not fit is no sign of a move", () => {
  assert.equal(judge(WIDGETS, ["c", 8, true, "normal"], NAMED), "right");
  assert.equal(judge(WIDGETS, [null, 8, true, "normal"], undefined), "right");
});

test("one misfit is a sign where the list equals the names without one value", () => {
  // Without the folder the list is ["b", null]: "b" may be a folder, null is no mode. That is one misfit.
  const open = [{ name: "folder", kind: "string", choices: ["x"] }, { name: "mode", kind: "string", choices: ["a", "b"] }];
  assert.equal(judge(open, ["b", null], { folder: "x", mode: "b" }), "moved");
  assert.equal(judge(open, ["y", null], { folder: "x", mode: "b" }), "right"); // "y" is not the mode
});

test("a widget that a later version put behind the others is no part of what was saved", () => {
  const open = [{ name: "folder", kind: "string", choices: ["x"] }, { name: "mode", kind: "string", choices: ["a", "b"] }];
  const later = [...open, { name: "partial", kind: "boolean", choices: null }];
  assert.equal(judge(later, ["b", null], { folder: "x", mode: "b" }), "moved");
  assert.equal(judge(later, ["x", "b"], { folder: "x", mode: "b" }), "right");
  assert.equal(judge(later, ["y", null], { folder: "x", mode: "b" }), "right");
});

test("an empty list has no value", () => {
  const empty = [{ name: "lora_name", kind: "string", choices: [] }];
  assert.equal(judge(empty, [null], undefined), "right");
});

test("a widget of unknown type takes every value", () => {
  assert.equal(judge([{ name: "x", kind: null, choices: null }], [{ any: 1 }], undefined), "right");
});

test("entries with the id -1 are dropped from this pack's blueprints only", () => {
  const host = (type) => ({
    type,
    properties: {
      proxyWidgets: [["-1", "rank"], ["5", "steps"]],
      proxyWidgetErrorQuarantine: [{ originalEntry: ["-1", "rank"] }, { originalEntry: ["5", "steps"] }],
    },
  });
  const workflow = {
    nodes: [host("ours"), host("theirs"), { type: "ours" }, null],
    definitions: { subgraphs: [{ id: "ours", nodes: [{ type: "BespokeTrainLora" }] }, { id: "theirs", nodes: [{ type: "KSampler" }] }, null] },
  };
  dropDefaultsOfBlueprints(workflow);
  assert.deepEqual(workflow.nodes[0].properties, {
    proxyWidgets: [["5", "steps"]],
    proxyWidgetErrorQuarantine: [{ originalEntry: ["5", "steps"] }],
  });
  assert.deepEqual(workflow.nodes[1], host("theirs"));
  for (const odd of [null, {}, { nodes: [{}] }, { definitions: { subgraphs: 3 } }]) assert.doesNotThrow(() => dropDefaultsOfBlueprints(odd));
});
