// What runs are called: the words are those of the English file.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { before, test } from "node:test";

import { fileNames, nameOf, namesOf, savedFile, stepsText } from "../../js/run_names.js";
import { readRecord } from "../../js/run_values.js";
import { setTexts } from "../../js/words.js";

before(() => {
  const en = JSON.parse(readFileSync(new URL("../../locales/en/main.json", import.meta.url), "utf-8"));
  setTexts({ en }, () => "en");
});

const run = (last, fields) => readRecord({ id: `lora-00000000000${last}`, technique: "lora", base: "house.safetensors", settings: {}, ...fields });

test("a run is called by its label, else its word or trigger, else its base", () => {
  assert.equal(nameOf(run(1, { label: "mine", trigger: "cat" })), "mine");
  assert.equal(nameOf(run(1, { trigger: "cat" })), "LoRA: cat");
  assert.equal(nameOf(run(1, { settings: { name: "my-word" }, trigger: "cat" })), "LoRA: my-word");
  assert.equal(nameOf(run(1, {})), "LoRA: house");
});

test("equal names are numbered from the oldest, and others are not", () => {
  const names = namesOf([run(3, { started: 30 }), run(1, { started: 10 }), run(2, { started: 20, trigger: "cat" })]);
  assert.deepEqual([...names.values()].sort(), ["LoRA: cat", "LoRA: house · 1", "LoRA: house · 2"]);
  assert.equal(names.get("lora-000000000001"), "LoRA: house · 1");
});

test("the file at the end of a run comes after those on the way, with numbers in their order", () => {
  const files = ["bespoke/x_2.safetensors", "bespoke/runs/z-step10.safetensors", "bespoke/runs/z-step9.safetensors", 7];
  assert.deepEqual(fileNames(files), ["bespoke/runs/z-step9.safetensors", "bespoke/runs/z-step10.safetensors", "bespoke/x_2.safetensors"]);
  assert.equal(savedFile(fileNames(files)), "bespoke/x_2.safetensors");
  assert.equal(savedFile(fileNames(null)), "");
});

test("what was trained of what was asked for", () => {
  assert.equal(stepsText(20, 400), "20 of 400");
  assert.equal(stepsText(400, 400), "400");
  assert.equal(stepsText(400, 20), "400");
  assert.equal(stepsText(1200, "many"), "1,200");
});
