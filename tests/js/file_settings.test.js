// Headers of dropped files, and which widgets take what was read.

import assert from "node:assert/strict";
import { test } from "node:test";

import { changesOf, headerLength, MOST_HEADER, MOST_SENT, readAnswer, readHeader } from "../../js/file_settings.js";

/** The first 8 bytes of a file with a header of this length. */
function start(length) {
  const view = new DataView(new ArrayBuffer(8));
  view.setBigUint64(0, BigInt(length), true);
  return view.buffer;
}

test("the length of a header is little-endian, and none is too long or empty", () => {
  assert.equal(headerLength(start(258)), 258);
  assert.equal(headerLength(Uint8Array.of(2, 1, 0, 0, 0, 0, 0, 0).buffer), 258);
  for (const wrong of [0, MOST_HEADER + 1, 2n ** 64n - 1n]) assert.equal(headerLength(start(wrong)), null);
  assert.equal(headerLength(new ArrayBuffer(7)), null);
});

test("a header gives its texts and shapes, without what no settings are in", () => {
  const header = {
    __metadata__: { ss_network_dim: "8", ss_tag_frequency: "x".repeat(2e6), workflow: "{}", odd: 3 },
    "a.lora_down.weight": { dtype: "F16", shape: [8, 320], data_offsets: [0, 1] },
    b: { dtype: "F16" },
    c: 3,
  };
  assert.deepEqual(readHeader(JSON.stringify(header)), { metadata: { ss_network_dim: "8" }, shapes: { "a.lora_down.weight": [8, 320] } });
  assert.deepEqual(readHeader("{}"), { metadata: {}, shapes: {} });
  for (const wrong of ["", "[]", "3", "null", "{"]) assert.equal(readHeader(wrong), null);
});

test("a header that is too long to be sent loses its shapes", () => {
  const names = Array.from({ length: 20_000 }, (_, number) => [`layer.${number}`.padEnd(80, "x"), { shape: [8, 320] }]);
  const found = readHeader(JSON.stringify({ __metadata__: { ss_network_dim: "8" }, ...Object.fromEntries(names) }));
  assert.deepEqual(found, { metadata: { ss_network_dim: "8" }, shapes: {} });
  assert.ok(JSON.stringify(found).length < MOST_SENT);
});

test("an answer has every field in its type", () => {
  assert.deepEqual(readAnswer(null), { program: "", values: {}, notes: [] });
  assert.deepEqual(readAnswer({ program: 3, values: [1], notes: ["a", 3] }), { program: "", values: {}, notes: ["a"] });
});

test("only known widgets take values, of their type and of their list", () => {
  const widgets = [
    { name: "rank", kind: "number", choices: null, value: 8 },
    { name: "steps", kind: "number", choices: null, value: 400 },
    { name: "optimizer", kind: "string", choices: ["AdamW", "SGD"], value: "AdamW" },
    { name: "rslora", kind: "boolean", choices: null, value: false },
    { name: "seed", kind: "number", choices: null, value: 0 },
    { name: "panel", kind: null, choices: null, value: "" },
  ];
  const values = { seed: 0, rank: 16, steps: 100, optimizer: "SGD", rslora: true, panel: "x", other: 1 };
  assert.deepEqual(changesOf(values, widgets, (name) => name === "steps"), {
    changes: [["rank", 16], ["optimizer", "SGD"], ["rslora", true]],
    same: ["seed"],
    wired: ["steps"],
  });
  const wrong = { rank: "16", steps: Infinity, optimizer: "Lion", rslora: 1, seed: null };
  assert.deepEqual(changesOf(wrong, widgets, () => false).changes, []);
  assert.deepEqual(changesOf(Object.create({ rank: 3 }), widgets, () => false).changes, []);
});
