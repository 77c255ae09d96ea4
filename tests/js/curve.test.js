// The loss curve: bins, moving average, held-out scores, axis ranges. The numbers are worked out in the comments.

import assert from "node:assert/strict";
import { test } from "node:test";

import { BINS, Curve, curveOf } from "../../js/curve.js";

const closeTo = (actual, expected, tolerance = 1e-12) =>
  assert.ok(Math.abs(actual - expected) <= tolerance, `${actual} is not ${expected}`);

test("steps up to the number of bins have a bin each", () => {
  const curve = new Curve(10);
  curve.add(1, 0.5, 0.5);
  curve.add(3, 0.25, 0.375);
  assert.equal(curve.stride, 1);
  assert.equal(curve.last, 3);
  assert.deepEqual([...curve.low.subarray(0, 3)], [0.5, Infinity, 0.25]);
  assert.deepEqual([...curve.high.subarray(0, 3)], [0.5, -Infinity, 0.25]);
  assert.deepEqual([...curve.average.subarray(0, 3)], [0.5, NaN, 0.375]);
  assert.equal(curve.lastAverage, 0.375);
});

test("one step more than bins doubles their width", () => {
  const curve = new Curve(BINS + 1);
  for (let step = 1; step <= BINS + 1; step++) curve.add(step, step, step / 2);
  // 513 steps in bins of 2: [1, 2], [3, 4], ..., [511, 512], [513, 514].
  assert.equal(curve.stride, 2);
  assert.deepEqual([curve.low[0], curve.high[0], curve.average[0]], [1, 2, 1]);
  assert.deepEqual([curve.low[255], curve.high[255], curve.average[255]], [511, 512, 256]);
  assert.deepEqual([curve.low[256], curve.high[256], curve.average[256]], [513, 513, 256.5]);
  assert.equal(curve.low[257], Infinity);
  assert.equal(curve.lastAverage, 256.5);
});

test("a gap in the averages keeps the average before it", () => {
  const curve = new Curve();
  curve.add(1, 4, 4);
  curve.add(2, NaN, NaN);
  curve.add(BINS + 1, 8, 8);
  assert.deepEqual([curve.low[0], curve.high[0], curve.average[0]], [4, 4, 4]);
});

test("steps below 1 are ignored, and the number of steps grows with the last", () => {
  const curve = new Curve(2);
  curve.add(0, 1, 1);
  curve.add(NaN, 1, 1);
  assert.equal(curve.last, 0);
  assert.ok(Number.isNaN(curve.lastAverage));
  curve.add(5, 1, 1);
  assert.equal(curve.steps, 5);
});

test("held-out scores are ordered by step, replaced at the same step, and the lowest is the best", () => {
  const curve = new Curve();
  curve.addHeldOut(10, 0.5);
  curve.addHeldOut(30, 0.7);
  curve.addHeldOut(20, 0.4);
  curve.addHeldOut(30, 0.6);
  curve.addHeldOut(40, NaN);
  assert.deepEqual(curve.heldOut, [[10, 0.5], [20, 0.4], [30, 0.6]]);
  assert.deepEqual(curve.best, [20, 0.4]);
});

test("leaks are ordered by step and replaced at the same step, and a record without any has none", () => {
  const curve = new Curve();
  curve.addLeak(20, 0.5);
  curve.addLeak(10, 0.25);
  curve.addLeak(20, 0);
  curve.addLeak(30, NaN);
  assert.deepEqual(curve.leak, [[10, 0.25], [20, 0]]);
  assert.equal(curve.range(), null); // it has an axis of its own
  const record = { settings: {}, losses: [1], held_out: [] };
  assert.deepEqual(curveOf(record).leak, []);
  assert.deepEqual(curveOf({ ...record, leak: [[1, 0.75]] }).leak, [[1, 0.75]]);
});

test("the axis of a live run reaches a quarter beyond the last step", () => {
  const curve = new Curve(400);
  curve.add(100, 1, 1);
  assert.equal(curve.extent(false), 100);
  assert.equal(curve.extent(true), 125);
  const short = new Curve(400);
  short.add(4, 1, 1);
  assert.equal(short.extent(true), 20); // at least 20
  const ended = new Curve(110);
  ended.add(100, 1, 1);
  assert.equal(ended.extent(true), 110); // at most the steps that were asked for
  assert.equal(new Curve(1).extent(false), 2);
});

test("the range leaves out the highest tenth of the single losses", () => {
  const curve = new Curve(10);
  for (let step = 1; step <= 9; step++) curve.add(step, 1, 1);
  curve.add(10, 100, 2);
  // 20 single values (low and high of 10 bins): index floor(20 * 0.02) = 0 is 1, index ceil(20 * 0.9) - 1 = 17 is 1.
  assert.deepEqual(curve.range(), [1, 2]);
  assert.equal(new Curve().range(), null);
  const flat = new Curve();
  flat.add(1, 5, 5);
  assert.deepEqual(flat.range(), [4.5, 5.5]); // 5 - 5 / 10, 5 + 5 / 10
});

test("the average of a record has equal weights up to 50 losses, then a decay of 0.98", () => {
  const first = curveOf({ settings: { steps: 3 }, losses: [1, NaN, 2, 6], held_out: [[2, 0.5]] });
  closeTo(first.average[0], 1);
  closeTo(first.average[1], 1); // a gap keeps the average
  closeTo(first.average[2], 1.5); // (1 + 2) / 2
  closeTo(first.average[3], 3); // (1 + 2 + 6) / 3
  assert.equal(first.low[1], Infinity);
  assert.deepEqual(first.best, [2, 0.5]);
  const losses = [...Array(50).fill(0), 1, 1];
  const long = curveOf({ settings: {}, losses, held_out: [] });
  closeTo(long.average[50], 0.02); // 0.98 * 0 + 0.02 * 1
  closeTo(long.average[51], 0.0396); // 0.98 * 0.02 + 0.02
  assert.equal(curveOf({ settings: {}, losses: null, held_out: [] }).last, 0);
});

test("the tail of a newer curve is added after the last step", () => {
  const record = new Curve(4);
  record.add(1, 1, 1);
  record.add(2, 2, 1.5);
  const live = new Curve(4);
  live.add(2, 9, 9); // known from the record
  live.add(3, 3, 2);
  live.add(4, 4, 2.5);
  live.addHeldOut(4, 0.25);
  live.addLeak(4, 0.5);
  record.addTail(live);
  assert.deepEqual([...record.low.subarray(0, 4)], [1, 2, 3, 4]);
  assert.deepEqual([...record.average.subarray(0, 4)], [1, 1.5, 2, 2.5]);
  assert.deepEqual(record.heldOut, [[4, 0.25]]);
  assert.deepEqual(record.leak, [[4, 0.5]]);
  assert.equal(record.last, 4);
});

test("two scores above the lowest by more than noise are a turn, and the band lies around the lowest before each", () => {
  const curve = new Curve(400);
  [[0, 1], [20, 0.5], [40, 0.7], [60, 0.8]].forEach(([step, loss]) => curve.addHeldOut(step, loss));
  curve.addComparison({ step: 20, lowest: 0, difference: -0.5, margin: 0.1 });
  assert.equal(curve.turn, null);
  curve.addComparison({ step: 40, lowest: 20, difference: 0.2, margin: 0.1 });
  assert.equal(curve.turn, null);
  curve.addComparison({ step: 40, lowest: 0, difference: 9, margin: 0 }); // of a step that is known
  curve.addComparison({ step: 60, lowest: 20, difference: 0.3, margin: 0.25 });
  assert.equal(curve.turn, 20);
  assert.deepEqual(curve.band, [{ step: 20, low: 0.9, high: 1.1 }, { step: 40, low: 0.4, high: 0.6 }, { step: 60, low: 0.25, high: 0.75 }]);
  curve.addComparison({ step: 80, lowest: 20, difference: 0.3, margin: 0.3 }); // no more than noise
  assert.equal(curve.turn, null);
});

test("scores above the start have not turned: nothing was learned there", () => {
  const curve = new Curve(400);
  for (const step of [20, 40, 60]) curve.addComparison({ step, lowest: 0, difference: 1, margin: 0.1 });
  assert.equal(curve.turn, null);
});

test("ten scores without a new lowest are a turn, however large the noise is", () => {
  const curve = new Curve(400);
  for (let step = 40; step < 40 + 20 * 9; step += 20) curve.addComparison({ step, lowest: 20, difference: 0.1, margin: 9 });
  assert.equal(curve.turn, null);
  curve.addComparison({ step: 220, lowest: 20, difference: 0.1, margin: 9 });
  assert.equal(curve.turn, 20);
  const lower = new Curve(400);
  for (let step = 40; step < 240; step += 20) lower.addComparison({ step, lowest: 20, difference: step < 220 ? 0.1 : -0.1, margin: 9 });
  assert.equal(lower.turn, null); // the tenth is lower
});
