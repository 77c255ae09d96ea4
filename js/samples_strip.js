// @ts-check
// The strip of a run's sample pictures. No side effects.

import { el } from "./dom.js";
import { showSample } from "./sample_viewer.js";
import { t } from "./words.js";

/** @typedef {import("./run_values.js").Sample} Sample */

/**
 * A strip of sample pictures, each a button that shows the picture large.
 * @param {{ sampleUrl(id: string, file: string): string, pictureUrl(id: string): string }} runs the addresses of a run's
 *   samples and of the training picture beside them
 * @param {{ follow?: boolean }} [options] follow: scroll to new pictures where the last one was in view
 * @returns {{ element: HTMLElement, show(id: string, samples: Sample[]): void }} show: only new pictures are added
 */
export function samplesStrip({ sampleUrl, pictureUrl }, { follow = false } = {}) {
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
    const open = (/** @type {string} */ file) =>
      showSample({
        samples: () => (shown?.id === id ? shown.samples : samples),
        file,
        url: (name) => sampleUrl(id, name),
        picture: pictureUrl(id),
      });
    for (const [step, file] of samples) {
      if (known.has(file)) continue;
      const made = entry(sampleUrl(id, file), step, () => open(file));
      // After a reload the newest may come first: its event overtakes the record.
      const later = [...element.children].find((other) => other instanceof HTMLElement && Number(other.dataset.step) > step);
      element.insertBefore(made, later ?? null);
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
 * @param {() => void} onclick
 */
function entry(src, step, onclick) {
  const caption = t("sample.at", { step });
  const picture = el("img", { src, alt: caption, loading: "lazy", draggable: "false", onerror: () => made.remove() });
  const button = el("button", { type: "button", "aria-label": caption, onclick }, picture, el("span", {}, String(step)));
  /** @type {HTMLElement} */
  const made = el("div", { role: "listitem", "data-step": String(step) }, button);
  return made;
}
