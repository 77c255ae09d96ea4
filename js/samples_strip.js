// @ts-check
// The strip of a run's sample pictures. No side effects.

import { el } from "./dom.js";
import { sampleRow } from "./run_values.js";
import { showSample } from "./sample_viewer.js";
import { t } from "./words.js";

/** @typedef {import("./run_values.js").Sample} Sample */

const MOST_ROWS = 3; // that are in view at once

/**
 * How many rows of pictures are in view: one for each prompt, of many the first ones.
 * @param {Sample[]} samples
 */
export const rowsInView = (samples) => (samples.length ? Math.min(MOST_ROWS, 1 + Math.max(...samples.map(([, file]) => sampleRow(file)))) : 0);

/**
 * A strip of sample pictures, each a button that shows the picture large: a row for each prompt, a column for each step.
 * @param {{ sampleUrl(id: string, file: string): string, pictureUrl(id: string): string }} runs the addresses of a run's
 *   samples and of the training picture beside them
 * @param {{ follow?: boolean }} [options] follow: scroll to new pictures where the last one was in view
 * @returns {{ element: HTMLElement, show(id: string, samples: Sample[], prompts: string[]): void }} show: only new pictures
 *   are added; prompts: of the rows, as far as they are known
 */
export function samplesStrip({ sampleUrl, pictureUrl }, { follow = false } = {}) {
  const element = el("div", { class: "bespoke-strip", role: "list", "aria-label": t("samples"), tabindex: "0" });
  /** @type {{ id: string, samples: Sample[] } | null} */
  let shown = null;

  /**
   * @param {string} id of the run
   * @param {Sample[]} samples
   * @param {string[]} prompts
   */
  function show(id, samples, prompts) {
    element.hidden = !samples.length;
    if (shown?.id === id && shown.samples === samples) return;
    const known = new Set(shown?.id === id ? shown.samples.map(([, file]) => file) : []);
    if (!known.size) element.replaceChildren();
    const isAtEnd = element.scrollLeft + element.clientWidth >= element.scrollWidth - 8;
    const open = (/** @type {string} */ file) =>
      showSample({
        samples: () => (shown?.id === id ? shown.samples : samples).filter(([, name]) => sampleRow(name) === sampleRow(file)),
        file,
        url: (name) => sampleUrl(id, name),
        picture: pictureUrl(id),
        prompt: prompts.length > 1 ? (prompts[sampleRow(file)] ?? "") : "",
      });
    const steps = [...new Set(samples.map(([step]) => step))]; // in order
    for (const [step, file] of samples) {
      if (known.has(file)) continue;
      const row = sampleRow(file);
      const made = entry(sampleUrl(id, file), step, prompts.length > 1 ? (prompts[row] ?? "") : "", () => open(file));
      made.style.gridRow = String(row + 1);
      // After a reload the newest may come first: its event overtakes the record.
      const later = [...element.children].find((other) => other instanceof HTMLElement && Number(other.dataset.step) > step);
      element.insertBefore(made, later ?? null);
    }
    for (const each of element.children) {
      if (each instanceof HTMLElement) each.style.gridColumn = String(steps.indexOf(Number(each.dataset.step)) + 1);
    }
    if (follow && isAtEnd) element.scrollLeft = element.scrollWidth;
    shown = { id, samples };
  }

  return { element, show };
}

/**
 * One picture. It is removed where it cannot be loaded.
 * @param {string} src
 * @param {number} step
 * @param {string} prompt that it shows, or ""
 * @param {() => void} onclick
 */
function entry(src, step, prompt, onclick) {
  const caption = [t("sample.at", { step }), prompt].filter(Boolean).join(": ");
  const picture = el("img", { src, alt: caption, loading: "lazy", draggable: "false", onerror: () => made.remove() });
  const button = el("button", { type: "button", "aria-label": caption, title: prompt || undefined, onclick }, picture, el("span", {}, String(step)));
  /** @type {HTMLElement} */
  const made = el("div", { role: "listitem", "data-step": String(step) }, button);
  return made;
}
