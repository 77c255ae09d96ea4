// @ts-check
// Shows a sample large beside a picture of the training set, with arrows to the samples of other steps. No side effects.

import { el, setText } from "./dom.js";
import { t } from "./words.js";

/** @typedef {import("./run_values.js").Sample} Sample */

/**
 * Show a run's sample over the page until Escape, a click beside it or the button closes it. The arrow keys, Home and End
 * go to other samples. Then the focus returns to where it was.
 * @param {object} options
 * @param {() => Sample[]} options.samples of the run, as they are now
 * @param {string} options.file of the sample to begin with
 * @param {(file: string) => string} options.url the address of a sample
 * @param {string} options.picture the address of the training picture, which may not exist
 * @param {string} [options.prompt] what the samples show, in place of the word "sample"
 */
export function showSample({ samples, file, url, picture, prompt }) {
  const focused = document.activeElement;
  let shown = file;
  const large = el("img", { alt: "" });
  const caption = el("p", { role: "status" });
  const reference = figure(el("img", { src: picture, alt: t("sample.picture"), onerror: () => reference.remove() }), t("sample.picture"));
  const previous = arrow("‹", "sample.previous", () => go(-1));
  const next = arrow("›", "sample.next", () => go(1));
  const close = el("button", { type: "button", class: "bespoke-button", autofocus: true, onclick: () => dialog.close() }, t("close"));
  /** @type {HTMLDialogElement} */
  const dialog = el(
    "dialog",
    { class: "bespoke-large", "aria-label": t("samples"), onclose, onclick: closeOutside, onkeydown: onKey },
    el("div", { class: "bespoke-pair" }, figure(large, prompt || t("sample")), reference),
    el("div", { class: "bespoke-pager" }, previous, caption, next),
    close,
  );

  /** @param {number} by */
  function go(by) {
    const all = samples();
    const at = all.findIndex(([, name]) => name === shown);
    show(all[Math.min(all.length - 1, Math.max(0, at + by))]);
  }

  /** @param {Sample | undefined} sample */
  function show(sample) {
    if (!sample) return;
    const all = samples();
    const [step, name] = sample;
    shown = name;
    const at = all.findIndex(([, other]) => other === name);
    large.src = url(name);
    large.alt = t("sample.at", { step });
    setText(caption, t("sample.of", { step: step.toLocaleString("en"), number: at + 1, count: all.length }));
    previous.disabled = at <= 0;
    next.disabled = at >= all.length - 1;
  }

  /** @param {KeyboardEvent} event */
  function onKey(event) {
    event.stopPropagation(); // the graph has shortcuts on the same keys
    /** @type {Record<string, number>} */
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    if (!(event.key in moves)) return;
    event.preventDefault();
    go(moves[event.key]);
  }

  /** @param {MouseEvent} event */
  function closeOutside(event) {
    if (event.target === dialog) dialog.close(); // its backdrop and its edge
  }

  function onclose() {
    dialog.remove();
    if (focused instanceof HTMLElement || focused instanceof SVGElement) focused.focus({ preventScroll: true });
  }

  show(samples().find(([, name]) => name === file));
  document.body.append(dialog);
  dialog.showModal();
}

/**
 * @param {HTMLImageElement} image
 * @param {string} words
 */
function figure(image, words) {
  return el("figure", {}, image, el("figcaption", {}, words));
}

/**
 * @param {string} sign
 * @param {string} key of its name
 * @param {() => void} onclick
 */
function arrow(sign, key, onclick) {
  return el("button", { type: "button", class: "bespoke-button", "aria-label": t(key), title: t(key), onclick }, sign);
}
