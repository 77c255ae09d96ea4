// @ts-check
// The header of a safetensors file, cut to what says how a LoRA was trained, and which of a trainer's widgets take the
// values that the server found in it. Pure: imports nothing, has no side effects.

/** @typedef {{ metadata: Record<string, string>, shapes: Record<string, number[]> }} Header */
/** @typedef {string | number | boolean} Value */
/** @typedef {{ program: string, values: Record<string, unknown>, notes: string[] }} FileSettings as the server sends them */

export const LENGTH_BYTES = 8; // at the start of the file: the length of its header
export const MOST_HEADER = 25_000_000; // bytes, as the server has it
export const MOST_SENT = 900_000; // bytes of JSON; the server takes 1,000,000
const MOST_NOTES = 120;
const NOT_NEEDED = new Set(["ss_tag_frequency", "ss_bucket_info", "prompt", "workflow", "modelspec.thumbnail"]);

/**
 * The length in bytes of a file's header, or null where the file is none.
 * @param {ArrayBuffer} start the first 8 bytes
 */
export function headerLength(start) {
  if (start.byteLength < LENGTH_BYTES) return null;
  const length = Number(new DataView(start).getBigUint64(0, true));
  return length > 0 && length <= MOST_HEADER ? length : null;
}

/**
 * The texts and shapes of a header, or null where it is none. What no trainer's settings are in is left out, and then, where
 * the rest is still too long to be sent, the shapes.
 * @param {string} json
 * @returns {Header | null}
 */
export function readHeader(json) {
  /** @type {unknown} */
  let header;
  try {
    header = JSON.parse(json);
  } catch {
    return null;
  }
  if (!isObject(header)) return null;
  const { __metadata__: meta, ...tensors } = header;
  const texts = Object.entries(isObject(meta) ? meta : {}).filter(([name, value]) => typeof value === "string" && !NOT_NEEDED.has(name));
  const shapes = Object.entries(tensors).map(([name, tensor]) => [name, isObject(tensor) ? tensor.shape : null]);
  const found = { metadata: Object.fromEntries(texts), shapes: Object.fromEntries(shapes.filter(([, shape]) => Array.isArray(shape))) };
  return sizeOf(found) <= MOST_SENT ? found : { ...found, shapes: {} };
}

/** @param {unknown} value */
const sizeOf = (value) => new TextEncoder().encode(JSON.stringify(value)).length;

/**
 * @param {unknown} value
 * @returns {value is Record<string, any>}
 */
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * The server's answer with every field in its type.
 * @param {any} json
 * @returns {FileSettings}
 */
export function readAnswer(json) {
  const notes = Array.isArray(json?.notes) ? json.notes.slice(0, MOST_NOTES) : [];
  return {
    program: typeof json?.program === "string" ? json.program : "",
    values: isObject(json?.values) ? json.values : {},
    notes: notes.filter((/** @type {unknown} */ note) => typeof note === "string"),
  };
}

/**
 * What the values change: those of known widgets, in the widgets' order, of the type that the widget has, and of its list.
 * same: widgets that have the value already. wired: widgets whose value comes over a link.
 * @param {Record<string, unknown>} values
 * @param {{ name: string, kind: string | null, choices: unknown[] | null, value: unknown }[]} widgets
 * @param {(name: string) => boolean} isWired
 * @returns {{ changes: [string, Value][], same: string[], wired: string[] }}
 */
export function changesOf(values, widgets, isWired) {
  /** @type {[string, Value][]} */
  const changes = [];
  /** @type {string[]} */
  const same = [];
  /** @type {string[]} */
  const wired = [];
  for (const { name, kind, choices, value: before } of widgets) {
    const value = Object.hasOwn(values, name) ? values[name] : undefined;
    if (!fits(value, kind, choices)) continue;
    if (isWired(name)) wired.push(name);
    else if (value === before) same.push(name);
    else changes.push([name, /** @type {Value} */ (value)]);
  }
  return { changes, same, wired };
}

/**
 * @param {unknown} value
 * @param {string | null} kind
 * @param {unknown[] | null} choices
 */
function fits(value, kind, choices) {
  if (typeof value !== kind || (typeof value === "number" && !Number.isFinite(value))) return false;
  return !choices || choices.includes(value);
}
