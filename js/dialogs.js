// @ts-check
// Questions, a list to choose from and a message over the page. No side effects.

import { el } from "./dom.js";
import { t } from "./words.js";

/**
 * Ask before something is done. Escape and the second button, which has the focus, mean no.
 * @param {string} question
 * @param {string} yes the button's text
 * @returns {Promise<boolean>}
 */
export async function confirmed(question, yes) {
  return (await open(el("p", {}, question), yes)) !== null;
}

/**
 * Ask for a line of text, or null where the user closed the question.
 * @param {string} question
 * @param {string} value
 * @param {string} yes the button's text
 * @param {number} most characters
 * @returns {Promise<string | null>}
 */
export async function askText(question, value, yes, most) {
  const field = el("input", { type: "text", class: "bespoke-search", value, maxlength: most, autofocus: true });
  return (await open(el("label", {}, question, field), yes)) === null ? null : field.value;
}

/**
 * Ask for one of a list, or null where the user closed the question.
 * @param {string} question
 * @param {string[]} choices
 * @param {string} yes the button's text
 * @returns {Promise<string | null>}
 */
export async function askChoice(question, choices, yes) {
  const list = el("select", { autofocus: true }, ...choices.map((choice) => el("option", { value: choice }, choice)));
  return (await open(el("label", {}, question, list), yes)) === null ? null : list.value;
}

/**
 * Show a message until it is closed.
 * @param {HTMLElement} content
 */
export async function showMessage(content) {
  await open(content, "");
}

/**
 * @param {HTMLElement} content
 * @param {string} yes the text of the first button; "" for a message, which has one button to close it
 * @returns {Promise<string | null>} null: closed
 */
function open(content, yes) {
  const focused = document.activeElement;
  return new Promise((answer) => {
    const accept = el("button", { type: "submit", class: "bespoke-button bespoke-main", value: "yes" }, yes);
    const isFirst = content instanceof HTMLParagraphElement || !yes;
    const refuse = el("button", { type: "button", class: "bespoke-button", autofocus: isFirst, onclick: () => dialog.close() }, t(yes ? "keep" : "close"));
    const buttons = el("div", { class: "bespoke-buttons" }, yes && accept, refuse);
    const form = el("form", { method: "dialog" }, content, buttons);
    const onclose = () => {
      dialog.remove();
      if (focused instanceof HTMLElement) focused.focus({ preventScroll: true });
      answer(dialog.returnValue === "yes" ? "yes" : null);
    };
    const onkeydown = (/** @type {KeyboardEvent} */ event) => event.stopPropagation(); // the graph has shortcuts on these keys
    /** @type {HTMLDialogElement} */
    const dialog = el("dialog", { class: "bespoke-large bespoke-question", "aria-label": content.firstChild?.textContent ?? "", onclose, onkeydown }, form);
    document.body.append(dialog);
    dialog.showModal();
  });
}
