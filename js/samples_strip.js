// @ts-check
// The strip of a run's sample pictures. No side effects.

import { el, enlarge } from "./dom.js";
import { t } from "./words.js";

/** @typedef {import("./run_values.js").Sample} Sample */

/**
 * A strip of sample pictures, each a button that shows the picture large.
 * @param {(id: string, file: string) => string} sampleUrl the address of a run's sample
 * @param {{ follow?: boolean }} [options] follow: scroll to new pictures where the last one was in view
 * @returns {{ element: HTMLElement, show(id: string, samples: Sample[]): void }} show: only new pictures are added
 */
export function samplesStrip(sampleUrl, { follow = false } = {}) {
  const element = el("div", { class: "bespoke-strip", role: "list", "aria-label": t("samples"), tabindex: "0" });
  /** @type {{ id: string, samples: Sample[] } | null} */
  let shown = null;

  /**
   * @param {string} id of the run
   * @param {Sample[]} samples
   */
  function show(id, samples) {
    element.hidden = !samples.length;
    if (shown?.id === id && shown.samples === samples) return;
    const known = new Set(shown?.id === id ? shown.samples.map(([, file]) => file) : []);
    if (!known.size) element.replaceChildren();
    const isAtEnd = element.scrollLeft + element.clientWidth >= element.scrollWidth - 8;
    for (const [step, file] of samples) if (!known.has(file)) element.append(entry(sampleUrl(id, file), step));
    if (follow && isAtEnd) element.scrollLeft = element.scrollWidth;
    shown = { id, samples };
  }

  return { element, show };
}

/**
 * One picture. It is removed where it cannot be loaded.
 * @param {string} src
 * @param {number} step
 */
function entry(src, step) {
  const caption = t("sample.at", { step });
  const picture = el("img", { src, alt: caption, loading: "lazy", draggable: "false", onerror: () => made.remove() });
  const onclick = () => enlarge(src, caption, t("close"));
  const button = el("button", { type: "button", "aria-label": caption, onclick }, picture, el("span", {}, String(step)));
  /** @type {HTMLElement} */
  const made = el("div", { role: "listitem" }, button);
  return made;
}
