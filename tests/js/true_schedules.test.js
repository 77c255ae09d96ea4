// @ts-check
// Which wiring a schedule that a node sent belongs to. Each expected value follows from the order of the events alone.

import assert from "node:assert/strict";
import { test } from "node:test";

import { createTrueSchedules } from "../../js/true_schedules.js";

const A = { strength: 0.5 };
const B = { strength: 0.25 };

test("a schedule is kept for the wiring that it was queued with", () => {
  const all = createTrueSchedules();
  all.queue("node", "wiring 1", A, 0);
  assert.ok(all.ran("node", { ...A, steps: 9 }, "schedule 1"));
  assert.deepEqual(all.find("node", "wiring 1"), ["schedule 1"]);
  assert.deepEqual(all.find("node", "wiring 2"), []);
  assert.deepEqual(all.find("other", "wiring 1"), []);
});

test("two wirings in the queue are told apart by the values, else nothing is kept", () => {
  const all = createTrueSchedules();
  all.queue("node", "wiring 1", A, 0);
  all.queue("node", "wiring 2", B, 1);
  assert.ok(all.ran("node", A, "of A"));
  assert.ok(all.ran("node", B, "of B"));
  assert.deepEqual([all.find("node", "wiring 1"), all.find("node", "wiring 2")], [["of A"], ["of B"]]);
  all.queue("node", "wiring 2", B, 2);
  all.queue("node", "wiring 3", B, 3);
  assert.ok(!all.ran("node", B, "of which?"));
  assert.deepEqual([all.find("node", "wiring 2"), all.find("node", "wiring 3")], [["of B"], []]);
});

test("a prompt counts until it has run, or the server has had nothing to do since", () => {
  const all = createTrueSchedules();
  all.queue("node", "wiring 1", A, 0); // it fails
  all.remaining(0); // the status of an earlier prompt: the server has not counted this one yet
  all.queue("node", "wiring 2", A, 600);
  assert.ok(!all.ran("node", A, "of which?"));
  all.queue("node", "wiring 3", A, 5100);
  assert.ok(all.ran("node", A, "of 3"));
  all.queue("node", "wiring 4", A, 5200); // 3 has run
  assert.ok(all.ran("node", A, "of 4"));
  assert.deepEqual([all.find("node", "wiring 3"), all.find("node", "wiring 4")], [["of 3"], ["of 4"]]);
  all.remaining(1);
  all.queue("node", "wiring 5", A, 10_000);
  all.queue("node", "wiring 6", A, 99_000); // queued while the server was busy with 5
  assert.ok(!all.ran("node", A, "of which?"));
});

test("of two equal prompts one is left when one has run", () => {
  const all = createTrueSchedules();
  all.remaining(1);
  all.queue("node", "wiring 1", A, 0);
  all.queue("node", "wiring 1", A, 1);
  assert.ok(all.ran("node", A, "of 1"));
  all.queue("node", "wiring 2", A, 2);
  assert.ok(!all.ran("node", A, "of 1 or 2"));
});

test("a prompt that has the node twice has run when both have", () => {
  const all = createTrueSchedules();
  all.remaining(1);
  all.queue("node", "wiring 1", A, 0, 2);
  assert.ok(all.ran("node", A, "first"));
  all.queue("node", "wiring 2", A, 1, 2);
  assert.ok(!all.ran("node", A, "second of 1, or first of 2"));
});

test("a node that was never queued by this page keeps nothing", () => {
  assert.ok(!createTrueSchedules().ran("node", A, "of another page"));
});

test("two schedules of one wiring are both kept, the same one once", () => {
  const all = createTrueSchedules();
  all.queue("node", "wiring", A, 0, 3);
  for (const schedule of ["first", "second", "second"]) all.ran("node", A, schedule);
  assert.deepEqual(all.find("node", "wiring"), ["first", "second"]);
});

test("at most 12 wirings of a node are kept", () => {
  const all = createTrueSchedules();
  for (let i = 0; i < 13; i++) {
    all.queue("node", `wiring ${i}`, { strength: i }, i);
    assert.ok(all.ran("node", { strength: i }, i));
  }
  assert.ok(!all.ran("node", { strength: 12 }, "of another page")); // it has run
  assert.deepEqual([all.find("node", "wiring 0"), all.find("node", "wiring 1"), all.find("node", "wiring 12")], [[], [1], [12]]);
});
