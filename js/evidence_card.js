// @ts-check
// The evidence card of a run: a picture that says which step to use and why. A small one that opens it large. No side
// effects.

import { el } from "./dom.js";
import { t } from "./words.js";

/**
 * The card, which shows large after a click. It stays hidden until it is loaded, and for a run that has none.
 * @returns {{ element: HTMLElement, show(url: string): void }} show: the address of the card of a run that has ended, or ""
 */
export function evidenceCard() {
  /** @type {HTMLImageElement} */
  const picture = el("img", { alt: t("card"), draggable: "false", onload: () => setHidden(false), onerror: () => setHidden(true) });
  /** @type {HTMLButtonElement} */
  const element = el("button", { type: "button", class: "bespoke-evidence", title: t("card.tip"), onclick: () => showCard(picture.src) }, picture);
  let shown = "";
  setHidden(true);

  /** @param {boolean} hidden */
  function setHidden(hidden) {
    element.hidden = hidden;
  }

  /** @param {string} url */
  function show(url) {
    if (url === shown) return;
    shown = url;
    if (url) picture.src = url;
    else {
      picture.removeAttribute("src");
      setHidden(true);
    }
  }

  return { element, show };
}

/**
 * Show a card over the page until Escape, a click beside it or the button closes it. Then the focus returns.
 * @param {string} url
 */
export function showCard(url) {
  const focused = document.activeElement;
  const close = el("button", { type: "button", class: "bespoke-button", autofocus: true, onclick: () => dialog.close() }, t("close"));
  /** @type {HTMLImageElement} */
  const picture = el("img", { src: url, alt: t("card"), onerror: () => link.replaceWith(el("p", {}, t("card.none"))) });
  /** @type {HTMLAnchorElement} */
  const link = el("a", { href: url, target: "_blank", rel: "noopener" }, picture);
  /** @type {HTMLDialogElement} */
  const dialog = el(
    "dialog",
    { class: "bespoke-large bespoke-evidence-large", "aria-label": t("card"), onclose, onclick: closeOutside, onkeydown: (/** @type {KeyboardEvent} */ event) => event.stopPropagation() },
    link,
    close,
  );

  /** @param {MouseEvent} event */
  function closeOutside(event) {
    if (event.target === dialog) dialog.close(); // its backdrop and its edge
  }

  function onclose() {
    dialog.remove();
    if (focused instanceof HTMLElement) focused.focus({ preventScroll: true });
  }

  document.body.append(dialog);
  dialog.showModal();
}
