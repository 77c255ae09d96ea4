// @ts-check
// The list of nearest words on the inspect-embedding node, shown after it ran. No side effects: index.js attaches it.

import { addPanel, fitNode, onExecuted } from "./comfy.js";
import { el, setText, stopEvents } from "./dom.js";
import { t } from "./words.js";

export const WORD_NODE = "BespokeInspectEmbedding";
const HEIGHT = { empty: 40, vector: 66, most: 260 }; // px
const MOST_VECTORS = 75;
const LONG = 5; // times the vocabulary's median length, from which a vector dominates a prompt; the server has the same limit

/** @typedef {{ key: string, place: number, length: number, median: number, words: [string, number][] }} Vector words: [word, cosine] */

/**
 * Add the list to an inspect node.
 * @param {import("./comfy.js").Node} node
 */
export function attachWords(node) {
  const note = el("p", { class: "bespoke-note", role: "status" });
  const list = el("div", { class: "bespoke-near", role: "list", "aria-label": t("words"), tabindex: "0" });
  const box = el("section", { class: "bespoke-panel", "aria-label": t("words") }, note, list);
  stopEvents(box);
  let height = HEIGHT.empty;
  setText(note, t("words.empty"));
  list.hidden = true;

  onExecuted(node, (output) => {
    const vectors = readVectors(output?.bespoke_words);
    if (!vectors.length) return;
    list.replaceChildren(...vectors.map(vectorElement));
    [note.hidden, list.hidden] = [true, false];
    height = Math.min(HEIGHT.most, 14 + HEIGHT.vector * vectors.length);
    box.style.minHeight = `${height}px`;
    fitNode(node);
  });
  addPanel(node, "words", box, { height: () => height, grows: true });
}

/** @param {Vector} vector */
function vectorElement({ key, place, length, median, words }) {
  const times = length / median;
  const size = t("words.length", { length: length.toPrecision(3), times: times.toFixed(1) });
  const sizeElement = el("span", { class: times > LONG ? "bespoke-long" : null }, size);
  const head = el("div", { class: "bespoke-near-head" }, el("b", {}, `${key} ${place + 1}`), sizeElement);
  const near = words.map(([word, cosine]) => {
    const shown = cosine.toFixed(2);
    const style = `--bespoke-near:${Math.max(0, Math.min(1, cosine))}`;
    return el("span", { class: "bespoke-word", style, title: t("words.cosine", { cosine: shown }) }, word, el("i", {}, shown));
  });
  return el("div", { role: "listitem" }, head, el("div", { class: "bespoke-words-near" }, ...near));
}

/**
 * The node's output with every field in its type. Entries that cannot be shown are left out.
 * @param {unknown} output
 * @returns {Vector[]}
 */
function readVectors(output) {
  const finite = (/** @type {unknown} */ value) => typeof value === "number" && Number.isFinite(value);
  return (Array.isArray(output) ? output : [])
    .slice(0, MOST_VECTORS)
    .filter((one) => one && finite(one.place) && finite(one.length) && finite(one.median) && one.median > 0 && Array.isArray(one.words))
    .map(({ key, place, length, median, words }) => ({
      key: String(key).slice(0, 20),
      place,
      length,
      median,
      words: /** @type {unknown[]} */ (words)
        .slice(0, 12)
        .flatMap((pair) => (Array.isArray(pair) && finite(pair[1]) ? [[String(pair[0]).slice(0, 40), pair[1]]] : [])),
    }));
}
