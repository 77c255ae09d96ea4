// Tick marks and the noise axis of the strength plot.

import assert from "node:assert/strict";
import { test } from "node:test";

import { sigmaScale, ticks } from "../../js/scales.js";

const closeTo = (actual, expected) => assert.ok(Math.abs(actual - expected) < 1e-12, `${actual} is not ${expected}`);

test("ticks are multiples of 1, 2 or 5 times a power of ten", () => {
  assert.deepEqual(ticks(0, 3), [0, 1, 2, 3]); // 3 / 3 = 1: steps of 1
  assert.deepEqual(ticks(0.05, 0.5), [0.2, 0.4]); // 0.45 / 3 = 0.15: steps of 0.2
  assert.deepEqual(ticks(0, 10), [0, 5, 10]); // 10 / 3 = 3.3: steps of 5
  assert.deepEqual(ticks(0, 24), [0, 10, 20]); // 24 / 3 = 8: steps of 10
  assert.deepEqual(ticks(-1, 1), [-1, 0, 1]); // 2 / 3 = 0.67: steps of 1
});

test("at most four ticks, all inside the range", () => {
  for (const [low, high] of [[0.011, 0.019], [3, 3.0001], [-7, 12], [1e-6, 5e-6], [0, 999]]) {
    const marks = ticks(low, high);
    assert.ok(marks.length >= 1 && marks.length <= 4, String(marks));
    assert.ok(marks.every((mark) => mark >= low - 1e-9 && mark <= high + 1e-9), String(marks));
  }
});

test("flow models have a linear noise axis", () => {
  const height = sigmaScale([1, 0.5, 0]);
  assert.deepEqual([height(1), height(0.25), height(0)], [1, 0.25, 0]);
});

test("other models have a logarithmic noise axis from 0.08 to 1", () => {
  const height = sigmaScale([10, 1, 0.1, 0]);
  closeTo(height(10), 1);
  closeTo(height(0.1), 0.08);
  closeTo(height(1), 0.54); // halfway between 0.08 and 1
  assert.equal(height(0), 0);
  closeTo(sigmaScale([2])(2), 0.08); // a single level
});
