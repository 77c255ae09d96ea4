// @ts-check
// The details of a run in the sidebar's list: its curve, its samples, its settings, and what can be done with it. No side
// effects.

import { openWorkflow } from "./comfy.js";
import { drawCurves } from "./curve_plot.js";
import { el, messageOf, setText } from "./dom.js";
import { addLora, addWord } from "./insert_nodes.js";
import { samplesStrip } from "./samples_strip.js";
import { t, time } from "./words.js";

/** @typedef {import("./runs.js").Run} Run */
/** @typedef {import("./run_values.js").RunRecord} RunRecord */

const SHOWN = /** @type {const} */ (["base", "images", "trigger", "resolution", "prediction", "architecture", "trained"]);

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
 * The details of a run.
 * @param {Run} run
 * @param {import("./runs.js").Runs} runs
 */
export function detail(run, runs) {
  const canvas = el("canvas", { role: "img", "aria-label": t("training") });
  const samples = samplesStrip(runs.sampleUrl);
  const buttons = el("div", { class: "bespoke-buttons" });
  const settings = el("dl", { class: "bespoke-settings" });
  const error = el("p", { class: "bespoke-note" });
  const box = el("section", { class: "bespoke-detail" }, canvas, samples.element, buttons, error, el("h3", {}, t("settings")), settings);
  let hasFiles = false;

  /**
   * @param {string} key of the button's text; its tooltip is at key.tip
   * @param {() => unknown} action
   */
  const button = (key, action) =>
    el("button", { type: "button", class: "bespoke-button", title: t(`${key}.tip`), onclick: () => attempt(action) }, t(key));

  /** @param {() => unknown} action */
  async function attempt(action) {
    try {
      setText(error, "");
      await action();
    } catch (problem) {
      setText(error, messageOf(problem));
    }
  }

  const openGraph = button("open.graph", async () => openWorkflow(await runs.workflow(run.id), run.record?.technique ?? ""));
  buttons.append(openGraph);

  /** @param {Run} now */
  function draw(now) {
    setText(error, now.error || "");
    if (!canvas.clientWidth) return;
    drawCurves(canvas, [now.curve], { isLive: now.live });
    samples.show(run.id, now.samples);
  }

  if (run.record) for (const [name, value] of rows(run.record)) settings.append(el("dt", {}, name), el("dd", {}, value));

  return {
    box,
    draw,
    /** Ask the server which files the run saved and offer to insert the newest of each kind into the graph. Asks once. */
    async showFiles() {
      if (hasFiles) return;
      const found = await runs.files(run.id);
      const [loras, embeddings] = [fileNames(found.loras), fileNames(found.embeddings)];
      buttons.replaceChildren(openGraph);
      if (loras.length) buttons.append(button("add.lora", () => addLora(loras[loras.length - 1])));
      if (embeddings.length) buttons.append(button("add.word", () => addWord(embeddings[embeddings.length - 1])));
      const all = [...loras, ...embeddings];
      if (all.length) settings.append(el("dt", {}, t("files")), el("dd", {}, all.join("\n")));
      hasFiles = true;
    },
  };
}

/**
 * The file names in a list of the server, the newest last.
 * @param {unknown} list
 */
function fileNames(list) {
  const names = Array.isArray(list) ? list : [];
  return names.filter((name) => typeof name === "string").sort(bySaving);
}

/**
 * Order file names: those saved during the run first, then by name, with numbers in their order.
 * @param {string} a
 * @param {string} b
 */
function bySaving(a, b) {
  const isFinal = (/** @type {string} */ name) => !(name.startsWith("bespoke/runs/") || name.startsWith("bespoke\\runs\\"));
  return Number(isFinal(a)) - Number(isFinal(b)) || a.localeCompare(b, "en", { numeric: true });
}

/**
 * The names and values that are shown of a record.
 * @param {RunRecord} record
 */
function rows(record) {
  /** @type {[string, string][]} */
  const out = [];
  for (const name of SHOWN) {
    const value = record[name];
    if (value) out.push([t(name), typeof value === "number" ? value.toLocaleString("en") : value]);
  }
  if (record.seconds) out.push([t("duration"), time(record.seconds)]);
  for (const [name, value] of Object.entries(record.settings)) if (value !== "") out.push([name, String(value)]);
  return out;
}
