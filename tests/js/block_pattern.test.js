// The pattern of block strengths, as the server reads it.

import assert from "node:assert/strict";
import { test } from "node:test";

import { strengthOf, withStrength } from "../../js/block_pattern.js";

const row = (...names) => names.map((name) => [name]); // one layer for each name

test("an empty pattern is strength 1, and blocks that no term names are 0", () => {
  assert.equal(strengthOf("", row("down.1")), 1);
  assert.equal(strengthOf("mid", row("down.1")), 0);
  assert.equal(strengthOf("nonsense:x", row("down.1")), 1); // no term at all
});

test("a name means the block and the blocks inside it, and no other", () => {
  assert.equal(strengthOf("down.1:0.5", row("down.1")), 0.5);
  assert.equal(strengthOf("down.1:0.5", row("down.1.0")), 0.5);
  assert.equal(strengthOf("down.1:0.5", row("down.11")), 0);
  assert.equal(strengthOf("down+1", row("downn1")), 0); // a sign of expressions is a sign of the name
});

test("the last term that matches counts, in any case of letters", () => {
  assert.equal(strengthOf("*, UP.*:0.5\nup.2:-2", row("up.2")), -2);
  assert.equal(strengthOf("*; up.*:0.5", row("up.3")), 0.5);
  assert.equal(strengthOf("*; up.*:0.5", row("mid")), 1);
});

test("ranges include both ends", () => {
  assert.deepEqual([0, 1, 3, 4].map((i) => strengthOf("single.1-3:2", row(`single.${i}`))), [0, 2, 2, 0]);
});

test("a star is any text, also none, and a range after it is of the whole number", () => {
  assert.equal(strengthOf("*.1:2", row("down.1")), 2);
  assert.equal(strengthOf("d*n.*1:2", row("down.11")), 2);
  assert.equal(strengthOf("down.*1:2", row("down.12")), 0);
  assert.deepEqual([2, 12, 21].map((i) => strengthOf("*1-3:2", row(`up.${i}`))), [2, 0, 0]);
});

test("many stars are matched in linear time", () => {
  // An expression with as many `.*` would not come to an end.
  assert.equal(strengthOf(`${"*a".repeat(2000)}x`, row("a".repeat(3000))), 0);
  assert.equal(strengthOf(`${"*a".repeat(2000)}:2`, row("a".repeat(3000))), 2);
});

test("layers with different strengths have none in common", () => {
  assert.equal(strengthOf("up.1:0.5, up.2:0.5", row("up.1", "up.2")), 0.5);
  assert.equal(strengthOf("up.1:0.5, up.2:0.25", row("up.1", "up.2")), null);
});

test("a layer has every name of its block", () => {
  assert.equal(strengthOf("early:3", [["down.0", "early"]]), 3);
});

test("setting a strength keeps the other terms", () => {
  assert.equal(withStrength("", "mid", 0.5), "*, mid:0.5");
  assert.equal(withStrength("*, mid:0.5, up.*:2", "mid", 0.123456), "*, up.*:2, mid:0.123");
  assert.equal(withStrength("up.*:2", "mid", 1), "up.*:2, mid");
});

test("a pattern that sets nothing becomes empty", () => {
  assert.equal(withStrength("*, mid:0.5", "mid", 1), "");
  assert.equal(withStrength("mid:0.5", "mid", 1), "mid"); // without `*` the other blocks stay at 0
});

test("what is set is what is read", () => {
  for (const value of [0, 0.5, 1, -3.25]) {
    const pattern = withStrength("*, mid:2, up.1-2:0.25", "mid", value);
    assert.equal(strengthOf(pattern, row("mid")), value);
    assert.equal(strengthOf(pattern, row("up.2")), 0.25);
  }
});
