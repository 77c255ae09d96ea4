// @ts-check
// The list on the nodes of folders: the pictures or films with their captions, which can be edited; files dropped on the
// node become a new folder under ComfyUI's input. No side effects: index.js attaches it.

import {
  addPanel,
  apiURL,
  classOf,
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
import { el, isFile, messageOf, readFile, setText, stopEvents } from "./dom.js";
import { t } from "./words.js";

/** @typedef {{ file: string, caption: string | null, otherwise?: string }} Picture */
/** @typedef {{ place: string, pictures: number, repeats: number }} Subfolder */
/** @typedef {{ file: File, place: string[] }} Dropped place: the names of the folders between the dropped one and it */

const CLIP_NODE = "BespokeClipFolder";
export const FOLDER_NODES = new Set(["BespokeImageFolder", CLIP_NODE]);
const NO_FOLDER = "(no folder yet)"; // the choice of no folder, NO_FOLDER_OPTION on the server
const HEIGHT = { empty: 40, list: 190 }; // px
const FILE = /(\.(png|jpe?g|webp|bmp|gif|tiff?|txt|caption)|^metadata\.(jsonl|csv))$/i;
const FILM = /(\.(mp4|webm|mov|mkv|avi|m4v|mpe?g|m?2?ts|wmv|flv|ogv|3gp|mxf|gif|webp|a?png|jpe?g|txt|caption)|^metadata\.(jsonl|csv))$/i;
const MOST_FILES = 5000;
const MOST_SHOWN = 500;
const DEEPEST = 4; // folders below a dropped one

/**
 * Add the list to a node of a folder of pictures or films.
 * @param {import("./comfy.js").Node} node
 */
export function attachFolder(node) {
  const films = classOf(node) === CLIP_NODE;
  const [names, dropKey, emptyKey] = films
    ? [FILM, "folder.drop_films", "folder.empty_films"]
    : [FILE, "folder.drop", "folder.empty"];
  const note = el("p", { class: "bespoke-note", role: "status" });
  const list = el("div", { class: "bespoke-captions", role: "list", "aria-label": t("folder.pictures") });
  const box = el("section", { class: "bespoke-panel", "aria-label": t("folder.pictures") }, note, list);
  stopEvents(box);
  let shown = ""; // the request of the list
  let height = HEIGHT.empty;

  /**
   * A picture and the field of its caption, which has several lines where each is a caption.
   * @param {string} folder
   * @param {boolean} lines
   * @param {Picture} picture
   */
  function row(folder, lines, { file, caption, otherwise }) {
    const query = new URLSearchParams({ folder, file });
    const label = t("caption.of", { file });
    const props = { placeholder: otherwise ?? t("caption.none"), "aria-label": label, spellcheck: "false" };
    const rows = Math.min(4, (caption ?? "").split("\n").length);
    const input = lines ? el("textarea", { ...props, rows: String(rows) }) : el("input", { ...props, type: "text" });
    input.value = caption ?? "";
    const save = async () => {
      try {
        const saved = await fetchJson("/bespoke/folder/caption", jsonPost({ folder, file, caption: input.value, lines }));
        input.value = saved.caption;
        input.classList.remove("bespoke-wrong");
      } catch (error) {
        input.classList.add("bespoke-wrong");
        setText(note, messageOf(error));
      }
    };
    input.addEventListener("change", save);
    const src = apiURL(`/bespoke/folder/thumbnail?${query}`);
    const picture = el("img", { src, alt: file, title: file, loading: "lazy", draggable: "false" });
    return el("div", { role: "listitem" }, picture, input);
  }

  /**
   * The rows of the pictures; where they lie in subfolders, with each folder's name and repeats above its pictures.
   * @param {string} name of the chosen folder
   * @param {boolean} lines
   * @param {Picture[]} pictures
   * @param {Subfolder[]} [folders]
   */
  function listItems(name, lines, pictures, folders = []) {
    const headings = new Map(folders.map((folder) => [folder.place, heading(name, folder, folders)]));
    return pictures.slice(0, MOST_SHOWN).flatMap((picture) => {
      const place = picture.file.slice(0, Math.max(0, picture.file.lastIndexOf("/")));
      const above = headings.get(place);
      headings.delete(place);
      return above ? [above, row(name, lines, picture)] : [row(name, lines, picture)];
    });
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
    const captions = linkedValue(node, "captions");
    const query = new URLSearchParams({ name, subfolders: String(linkedValue(node, "subfolders") === true) });
    query.set("pairs", String(linkedValue(node, "pairs") === true));
    query.set("films", String(films));
    if (captions !== undefined) query.set("captions", String(captions));
    const key = String(query);
    if (!name || (key === shown && !anew)) return;
    shown = key;
    if (name === NO_FOLDER) {
      list.replaceChildren();
      return showList(t(emptyKey));
    }
    try {
      const { pictures, missing, unused, lines = false, folders } = await fetchJson(`/bespoke/folder?${query}`);
      if (shown !== key) return; // another folder was chosen meanwhile
      const [drop, not] = [t(dropKey, { count: pictures.length }), unused ? ` ${t("folder.unused", { captions: String(captions) })}` : ""];
      setText(note, missing ? t(emptyKey) : drop + not);
      list.replaceChildren(...listItems(name, lines, pictures, folders));
    } catch {
      setText(note, t(emptyKey));
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
   * @param {Dropped[]} files
   */
  async function upload(wanted, files) {
    const { folder } = await fetchJson("/bespoke/folder", jsonPost({ name: wanted }));
    let sent = 0;
    for (const { file, place } of files) {
      const form = new FormData();
      form.append("image", file, file.name);
      const fields = { type: "input", subfolder: [folder, ...place].join("/"), overwrite: "true" };
      for (const [key, value] of Object.entries(fields)) form.append(key, value);
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
      const files = await filesIn(entries, names);
      const wanted = entries.find((entry) => entry.isDirectory)?.name ?? t("folder.new");
      if (files.length) await upload(wanted, files);
      else setText(note, t("folder.nothing"));
    } catch (error) {
      setText(note, messageOf(error));
    }
  }

  onFilesDropped(node, takeDropped);
  addPanel(node, "pictures", box, { height: () => height, grows: true });
  setText(note, t(emptyKey));
  onNodeChange(node, () => refresh());
}

/**
 * "10_cat: 6 pictures, repeats 10", the repeats where those of the folders differ from 1.
 * @param {string} name of the chosen folder
 * @param {Subfolder} folder
 * @param {Subfolder[]} folders all of the set
 */
function heading(name, { place, pictures: count, repeats }, folders) {
  const key = folders.some((one) => one.repeats !== 1) ? "folder.repeats" : "folder.part";
  return el("p", { class: "bespoke-place", title: place }, t(key, { folder: place || name, count, repeats }));
}

/**
 * The pictures and caption files among dropped entries and in dropped folders, at most 5000.
 * @param {FileSystemEntry[]} entries
 * @param {RegExp} wanted the names of files that are taken
 * @returns {Promise<Dropped[]>}
 */
async function filesIn(entries, wanted) {
  /** @type {{ entry: FileSystemFileEntry, place: string[] }[]} */
  const found = [];
  const take = (/** @type {FileSystemEntry[]} */ some, /** @type {string[]} */ place) =>
    found.push(...some.filter(isFile).filter(({ name }) => wanted.test(name)).map((entry) => ({ entry, place })));
  take(entries, []);
  /** @type {{ folder: FileSystemDirectoryEntry, place: string[] }[]} */
  const waiting = entries.filter(isFolder).map((folder) => ({ folder, place: [] }));
  for (let next = waiting.shift(); next && found.length < MOST_FILES; next = waiting.shift()) {
    const { folder, place } = next;
    const reader = folder.createReader();
    for (let batch = await readBatch(reader); batch.length && found.length < MOST_FILES; batch = await readBatch(reader)) {
      take(batch, place);
      if (place.length < DEEPEST) {
        const below = batch.filter(isFolder).filter(({ name }) => !name.startsWith("."));
        waiting.push(...below.map((each) => ({ folder: each, place: [...place, each.name] })));
      }
    }
  }
  return Promise.all(found.slice(0, MOST_FILES).map(async ({ entry, place }) => ({ file: await readFile(entry), place })));
}

/**
 * @param {FileSystemEntry} entry
 * @returns {entry is FileSystemDirectoryEntry}
 */
const isFolder = (entry) => entry.isDirectory;

/**
 * The next entries of a folder; none at its end.
 * @param {FileSystemDirectoryReader} reader
 * @returns {Promise<FileSystemEntry[]>}
 */
const readBatch = (reader) => new Promise((done, fail) => reader.readEntries(done, fail));
