// @ts-check
// Helpers for HTML elements. Text is inserted as text only: what comes from a file or a server is never parsed as markup.
// No side effects.

/** @typedef {string | number | boolean | null | undefined | ((event: any) => unknown)} Property */

/**
 * Create an element.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, Property>} [props] attributes, `on<event>` listeners and `style`; null, undefined and false are left out
 * @param {...(Node | string | null | undefined | false)} children null, undefined and false are left out
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (name === "style") made.style.cssText = String(value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children) if (child !== null && child !== undefined && child !== false) made.append(child);
  return made;
}

/**
 * Set an element's text if it has changed. The text node is kept: ComfyUI's styles use ":has", and a new text node makes
 * the browser compute the styles of all nodes again, which costs hundreds of times more than changing the text.
 * @param {HTMLElement} element
 * @param {string} text
 */
export function setText(element, text) {
  const [node] = element.childNodes;
  if (element.childNodes.length === 1 && node instanceof Text) {
    if (node.data !== text) node.data = text;
  } else if (element.textContent !== text) element.textContent = text;
}

/**
 * Stop events of an element from reaching the graph, which would read them as shortcuts, zoom or dragging.
 * @param {HTMLElement} element
 * @param {string[]} [kinds]
 */
export function stopEvents(element, kinds = ["keydown", "pointerdown", "wheel"]) {
  for (const kind of kinds) element.addEventListener(kind, (event) => event.stopPropagation());
}

/**
 * A function that calls `work` once in the next frame, however often it is called before that.
 * @param {() => void} work
 */
export function oncePerFrame(work) {
  let scheduled = false;
  return () => {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      work();
    });
  };
}

/**
 * Save a text as a file of the browser's downloads.
 * @param {string} name
 * @param {string} content
 * @param {string} type
 */
export function download(name, content, type) {
  const href = URL.createObjectURL(new Blob([content], { type }));
  el("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000); // the browser has begun to read it
}

/**
 * The message of something that was caught.
 * @param {unknown} error
 */
export function messageOf(error) {
  return error instanceof Error ? error.message : String(error);
}

/**
 * @param {FileSystemEntry} entry of something that was dropped on the page
 * @returns {entry is FileSystemFileEntry}
 */
export const isFile = (entry) => entry.isFile;

/**
 * @param {FileSystemFileEntry} entry
 * @returns {Promise<File>}
 */
export const readFile = (entry) => new Promise((done, fail) => entry.file(done, fail));
