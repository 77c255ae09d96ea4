// @ts-check
// What runs are called in lists. Pure but for the words: no side effects.

import { t } from "./words.js";

/** @typedef {import("./run_values.js").RunRecord} RunRecord */

/**
 * What a run is called: the name that the user gave it, else its technique with the word or the trigger that it learned, or
 * the base model.
 * @param {RunRecord} run
 */
export function nameOf(run) {
  if (run.label) return run.label;
  const kind = t(`technique.${run.technique}`);
  const what = String(run.settings.name || run.trigger || run.base).replace(/\.(safetensors|ckpt)$/, "");
  return what ? `${kind}: ${what}` : kind;
}

/**
 * The names of runs. Where several would have the same, each has a number, the oldest 1.
 * @param {RunRecord[]} runs
 * @returns {Map<string, string>} by id
 */
export function namesOf(runs) {
  /** @type {Map<string, RunRecord[]>} */
  const byName = new Map();
  for (const run of runs) {
    const name = nameOf(run);
    byName.set(name, [...(byName.get(name) ?? []), run]);
  }
  /** @type {Map<string, string>} */
  const names = new Map();
  for (const [name, same] of byName) {
    const oldestFirst = [...same].sort((a, b) => a.started - b.started || a.id.localeCompare(b.id, "en"));
    oldestFirst.forEach((run, i) => names.set(run.id, same.length > 1 ? `${name} · ${i + 1}` : name));
  }
  return names;
}

/**
 * The file of a run that a user loads: the last one that was saved at its end, else the last of those saved on the way.
 * @param {string[]} files in the order of `fileNames`
 */
export const savedFile = (files) => files[files.length - 1] ?? "";

/**
 * The file names in a list of the server: those saved during the run first, then by name, with numbers in their order.
 * @param {unknown} list
 */
export function fileNames(list) {
  const names = Array.isArray(list) ? list : [];
  return names.filter((name) => typeof name === "string").sort(bySaving);
}

/**
 * @param {string} a
 * @param {string} b
 */
function bySaving(a, b) {
  const isFinal = (/** @type {string} */ name) => !(name.startsWith("bespoke/runs/") || name.startsWith("bespoke\\runs\\"));
  return Number(isFinal(a)) - Number(isFinal(b)) || a.localeCompare(b, "en", { numeric: true });
}

/**
 * How many steps were trained: "20", or "20 of 400" where more were asked for.
 * @param {number} done
 * @param {unknown} asked
 */
export function stepsText(done, asked) {
  const trained = done.toLocaleString("en");
  const all = typeof asked === "number" && asked > done ? asked : 0;
  return all ? t("steps.done", { steps: trained, all: all.toLocaleString("en") }) : trained;
}
