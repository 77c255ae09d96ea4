// @ts-check
// The heatmap on the LoRA nodes: blocks as rows, projections as columns, darker where more of the LoRA has an effect. On
// the inject node every row and every column has a strength, which is written to the node's own widgets. No side effects:
// index.js attaches it.

import { strengthOf, withStrength } from "./block_pattern.js";
import {
  addPanel,
  classOf,
  fetchJson,
  fitNode,
  isLinked,
  linkedValue,
  onNodeChange,
  ServerError,
  setValue,
  sourceOf,
} from "./comfy.js";
import { el, setText, stopEvents } from "./dom.js";
import { digits, t } from "./words.js";

/** @typedef {import("./comfy.js").Node} Node */
/**
 * @typedef {object} Row
 * @property {string} block
 * @property {string[][]} names for each layer, every name of its block
 * @property {Record<string, number | null>} norms by column; null where unknown
 */
/** @typedef {{ columns: string[], rows: Row[] }} Table */
/**
 * The strength of a row or a column.
 * @typedef {object} Strength
 * @property {() => number | null} read null where the layers have different strengths, or where it comes by wire and is not known
 * @property {(value: number) => void} write
 * @property {string} input the widget that it is in
 */

const PROJECTIONS = ["query", "key", "value", "out"]; // widgets of the inject node
/** @type {Record<string, string>} */
const SHORT = { query: "q", key: "k", value: "v" };
const HEIGHT = { note: 40, head: 56, row: 19, most: 12 }; // px, px, px, rows
const LARGEST = 10; // strength
const STEP = 0.05;
const MOST_ROWS = 400;

/** @type {Record<string, boolean>} the LoRA nodes: whether their strengths can be set */
export const LORA_NODES = { BespokeInjectLora: true, BespokeInspectLora: false };

/**
 * Add the heatmap to a LoRA node.
 * @param {Node} node
 */
export function attachLoraDial(node) {
  const canSet = LORA_NODES[classOf(node)];
  const note = el("p", { class: "bespoke-note", role: "status" });
  const table = el("table", { class: "bespoke-heat", "aria-label": t("dial.lora") });
  const scroll = el("div", { class: "bespoke-heat-scroll" }, table);
  const box = el("section", { class: "bespoke-panel", "aria-label": t("dial.lora") }, note, scroll);
  stopEvents(box);
  let height = HEIGHT.note;
  /** @type {string | null | undefined} the file that is shown; null: none, undefined: to be asked again */
  let shown;
  let painted = ""; // the widgets' values that were painted
  /** @type {(() => void)[]} */
  let painters = [];

  // null where something is linked whose value is known only after it ran.
  const projectionStrength = (/** @type {string} */ name) => {
    const value = linkedValue(node, name);
    return value === undefined ? null : Number(value);
  };
  const blocks = () => String(linkedValue(node, "blocks") ?? "");
  const areBlocksKnown = () => linkedValue(node, "blocks") !== undefined;
  const linked = (/** @type {string} */ name) => isLinked(node, name);

  /**
   * @param {string} name of a widget
   * @param {string | number} value
   */
  function set(name, value) {
    setValue(node, name, value);
    paint();
  }

  /**
   * @param {string} column
   * @returns {Strength | null} null where the column has none of its own
   */
  function columnStrength(column) {
    if (!canSet || !PROJECTIONS.includes(column)) return null;
    return { read: () => projectionStrength(column), write: (value) => set(column, value), input: column };
  }

  /**
   * @param {Row} row
   * @returns {Strength | null} null where the row has none of its own
   */
  function rowStrength({ block, names }) {
    if (!canSet || !names.length) return null;
    const write = (/** @type {number} */ value) => set("blocks", withStrength(blocks(), block, value));
    return { read: () => (areBlocksKnown() ? strengthOf(blocks(), names) : null), write, input: "blocks" };
  }

  /**
   * A button with the name, which turns the strength off and on, and a field for its value.
   * @param {string} name
   * @param {Strength} strength
   */
  function dial(name, { read, write, input }) {
    const field = el("input", { type: "number", step: STEP, min: -LARGEST, max: LARGEST, "aria-label": t("dial.strength", { name }) });
    const onclick = () => write(read() === 0 ? 1 : 0);
    const button = el("button", { type: "button", "aria-pressed": "true", title: t("dial.press", { name }), onclick }, SHORT[name] ?? name);
    field.addEventListener("change", () => {
      const value = Number(field.value);
      if (field.value !== "" && Number.isFinite(value)) write(Math.max(-LARGEST, Math.min(LARGEST, value)));
      paint(true);
    });
    painters.push(() => {
      const value = read();
      field.disabled = button.disabled = linked(input);
      if (document.activeElement !== field) field.value = value === null ? "" : String(Number(value.toFixed(3)));
      field.placeholder = value === null ? (linked(input) ? "–" : t("dial.mixed")) : "";
      button.setAttribute("aria-pressed", String(value !== 0));
    });
    return [button, field];
  }

  /** @param {Table} content */
  function fill({ columns, rows }) {
    painters = [];
    const largest = Math.max(...rows.flatMap((row) => Object.values(row.norms).map((norm) => norm ?? 0)), 1e-12);
    const head = columns.map((column) => {
      const strength = columnStrength(column);
      const title = column === "rest" ? t("dial.rest") : null;
      return el("th", { scope: "col" }, ...(strength ? dial(column, strength) : [el("span", { title }, SHORT[column] ?? column)]));
    });
    const body = rows.map((row) => {
      const strength = rowStrength(row);
      const parts = strength ? dial(row.block, strength) : [el("span", {}, row.block)];
      const cells = columns.map((column) => cell(row, column, largest));
      return el("tr", {}, el("th", { scope: "row" }, ...parts), ...cells);
    });
    table.replaceChildren(el("thead", {}, el("tr", {}, el("td"), ...head)), el("tbody", {}, ...body));
    table.classList.toggle("bespoke-tall", rows.length > HEIGHT.most);
    resize(HEIGHT.head + HEIGHT.row * Math.min(rows.length, HEIGHT.most));
  }

  /**
   * A cell of the heatmap. Its colour is the norm times the strengths of its row and its column, relative to `largest`.
   * @param {Row} row
   * @param {string} column
   * @param {number} largest norm of the table
   */
  function cell(row, column, largest) {
    const made = el("td");
    const norm = row.norms[column];
    if (norm === undefined) return made;
    const [rowOf, columnOf] = [rowStrength(row), columnStrength(column)];
    const factor = () => (columnOf?.read() ?? 1) * (rowOf?.read() ?? 1);
    if (rowOf) {
      const onclick = () => linked("blocks") || rowOf.write(rowOf.read() === 0 ? 1 : 0);
      made.append(el("button", { type: "button", tabindex: "-1", "aria-hidden": "true", onclick }));
    }
    painters.push(() => {
      const effect = norm === null ? null : norm * factor();
      made.style.setProperty("--bespoke-heat", String(effect === null ? 0 : Math.min(1, Math.abs(effect) / largest)));
      made.dataset.sign = effect !== null && effect < 0 ? "minus" : "plus";
      const known = () => t("dial.cell", { block: row.block, column, norm: digits(Number(norm)), factor: digits(factor()) });
      const label = norm === null ? t("dial.unknown") : known();
      made.title = label;
      made.setAttribute("aria-label", label);
    });
    return made;
  }

  /** @param {number} to px */
  function resize(to) {
    height = to;
    box.style.minHeight = `${height}px`;
    fitNode(node);
  }

  /** @param {boolean} [anew] whether to paint although no value has changed */
  function paint(anew = false) {
    const inputs = [...PROJECTIONS, "blocks"];
    const values = JSON.stringify([...PROJECTIONS.map(projectionStrength), blocks(), areBlocksKnown(), inputs.map(linked)]);
    if (values === painted && !anew) return;
    painted = values;
    for (const painter of painters) painter();
  }

  /** @param {string} text */
  function showNote(text) {
    setText(note, text);
    note.hidden = !text;
  }

  /** @param {string} text */
  function showOnlyNote(text) {
    painters = [];
    table.replaceChildren();
    showNote(text);
    resize(HEIGHT.note);
  }

  /** Show the file that the node has now. */
  async function refresh() {
    const name = linked("lora") ? fileOn(node) : chosenFile(node);
    const file = typeof name === "string" ? name : null;
    if (file !== shown) {
      shown = file;
      const wired = ["lora", "lora_name", "name"].some(linked);
      if (!file || file === "none") showOnlyNote(t(wired ? "dial.wired" : "dial.none"));
      else if (!(await load(file))) return;
    }
    paint();
  }

  /**
   * Fill the table with a file's norms.
   * @param {string} file
   * @returns {Promise<boolean>} whether the table is to be painted
   */
  async function load(file) {
    try {
      const json = await fetchJson(`/bespoke/lora?${new URLSearchParams({ name: file })}`);
      if (shown !== file) return false; // another file was chosen meanwhile
      fill(readTable(json));
      showNote("");
      paint(true);
    } catch (error) {
      if (error instanceof ServerError) {
        if (shown === file) showOnlyNote(error.message);
        return false;
      }
      shown = undefined; // the server did not answer: the next change asks again
    }
    return true;
  }

  addPanel(node, "heatmap", box, { height: () => height });
  onNodeChange(node, refresh);
}

/**
 * The file of a linked LoRA where it comes from a loader with a list, else null.
 * @param {Node} node
 */
function fileOn(node) {
  const loader = sourceOf(node, "lora")?.node;
  return loader && classOf(loader) === "BespokeLoadLora" ? chosenFile(loader) : null;
}

/**
 * The file that a node's list names, null where it is known only once the nodes before it ran.
 * @param {Node} node
 */
function chosenFile(node) {
  const source = sourceOf(node, "lora_name")?.node;
  const saved = source && classOf(source) === "BespokeSaveLora"; // its first widget is a prefix, not the file
  return isLinked(node, "name") || saved ? null : linkedValue(node, "lora_name");
}

/**
 * The server's table with every field in its type, at most 400 rows.
 * @param {any} json
 * @returns {Table}
 */
function readTable(json) {
  const columns = [...PROJECTIONS, "rest"].filter((column) => Array.isArray(json.columns) && json.columns.includes(column));
  const number = (/** @type {unknown} */ value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
  const list = /** @type {any[]} */ (Array.isArray(json.rows) ? json.rows : []);
  const rows = list.slice(0, MOST_ROWS).map((row) => ({
    block: String(row.block).slice(0, 80),
    names: /** @type {unknown[][]} */ (Array.isArray(row.names) ? row.names : []).map((group) => group.map(String)),
    norms: Object.fromEntries(columns.filter((column) => column in row.norms).map((column) => [column, number(row.norms[column])])),
  }));
  return { columns, rows };
}
