// Texts by language, and numbers as text.

import assert from "node:assert/strict";
import { test } from "node:test";

import { digits, loss, memory, percent, rate, setTexts, t, time } from "../../js/words.js";

const TEXTS = {
  en: { bespoke: { steps: "{steps} steps", only: "English" } },
  fr: { bespoke: { steps: "{steps} pas" } },
  "zh-TW": { bespoke: { steps: "{steps} 步" } },
  de: {},
};

test("a text is in the user's language, else in that without its region, else in English, else the key", () => {
  let language = "fr";
  setTexts(TEXTS, () => language);
  assert.equal(t("steps", { steps: 3 }), "3 pas");
  assert.equal(t("only"), "English");
  assert.equal(t("unknown.key"), "unknown.key");
  language = "fr-CA"; // the language is read for each text
  assert.equal(t("steps", { steps: 3 }), "3 pas");
  language = "zh-TW";
  assert.equal(t("steps", { steps: 3 }), "3 步");
  language = "de";
  assert.equal(t("steps", { steps: 3 }), "3 steps");
  language = undefined;
  assert.equal(t("steps", { steps: 3 }), "3 steps");
});

test("a name without a value stays, and values are not filled in twice", () => {
  setTexts({ en: { bespoke: { two: "{a} and {b}" } } }, () => "en");
  assert.equal(t("two", { a: 1 }), "1 and {b}");
  assert.equal(t("two", { a: "{b}", b: 2 }), "{b} and 2");
});

test("numbers in three digits", () => {
  assert.deepEqual([0.012345, 1.2345, 12.3, 1234.5, 0, -0.5].map(digits), ["0.0123", "1.23", "12.3", "1230", "0", "-0.5"]);
});

test("losses", () => {
  assert.deepEqual([0, 0.12345, 0.0001, 99999].map(loss), ["0", "0.123", "0.0001", "100000"]);
  assert.deepEqual([0.00001234, 123456, -123456].map(loss), ["1.23e-5", "1.23e+5", "-1.23e+5"]);
  assert.deepEqual([NaN, Infinity].map(loss), ["–", "–"]);
});

test("times", () => {
  assert.deepEqual([0, 42, 59.6, 725, 3725, -3].map(time), ["0:00", "0:42", "1:00", "12:05", "1:02:05", "0:00"]);
});

test("memory, rates and percentages", () => {
  assert.deepEqual([812.4, 999, 1000, 2048].map(memory), ["812 MB", "999 MB", "1.0 GB", "2.0 GB"]);
  assert.deepEqual([0.0123, 1.26, 99.4, 100.4].map(rate), ["0.012", "1.3", "99", "100"]);
  assert.deepEqual([0, 0.004, 0.5, 0.725, 0.995, 1].map(percent), ["0 %", "<1 %", "50 %", "73 %", ">99 %", "100 %"]);
});
