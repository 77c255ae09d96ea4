// @ts-check
// "Read settings" on the nodes that have a trainer's widgets: a LoRA of the list, or a file that is dropped on the node,
// says how it was trained, and the widgets take that. No side effects: index.js attaches it.

import { addPanel, fetchJson, isLinked, jsonPost, onFilesDropped, savedWidgets, setValues } from "./comfy.js";
import { askChoice, showMessage } from "./dialogs.js";
import { el, isFile, messageOf, readFile, stopEvents } from "./dom.js";
import { changesOf, headerLength, LENGTH_BYTES, readAnswer, readHeader } from "./file_settings.js";
import { t } from "./words.js";

/** @typedef {import("./comfy.js").Node} Node */
/** @typedef {import("./file_settings.js").FileSettings} FileSettings */

export const READ_NODES = new Set(["BespokeTrainLora", "BespokeExportLoraJob"]);
const ROUTE = "/bespoke/lora/settings";
const HEIGHT = 38; // px, of the button and the margins around it
const ENDING = /\.safetensors$/i;

/**
 * Add the button to a node, and take dropped LoRA files.
 * @param {Node} node
 */
export function attachReadSettings(node) {
  const button = el("button", { type: "button", class: "bespoke-button", title: t("read.tip"), onclick: () => reportErrors(choose(node)) }, t("read"));
  const box = el("section", { class: "bespoke-panel", "aria-label": t("read") }, el("div", { class: "bespoke-buttons" }, button));
  stopEvents(box, ["keydown", "pointerdown"]);
  addPanel(node, "read", box, { height: () => HEIGHT });
  const isLora = (/** @type {FileSystemEntry} */ entry) => isFile(entry) && ENDING.test(entry.name);
  onFilesDropped(node, (entries) => reportErrors(takeDropped(node, entries.filter(isFile).find(isLora))), isLora);
}

/** @param {Promise<void>} work */
const reportErrors = (work) => work.catch((error) => showMessage(el("div", {}, el("p", {}, messageOf(error)))));

/**
 * Ask for a LoRA of the list and set the widgets by it.
 * @param {Node} node
 */
async function choose(node) {
  const names = (await fetchJson("/models/loras")).filter((/** @type {unknown} */ name) => typeof name === "string" && ENDING.test(name));
  if (!names.length) throw new Error(t("read.none"));
  const name = await askChoice(t("read.ask"), names, t("read"));
  if (name === null) return;
  const query = new URLSearchParams({ name });
  await use(node, name, readAnswer(await fetchJson(`${ROUTE}?${query}`)));
}

/**
 * Read the header of a dropped file, which stays where it is, and set the widgets by it.
 * @param {Node} node
 * @param {FileSystemFileEntry | undefined} entry
 */
async function takeDropped(node, entry) {
  if (!entry) return;
  const file = await readFile(entry);
  const length = headerLength(await file.slice(0, LENGTH_BYTES).arrayBuffer());
  const header = length === null ? null : readHeader(await file.slice(LENGTH_BYTES, LENGTH_BYTES + length).text());
  if (!header) throw new Error(t("read.wrong", { file: entry.name }));
  await use(node, entry.name, readAnswer(await fetchJson(ROUTE, jsonPost(header))));
}

/**
 * Set the widgets and say what was set and what was not.
 * @param {Node} node
 * @param {string} file
 * @param {FileSettings} settings
 */
async function use(node, file, { program, values, notes }) {
  const { changes, same, wired } = changesOf(values, savedWidgets(node), (name) => isLinked(node, name));
  setValues(node, changes);
  const title = t(program ? "read.of" : "read.of.unknown", { file, program });
  const set = changes.map(([name, value]) => `${name}: ${value}`);
  const rest = [...wired.map((name) => t("read.wired", { name })), ...notes];
  const parts = [
    el("p", {}, title),
    ...section(set.length ? t("read.set") : t("read.nothing"), set),
    ...(same.length ? [el("p", {}, t("read.same", { names: same.join(", ") }))] : []),
    ...(rest.length ? section(t("read.rest"), rest) : []),
  ];
  await showMessage(el("div", { class: "bespoke-read" }, ...parts));
}

/**
 * A heading and a list.
 * @param {string} heading
 * @param {string[]} items
 */
const section = (heading, items) => [el("b", {}, heading), el("ul", {}, ...items.map((item) => el("li", {}, item)))];
