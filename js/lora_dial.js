// The heatmap on the LoRA nodes: blocks down, projections across, the darker the more of the LoRA acts there. On the
// inject node every row and every column has its strength, which writes the node's own widgets. No side effects:
// index.js attaches it.

import { addPanel, classOf, fetchApi, fitNode, isWired, setValue, sourceOf, valueOf, watch, wiredValue } from "./comfy.js";
import { el, keepInside, say } from "./dom.js";
import { t } from "./words.js";

const PROJECTIONS = ["query", "key", "value", "out"]; // the widgets of the inject node
const HEIGHT = { note: 40, head: 56, row: 19, most: 12 }; // px, px, px, rows
const LARGEST = 10; // a strength
const STEP = 0.05;

/** The LoRA nodes: whether their strengths can be set. */
export const LORA_NODES = { BespokeInjectLora: true, BespokeInspectLora: false };

/** Add the heatmap to a LoRA node. */
export function attachLoraDial(node) {
  const canSet = LORA_NODES[classOf(node)];
  const note = el("p", { class: "bespoke-note", role: "status" });
  const table = el("table", { class: "bespoke-heat", "aria-label": t("dial.lora") });
  const scroll = el("div", { class: "bespoke-heat-scroll" }, table);
  const box = el("section", { class: "bespoke-panel", "aria-label": t("dial.lora") }, note, scroll);
  keepInside(box);
  let height = HEIGHT.note;
  let asked; // the file that was looked for, null where it is not known
  let seen = ""; // the widgets' values that were painted
  let painters = [];

  const numberOf = (name) => Number(valueOf(node, name) ?? 1);
  const blocks = () => String(valueOf(node, "blocks") ?? "");
  const wired = (name) => isWired(node, name);

  function set(name, value) {
    setValue(node, name, value);
    paint();
  }

  /** The strength as a field and as a switch: pressing the name turns it off and on. input: the one that it writes. */
  function dial(name, read, write, input) {
    const field = el("input", { type: "number", step: STEP, min: -LARGEST, max: LARGEST, "aria-label": t("dial.strength", { name }) });
    const press = () => write(read() === 0 ? 1 : 0);
    const button = el("button", { type: "button", "aria-pressed": "true", title: t("dial.press", { name }), onclick: press }, short(name));
    field.addEventListener("change", () => {
      const value = Number(field.value);
      if (field.value !== "" && Number.isFinite(value)) write(Math.max(-LARGEST, Math.min(LARGEST, value)));
      paint(true);
    });
    painters.push(() => {
      const value = read();
      field.disabled = button.disabled = wired(input);
      if (document.activeElement !== field) field.value = value === null ? "" : String(Number(value.toFixed(3)));
      field.placeholder = value === null ? t("dial.mixed") : "";
      button.setAttribute("aria-pressed", String(value !== 0));
    });
    return [button, field];
  }

  function fill({ columns, rows }) {
    painters = [];
    const largest = Math.max(...rows.flatMap((row) => Object.values(row.norms).map((norm) => norm ?? 0)), 1e-12);
    const head = columns.map((column) => {
      const owned = canSet && PROJECTIONS.includes(column);
      const parts = owned ? dial(column, () => numberOf(column), (value) => set(column, value), column) : [el("span", { title: column === "rest" ? t("dial.rest") : null }, short(column))];
      return el("th", { scope: "col" }, ...parts);
    });
    const body = rows.map((row) => {
      const owned = canSet && row.names.length > 0;
      const write = (value) => set("blocks", withBlock(blocks(), row.block, value));
      const parts = owned ? dial(row.block, () => strengthOf(blocks(), row.names), write, "blocks") : [el("span", {}, row.block)];
      const cells = columns.map((column) => {
        const norm = row.norms[column];
        const cell = el("td");
        if (norm === undefined) return cell;
        const factor = () => (canSet ? (PROJECTIONS.includes(column) ? numberOf(column) : 1) * (row.names.length ? (strengthOf(blocks(), row.names) ?? 1) : 1) : 1);
        const press = () => wired("blocks") || write(strengthOf(blocks(), row.names) === 0 ? 1 : 0);
        if (owned) cell.append(el("button", { type: "button", tabindex: "-1", "aria-hidden": "true", onclick: press }));
        painters.push(() => {
          const acts = norm === null ? null : norm * factor();
          cell.style.setProperty("--bespoke-heat", acts === null ? 0 : Math.min(1, Math.abs(acts) / largest));
          cell.dataset.sign = acts !== null && acts < 0 ? "minus" : "plus";
          const words = norm === null ? t("dial.unknown") : t("dial.cell", { block: row.block, column, norm: digits(norm), factor: digits(factor()) });
          cell.title = words;
          cell.setAttribute("aria-label", words);
        });
        return cell;
      });
      return el("tr", {}, el("th", { scope: "row" }, ...parts), ...cells);
    });
    table.replaceChildren(el("thead", {}, el("tr", {}, el("td"), ...head)), el("tbody", {}, ...body));
    table.classList.toggle("bespoke-tall", rows.length > HEIGHT.most);
    resize(HEIGHT.head + HEIGHT.row * Math.min(rows.length, HEIGHT.most));
  }

  function resize(to) {
    height = to;
    box.style.minHeight = `${height}px`;
    fitNode(node);
  }

  function paint(anew = false) {
    const now = JSON.stringify([...PROJECTIONS.map(numberOf), blocks(), [...PROJECTIONS, "blocks"].map(wired)]);
    if (now === seen && !anew) return;
    seen = now;
    for (const work of painters) work();
  }

  function tell(words) {
    say(note, words);
    note.hidden = !words;
  }

  function empty(words) {
    painters = [];
    table.replaceChildren();
    tell(words);
    resize(HEIGHT.note);
  }

  async function look() {
    const name = wired("lora") ? fileOn(node) : (wiredValue(node, "lora_name") ?? null);
    if (name !== asked) {
      asked = name;
      if (!name || name === "none") empty(t(wired("lora") || wired("lora_name") ? "dial.wired" : "dial.none"));
      else {
        try {
          const answer = await fetchApi(`/bespoke/lora?${new URLSearchParams({ name })}`);
          const said = await answer.json();
          if (asked !== name) return;
          if (!answer.ok || said.error) return empty(typeof said.error === "string" ? said.error.slice(0, 300) : t("runs.status", { status: answer.status }));
          fill(readTable(said));
          tell("");
          paint(true);
        } catch {
          asked = undefined; // the server did not answer: asked again
        }
      }
    }
    paint();
  }

  addPanel(node, "heatmap", box, { height: () => height });
  watch(node, look);
}

/** The file behind a wired LoRA, where it comes from a loader with a list; else null. */
function fileOn(node) {
  const from = sourceOf(node, "lora")?.node;
  return from && classOf(from) === "BespokeLoadLora" ? (wiredValue(from, "lora_name") ?? null) : null;
}

/** The server's table with every field in its type; at most 400 rows. */
function readTable(said) {
  const columns = [...PROJECTIONS, "rest"].filter((column) => Array.isArray(said.columns) && said.columns.includes(column));
  const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
  const rows = (Array.isArray(said.rows) ? said.rows : []).slice(0, 400).map((row) => ({
    block: String(row.block).slice(0, 80),
    names: (Array.isArray(row.names) ? row.names : []).map((group) => group.map(String)),
    norms: Object.fromEntries(columns.filter((column) => column in row.norms).map((column) => [column, number(row.norms[column])])),
  }));
  return { columns, rows };
}

// --- The pattern of blocks, as the server reads it -------------------------------------------------------------------

/** The terms of a pattern such as `down.1, mid, up.*:0.5`; what is no term is left out, and the node says so. */
export function terms(pattern) {
  const found = [];
  for (const part of pattern.split(/[,;\n]/)) {
    const [name, strength] = part.split(/:(.*)/s).map((piece) => piece.trim());
    const value = strength === undefined ? 1 : strength === "" ? NaN : Number(strength);
    if (name && Number.isFinite(value)) found.push({ name: name.toLowerCase(), value });
  }
  return found;
}

function fits(name, names) {
  const [, stem, low, high] = name.match(/^(.*?)(\d+)-(\d+)$/) ?? [null, name];
  const literal = stem.replace(/[.+?^${}()|[\]\\]/g, "\\$&").replaceAll("*", ".*");
  const expression = new RegExp(`^${literal}${low === undefined ? "(?:\\..*)?" : "(\\d+)"}$`);
  return names.some((one) => {
    const found = one.match(expression);
    return found && (low === undefined || (Number(low) <= Number(found[1]) && Number(found[1]) <= Number(high)));
  });
}

/** A row's strength, or null where its layers have different ones. names: [[every name of a layer's block], ...]. */
export function strengthOf(pattern, names) {
  const list = terms(pattern);
  if (!list.length) return 1;
  const each = names.map((group) => list.findLast(({ name }) => fits(name, group))?.value ?? 0);
  return each.every((value) => value === each[0]) ? each[0] : null;
}

/** The pattern with a block's strength set, all that was written before kept. */
export function withBlock(pattern, block, value) {
  const written = pattern.trim();
  const kept = (written || "*").split(/[,;\n]/).map((part) => part.trim()).filter((part) => part && part.split(":")[0].trim().toLowerCase() !== block);
  const term = value === 1 ? block : `${block}:${Number(value.toFixed(3))}`;
  const all = [...kept, term];
  const plain = all.every((part) => terms(part)[0]?.value === 1) && all.some((part) => part === "*");
  return plain ? "" : all.join(", ");
}

function short(name) {
  return { query: "q", key: "k", value: "v", out: "out" }[name] ?? name;
}

function digits(value) {
  return value === null ? "–" : String(Number(value.toPrecision(3)));
}
