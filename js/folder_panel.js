// The image node's own list: the folder's pictures with their captions, editable in place; a folder or pictures dropped
// on the node become a training folder under ComfyUI's input. No side effects: index.js attaches it.

import { addPanel, apiURL, fetchApi, fitNode, onFilesDropped, refreshLists, setValue, valueOf, watch } from "./comfy.js";
import { el, keepInside, say } from "./dom.js";
import { t } from "./words.js";

export const FOLDER_NODE = "BespokeImageFolder";
const HEIGHT = { empty: 40, list: 190 }; // px
const FILE = /\.(png|jpe?g|webp|bmp|gif|tiff?|txt)$/i;
const MOST_FILES = 5000;

/** Add the list to an image node. */
export function attachFolder(node) {
  const note = el("p", { class: "bespoke-note", role: "status" });
  const list = el("div", { class: "bespoke-captions", role: "list", "aria-label": t("folder.pictures") });
  const box = el("section", { class: "bespoke-panel", "aria-label": t("folder.pictures") }, note, list);
  keepInside(box);
  let shown = null; // the folder in the list
  let height = HEIGHT.empty;

  const ask = async (path, options) => {
    const answer = await fetchApi(path, options);
    const said = await answer.json();
    if (!answer.ok) throw new Error(typeof said.error === "string" ? said.error : t("runs.status", { status: answer.status }));
    return said;
  };
  const post = (path, body) => ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

  function row(name, { file, caption }) {
    const query = new URLSearchParams({ filename: file, subfolder: name, type: "input", preview: "webp;60" });
    const input = el("input", { type: "text", value: caption ?? "", placeholder: t("caption.none"), "aria-label": t("caption.of", { file }), spellcheck: "false" });
    const write = async () => {
      try {
        input.value = (await post("/bespoke/folder/caption", { folder: name, file, caption: input.value })).caption;
        input.classList.remove("bespoke-wrong");
      } catch (error) {
        input.classList.add("bespoke-wrong");
        say(note, error.message);
      }
    };
    input.addEventListener("change", write);
    const picture = el("img", { src: apiURL(`/view?${query}`), alt: file, title: file, loading: "lazy", draggable: "false" });
    return el("div", { role: "listitem" }, picture, input);
  }

  async function look(anew = false) {
    const name = valueOf(node, "folder");
    if (!name || (name === shown && !anew)) return;
    shown = name;
    try {
      const { pictures, missing } = await ask(`/bespoke/folder?${new URLSearchParams({ name })}`);
      if (shown !== name) return; // another folder was chosen meanwhile
      say(note, missing ? t("folder.empty") : t("folder.drop", { count: pictures.length }));
      list.replaceChildren(...pictures.slice(0, 500).map((picture) => row(name, picture)));
    } catch {
      say(note, t("folder.empty"));
      list.replaceChildren();
    }
    height = list.children.length ? HEIGHT.list : HEIGHT.empty;
    box.style.minHeight = `${height}px`;
    fitNode(node);
  }

  /** Send the files to a new folder and choose it. */
  async function take(wish, files) {
    const { folder: name } = await post("/bespoke/folder", { name: wish });
    let sent = 0;
    for (const file of files) {
      const form = new FormData();
      form.append("image", file, file.name);
      for (const [key, value] of Object.entries({ type: "input", subfolder: name, overwrite: "true" })) form.append(key, value);
      const answer = await fetchApi("/upload/image", { method: "POST", body: form });
      if (!answer.ok) throw new Error(t("folder.refused", { file: file.name }));
      say(note, t("folder.sending", { sent: ++sent, all: files.length }));
    }
    await refreshLists();
    setValue(node, "folder", name);
    await look(true);
  }

  onFilesDropped(node, (entries) => {
    const wish = entries.find((entry) => entry.isDirectory)?.name ?? t("folder.new");
    filesIn(entries)
      .then((files) => (files.length ? take(wish, files) : say(note, t("folder.nothing"))))
      .catch((error) => say(note, error.message));
  });

  addPanel(node, "pictures", box, { height: () => height, grows: true });
  say(note, t("folder.empty"));
  watch(node, () => look());
}

/** The pictures and captions among dropped entries, folders looked into one level deep. */
async function filesIn(entries) {
  const found = [];
  const read = (entry) => new Promise((done, fail) => entry.file(done, fail));
  const some = (reader) => new Promise((done, fail) => reader.readEntries(done, fail));
  for (const entry of entries) {
    if (entry.isFile) found.push(entry);
    if (!entry.isDirectory) continue;
    const reader = entry.createReader();
    for (let batch = await some(reader); batch.length && found.length < MOST_FILES; batch = await some(reader)) {
      found.push(...batch.filter((inner) => inner.isFile));
    }
  }
  return Promise.all(found.filter((entry) => FILE.test(entry.name)).slice(0, MOST_FILES).map(read));
}
