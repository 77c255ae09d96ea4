// Elements. Text goes in as text only: what comes from a file or a server is never read as markup. No side effects.

/** An element. props: attributes, `on...` listeners and `style`; children: elements, text, or nothing (null, false). */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") made.style.cssText = value;
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/**
 * Set an element's text where it has changed. The text node stays: a new one makes the page, whose styles ask what
 * elements contain (":has"), compute the styles of all its nodes anew, hundreds of times the cost of new text.
 */
export function say(element, text) {
  const [node] = element.childNodes;
  if (element.childNodes.length === 1 && node.nodeType === Node.TEXT_NODE) {
    if (node.data !== text) node.data = text;
  } else if (element.textContent !== text) element.textContent = text;
}

/** Keep the graph's own shortcuts, zoom and dragging out of what is typed, pressed and scrolled in an element. */
export function keepInside(element, kinds = ["keydown", "pointerdown", "wheel"]) {
  for (const kind of kinds) element.addEventListener(kind, (event) => event.stopPropagation());
}

/** Call `work` once in the next frame, however often the returned function is called before. */
export function oncePerFrame(work) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      work();
    });
  };
}

/** Show a picture large over the page, until Escape, a click or the button. Focus goes back where it was. */
export function enlarge(src, caption, close) {
  const before = document.activeElement;
  const done = () => {
    dialog.remove();
    before?.focus?.({ preventScroll: true });
  };
  const dialog = el(
    "dialog",
    { class: "bespoke-large", "aria-label": caption, onclose: done, onclick: () => dialog.close() },
    el("img", { src, alt: caption }),
    el("p", {}, caption),
    el("button", { type: "button", class: "bespoke-button", autofocus: true }, close),
  );
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
