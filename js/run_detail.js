// @ts-check
// The details of a run in the sidebar's list: its curve, its samples, its settings, and what can be done with it. No side
// effects.

import { copyText, defaultsOf, openWorkflow } from "./comfy.js";
import { curveLegend } from "./curve_legend.js";
import { drawCurves } from "./curve_plot.js";
import { askText, confirmed } from "./dialogs.js";
import { download, el, messageOf, setText } from "./dom.js";
import { evidenceCard } from "./evidence_card.js";
import { addLora, addSweep, addWord } from "./insert_nodes.js";
import { fileNames, savedFile, stepsText } from "./run_names.js";
import { MOST_LABEL, samplePrompts, TRAINERS } from "./run_values.js";
import { samplesStrip } from "./samples_strip.js";
import { t, time } from "./words.js";

/** @typedef {import("./runs.js").Run} Run */
/** @typedef {import("./run_values.js").RunRecord} RunRecord */
/** @typedef {[name: string, value: string]} Row */

const SHOWN = /** @type {const} */ (["base", "images", "resolution", "prediction", "architecture", "trained"]);

/**
 * The key of a run's state. The summary is used where the run is not loaded.
 * @param {Run | null} run
 * @param {RunRecord} summary
 */
export function stateOf(run, summary) {
  if (run?.lost) return "lost";
  return run?.state ?? summary.state;
}

/**
 * The details of a run. They follow it while it goes on.
 * @param {Run} run
 * @param {import("./runs.js").Runs} runs
 * @param {() => string} title what the run is called in the list
 */
export function detail(run, runs, title) {
  const canvas = el("canvas", { role: "img", "aria-label": t("training") });
  const legend = curveLegend();
  const samples = samplesStrip(runs);
  const card = evidenceCard();
  const buttons = el("div", { class: "bespoke-buttons" });
  const word = el("button", { type: "button", class: "bespoke-trigger", onclick: () => attempt(copyTrigger) });
  const facts = el("dl", { class: "bespoke-settings" });
  const changed = el("dl", { class: "bespoke-settings" });
  const same = el("dl", { class: "bespoke-settings" });
  const folded = el("details", { class: "bespoke-defaults" }, el("summary", {}, t("settings.default")), same);
  const error = el("p", { class: "bespoke-note bespoke-error", role: "alert" });
  const complaint = el("p", { class: "bespoke-note", role: "alert" });
  const heading = el("h3", {}, t("settings"));
  const box = el("section", { class: "bespoke-detail" }, canvas, legend.element, samples.element, card.element, word, error, buttons, complaint, facts, heading, changed, folded);
  /** @type {string[]} that the run saved */
  let files = [];
  /** @type {Record<string, unknown>} of the trainer's widgets, by name */
  let defaults = {};
  let current = run;
  let written = ""; // the rows that are shown

  /**
   * @param {string} key of the button's text; its tooltip is at key.tip
   * @param {() => unknown} action
   */
  const button = (key, action) =>
    el("button", { type: "button", class: "bespoke-button", title: t(`${key}.tip`), onclick: () => attempt(action) }, t(key));

  /** @param {() => unknown} action */
  async function attempt(action) {
    try {
      setText(complaint, "");
      await action();
    } catch (problem) {
      setText(complaint, messageOf(problem));
    }
    complaint.hidden = !complaint.textContent;
  }

  async function copyTrigger() {
    await copyText(current.record?.trigger ?? "");
    setText(complaint, t("trigger.copied", { word: current.record?.trigger }));
  }

  async function saveCurve() {
    const { name, csv } = await runs.curve(run.id);
    download(String(name), String(csv), "text/csv");
  }

  async function rename() {
    const before = current.record?.label ?? "";
    const label = await askText(t("rename.ask"), before, t("rename"), MOST_LABEL);
    if (label !== null && label.trim() !== before) await runs.rename(current, label.trim());
  }

  async function remove() {
    if (await confirmed(t("remove.ask", { name: title() }), t("remove"))) await runs.remove(current);
  }

  const openGraph = button("open.graph", async () => openWorkflow(await runs.workflow(run.id), current.record?.technique ?? ""));
  const addLoraButton = button("add.lora", () => addLora(savedFile(loras)));
  const addWordButton = button("add.word", () => addWord(savedFile(embeddings)));
  const addSweepButton = button("add.sweep", () => addSweep(loras, sweepPrompt(current.record), current.record?.resolution ?? ""));
  const removeButton = button("remove", remove);
  buttons.append(addLoraButton, addWordButton, addSweepButton, openGraph, button("curve.save", saveCurve), button("rename", rename), removeButton);
  for (const main of [addLoraButton, addWordButton]) main.classList.add("bespoke-main");
  addLoraButton.hidden = addWordButton.hidden = addSweepButton.hidden = complaint.hidden = true;
  /** @type {string[]} */
  let loras = [];
  /** @type {string[]} */
  let embeddings = [];

  /** @param {Run} now */
  function draw(now) {
    current = now;
    setText(error, now.error || "");
    error.hidden = !now.error;
    removeButton.disabled = now.live;
    legend.show(now, true);
    card.show(now.live || !now.record ? "" : runs.cardUrl(run.id, now.step));
    write(now);
    if (!canvas.clientWidth) return;
    drawCurves(canvas, [now.curve], { isLive: now.live });
    samples.show(run.id, now.samples, samplePrompts(now.record?.settings.sample_prompt));
  }

  /** @param {Run} now */
  function write(now) {
    const { record } = now;
    if (!record) return;
    const { trigger } = record;
    word.hidden = !trigger;
    setText(word, trigger);
    word.title = t("trigger.copy", { word: trigger });
    word.setAttribute("aria-label", word.title);
    const parts = [factsOf(now, record, files), ...settingsOf(record, defaults)];
    const text = JSON.stringify(parts);
    if (text === written) return; // rows that are written again cost a layout at each step
    written = text;
    [facts, changed, same].forEach((list, i) => list.replaceChildren(...parts[i].map(cell)));
    heading.hidden = !parts[1].length;
    folded.hidden = !parts[2].length;
  }

  return {
    box,
    draw,
    /** Ask the server which files the run saved, and offer the newest of each kind for the graph. */
    async showFiles() {
      const found = await runs.files(run.id);
      [loras, embeddings] = [fileNames(found.loras), fileNames(found.embeddings)];
      files = [...loras, ...embeddings];
      addLoraButton.hidden = addSweepButton.hidden = !loras.length;
      addWordButton.hidden = !embeddings.length;
      write(current);
    },
    /** Ask the server for the trainer's defaults, so that what differs from them comes first. */
    async showDefaults() {
      const kind = Object.keys(TRAINERS).find((name) => TRAINERS[name] === current.record?.technique);
      if (!kind) return;
      defaults = await defaultsOf(kind);
      write(current);
    },
  };
}

/**
 * The prompt for a sweep of a run's files: its trigger word, else what its samples show.
 * @param {RunRecord | null} record
 */
function sweepPrompt(record) {
  return record?.trigger || samplePrompts(record?.settings.sample_prompt).filter(Boolean).join("\n");
}

const WIDE = 20; // characters, from which a value has a row of its own

/** @param {Row} row */
function cell([name, value]) {
  return el("div", { class: value.length > WIDE && "bespoke-wide" }, el("dt", {}, name), el("dd", { title: value }, value));
}

/**
 * What is known of the run besides its settings.
 * @param {Run} run
 * @param {RunRecord} record
 * @param {string[]} files
 */
function factsOf(run, record, files) {
  /** @type {Row[]} */
  const out = [[t("steps.name"), stepsText(run.step, Math.max(run.live ? run.steps : 0, Number(record.settings.steps) || 0))]];
  if (run.seconds) out.push([t("duration"), time(run.seconds)]);
  for (const name of SHOWN) {
    const value = record[name];
    if (value) out.push([t(name), typeof value === "number" ? value.toLocaleString("en") : value]);
  }
  if (files.length) out.push([t("files"), files.join("\n")]);
  return out;
}

/**
 * The settings that differ from the trainer's defaults, and those that do not. The steps are among the facts.
 * @param {RunRecord} record
 * @param {Record<string, unknown>} defaults
 * @returns {[changed: Row[], same: Row[]]}
 */
function settingsOf({ settings }, defaults) {
  /** @type {[Row[], Row[]]} */
  const out = [[], []];
  const isKnown = Object.keys(defaults).length > 0;
  for (const [name, value] of Object.entries(settings)) {
    if (name === "steps") continue;
    // What has no widget is the same for all runs of a version, such as the ratio of LoRA+.
    const isDefault = isKnown && (!(name in defaults) || defaults[name] === value);
    out[isDefault ? 1 : 0].push([name, value === "" ? "–" : String(value)]);
  }
  return out;
}

