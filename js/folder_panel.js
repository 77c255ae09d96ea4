// @ts-check
// The list on the image node: the folder's pictures with their captions, which can be edited; files dropped on the node
// become a new folder under ComfyUI's input. No side effects: index.js attaches it.

import {
  addPanel,
  apiURL,
  fetchApi,
  fetchJson,
  fitNode,
  isLinked,
  jsonPost,
  linkedValue,
  onFilesDropped,
  onNodeChange,
  refreshLists,
  setValue,
} from "./comfy.js";
import { el, messageOf, setText, stopEvents } from "./dom.js";
import { t } from "./words.js";

/** @typedef {{ file: string, caption: string | null }} Picture */

export const FOLDER_NODE = "BespokeImageFolder";
const NO_FOLDER = "(no folder yet)"; // the choice of no folder, NO_FOLDER_OPTION on the server
const HEIGHT = { empty: 40, list: 190 }; // px
const FILE = /\.(png|jpe?g|webp|bmp|gif|tiff?|txt)$/i;
const MOST_FILES = 5000;
const MOST_SHOWN = 500;

/**
 * Add the list to an image node.
 * @param {import("./comfy.js").Node} node
 */
export function attachFolder(node) {
  const note = el("p", { class: "bespoke-note", role: "status" });
  const list = el("div", { class: "bespoke-captions", role: "list", "aria-label": t("folder.pictures") });
  const box = el("section", { class: "bespoke-panel", "aria-label": t("folder.pictures") }, note, list);
  stopEvents(box);
  let shown = ""; // the folder in the list
  let height = HEIGHT.empty;

  /**
   * A picture and the field of its caption.
   * @param {string} folder
   * @param {Picture} picture
   */
  function row(folder, { file, caption }) {
    const query = new URLSearchParams({ filename: file, subfolder: folder, type: "input", preview: "webp;60" });
    const label = t("caption.of", { file });
    const placeholder = t("caption.none");
    const input = el("input", { type: "text", value: caption ?? "", placeholder, "aria-label": label, spellcheck: "false" });
    const save = async () => {
      try {
        const saved = await fetchJson("/bespoke/folder/caption", jsonPost({ folder, file, caption: input.value }));
        input.value = saved.caption;
        input.classList.remove("bespoke-wrong");
      } catch (error) {
        input.classList.add("bespoke-wrong");
        setText(note, messageOf(error));
      }
    };
    input.addEventListener("change", save);
    const picture = el("img", { src: apiURL(`/view?${query}`), alt: file, title: file, loading: "lazy", draggable: "false" });
    return el("div", { role: "listitem" }, picture, input);
  }

  /**
   * Show the folder that the node has now.
   * @param {boolean} [anew] whether to read the folder again where it is shown already
   */
  async function refresh(anew = false) {
    const value = linkedValue(node, "folder");
    if (value === undefined && isLinked(node, "folder")) {
      shown = "";
      list.replaceChildren();
      return showList(t("folder.wired"));
    }
    const name = String(value ?? "");
    if (!name || (name === shown && !anew)) return;
    shown = name;
    if (name === NO_FOLDER) {
      list.replaceChildren();
      return showList(t("folder.empty"));
    }
    try {
      const { pictures, missing } = await fetchJson(`/bespoke/folder?${new URLSearchParams({ name })}`);
      if (shown !== name) return; // another folder was chosen meanwhile
      setText(note, missing ? t("folder.empty") : t("folder.drop", { count: pictures.length }));
      list.replaceChildren(...pictures.slice(0, MOST_SHOWN).map((/** @type {Picture} */ picture) => row(name, picture)));
    } catch {
      setText(note, t("folder.empty"));
      list.replaceChildren();
    }
    showList(note.textContent ?? "");
  }

  /**
   * Make room for the list.
   * @param {string} text of the note
   */
  function showList(text) {
    setText(note, text);
    height = list.children.length ? HEIGHT.list : HEIGHT.empty;
    box.style.minHeight = `${height}px`;
    fitNode(node);
  }

  /**
   * Upload the files to a new folder and choose it.
   * @param {string} wanted name of the folder; the server may change it
   * @param {File[]} files
   */
  async function upload(wanted, files) {
    const { folder } = await fetchJson("/bespoke/folder", jsonPost({ name: wanted }));
    let sent = 0;
    for (const file of files) {
      const form = new FormData();
      form.append("image", file, file.name);
      for (const [key, value] of Object.entries({ type: "input", subfolder: folder, overwrite: "true" })) form.append(key, value);
      const answer = await fetchApi("/upload/image", { method: "POST", body: form });
      if (!answer.ok) throw new Error(t("folder.refused", { file: file.name }));
      setText(note, t("folder.sending", { sent: ++sent, all: files.length }));
    }
    await refreshLists();
    setValue(node, "folder", folder);
    await refresh(true);
  }

  /** @param {FileSystemEntry[]} entries */
  async function takeDropped(entries) {
    try {
      const files = await filesIn(entries);
      const wanted = entries.find((entry) => entry.isDirectory)?.name ?? t("folder.new");
      if (files.length) await upload(wanted, files);
      else setText(note, t("folder.nothing"));
    } catch (error) {
      setText(note, messageOf(error));
    }
  }

  onFilesDropped(node, takeDropped);
  addPanel(node, "pictures", box, { height: () => height, grows: true });
  setText(note, t("folder.empty"));
  onNodeChange(node, () => refresh());
}

/**
 * The pictures and caption files among dropped entries and directly inside dropped folders, at most 5000.
 * @param {FileSystemEntry[]} entries
 */
async function filesIn(entries) {
  /** @type {FileSystemFileEntry[]} */
  const found = [];
  for (const entry of entries) {
    if (isFile(entry)) found.push(entry);
    if (!isFolder(entry)) continue;
    const reader = entry.createReader();
    for (let batch = await readBatch(reader); batch.length && found.length < MOST_FILES; batch = await readBatch(reader)) {
      found.push(...batch.filter(isFile));
    }
  }
  return Promise.all(found.filter((entry) => FILE.test(entry.name)).slice(0, MOST_FILES).map(readFile));
}

/**
 * @param {FileSystemEntry} entry
 * @returns {entry is FileSystemFileEntry}
 */
const isFile = (entry) => entry.isFile;

/**
 * @param {FileSystemEntry} entry
 * @returns {entry is FileSystemDirectoryEntry}
 */
const isFolder = (entry) => entry.isDirectory;

/**
 * @param {FileSystemFileEntry} entry
 * @returns {Promise<File>}
 */
const readFile = (entry) => new Promise((done, fail) => entry.file(done, fail));

/**
 * The next entries of a folder; none at its end.
 * @param {FileSystemDirectoryReader} reader
 * @returns {Promise<FileSystemEntry[]>}
 */
const readBatch = (reader) => new Promise((done, fail) => reader.readEntries(done, fail));
