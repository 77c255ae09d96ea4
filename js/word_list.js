// The nearest words of an embedding on the inspect node, after it ran. No side effects: index.js attaches it.

import { addPanel, fitNode, onExecuted } from "./comfy.js";
import { el, keepInside, say } from "./dom.js";
import { t } from "./words.js";

export const WORD_NODE = "BespokeInspectEmbedding";
const HEIGHT = { empty: 40, vector: 66, most: 260 }; // px
const MOST_VECTORS = 75;
const LONG = 5; // times the vocabulary's median, from which a vector drowns the rest of a prompt; as the server's

/** Add the list to an inspect node. */
export function attachWords(node) {
  const note = el("p", { class: "bespoke-note", role: "status" });
  const list = el("div", { class: "bespoke-near", role: "list", "aria-label": t("words"), tabindex: "0" });
  const box = el("section", { class: "bespoke-panel", "aria-label": t("words") }, note, list);
  keepInside(box);
  let height = HEIGHT.empty;
  say(note, t("words.empty"));
  list.hidden = true;

  onExecuted(node, (output) => {
    const vectors = readVectors(output?.bespoke_words);
    if (!vectors.length) return;
    list.replaceChildren(...vectors.map(vectorOf));
    [note.hidden, list.hidden] = [true, false];
    height = Math.min(HEIGHT.most, 14 + HEIGHT.vector * vectors.length);
    box.style.minHeight = `${height}px`;
    fitNode(node);
  });
  addPanel(node, "words", box, { height: () => height, grows: true });
}

function vectorOf({ key, place, length, median, words }) {
  const times = length / median;
  const size = t("words.length", { length: length.toPrecision(3), times: times.toFixed(1) });
  const head = el("div", { class: "bespoke-near-head" }, el("b", {}, `${key} ${place + 1}`), el("span", { class: times > LONG ? "bespoke-long" : null }, size));
  const near = words.map(([word, cosine]) =>
    el("span", { class: "bespoke-word", style: `--bespoke-near:${Math.max(0, Math.min(1, cosine))}`, title: t("words.cosine", { cosine: cosine.toFixed(2) }) }, word, el("i", {}, cosine.toFixed(2))),
  );
  return el("div", { role: "listitem" }, head, el("div", { class: "bespoke-words-near" }, ...near));
}

/** What the server says, in its types: [{ key, place, length, median, words: [[word, cosine]] }]. */
function readVectors(said) {
  const finite = (value) => typeof value === "number" && Number.isFinite(value);
  return (Array.isArray(said) ? said : [])
    .slice(0, MOST_VECTORS)
    .filter((one) => one && finite(one.place) && finite(one.length) && finite(one.median) && one.median > 0 && Array.isArray(one.words))
    .map(({ key, place, length, median, words }) => ({
      key: String(key).slice(0, 20),
      place,
      length,
      median,
      words: words.slice(0, 12).filter((pair) => Array.isArray(pair) && finite(pair[1])).map(([word, cosine]) => [String(word).slice(0, 40), cosine]),
    }));
}
