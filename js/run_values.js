// @ts-check
// What the server sends about runs, checked field by field: numbers are finite or null, texts and lists are cut to a
// maximum, and file names contain no path. Pure: imports nothing, has no side effects.

const ID = /^[a-z][a-z-]{0,60}-[0-9a-f]{12}$/;
const PICTURE = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,120}\.(png|jpg|jpeg|webp)$/;
const PATH = /^[0-9A-Za-z_-]+(:[0-9A-Za-z_-]+)*$/;
const STATES = ["running", "finished", "kept", "interrupted", "failed"];
const MOST_STEPS = 2_000_000;
const MOST_POINTS = 20_000; // held-out scores
const MOST_SAMPLES = 2_000;
const MOST_TEXT = 300;
const MARGIN = 2; // standard errors that are noise, as on the server
const MOST_SETTINGS = 80;
export const BETWEEN_STEPS = new Set(["validation", "sample", "scoring"]); // phases that a run has before, between or after its steps
const PHASES = ["pictures", "captions", "loading", "measuring", ...BETWEEN_STEPS];
export const MOST_LABEL = 80; // characters of a run's name; the server has the same limit

/** @type {Record<string, string>} the technique of each class of trainer node */
export const TRAINERS = {
  BespokeTrainLora: "lora",
  BespokeTrainSlider: "slider",
  BespokeTrainTextualInversion: "textual inversion",
  BespokeTrainWordAndLora: "word and lora",
};

/** @param {unknown} type of a node */
export const isTrainer = (type) => typeof type === "string" && Object.hasOwn(TRAINERS, type);

/** @typedef {[step: number, file: string]} Sample */
/** @typedef {[step: number, loss: number]} Score a held-out score */
/** @typedef {import("./curve.js").Comparison} Comparison */
/**
 * @typedef {object} RunEvent
 * @property {string} id of the run
 * @property {string} node execution path of the trainer node, or ""
 * @property {string} workflow id of the workflow that was queued, or ""
 * @property {number | null} step
 * @property {number | null} steps that were asked for
 * @property {string | null} state
 * @property {string | null} image file name of a sample
 * @property {string} text
 * @property {number | null} loss
 * @property {number | null} leak with a held-out score
 * @property {Comparison | null} comparison with a held-out score
 * @property {number | null} loss_ema
 * @property {number | null} lr
 * @property {number | null} found_rate the learning rate, where the optimiser finds it
 * @property {number | null} images_per_second
 * @property {number | null} eta_s
 * @property {number | null} memory_mb
 * @property {number | null} seconds spent on steps
 */
/**
 * What a trainer node does outside its steps. kind: one of the server's phases; "waiting" in the queue; "next" while other
 * nodes of its prompt run; or "preparing". position: in the queue, from 1, or of the picture or caption; total: how many of
 * these there are. workflow: the id of the workflow that was queued, or "".
 * @typedef {{ kind: string, position: number, total: number, workflow: string }} Phase
 */
/**
 * @typedef {object} RunRecord a run's record, or its summary, which has no losses
 * @property {string} id
 * @property {string} technique
 * @property {string} base
 * @property {string} trigger
 * @property {string} prediction
 * @property {string} architecture
 * @property {string} resolution
 * @property {number} images
 * @property {number} trained parameters
 * @property {number} seconds
 * @property {number} started seconds since 1970
 * @property {string} state
 * @property {string} node execution path
 * @property {string} workflow id
 * @property {Record<string, string | number | boolean>} settings
 * @property {number[] | null} losses of every step; NaN where it was not finite
 * @property {number} steps_done
 * @property {Score | null} best
 * @property {Score[]} held_out
 * @property {Score[]} leak how far other prompts moved, as a multiple of how far the captions did
 * @property {Comparison[]} comparisons of held-out scores, where the run may stop by them
 * @property {Sample[]} samples
 * @property {string} label the name that the user gave it, or ""
 * @property {string} startLine the line before its first step, or ""
 * @property {boolean} live whether the server trains it now; false in a summary
 */
/**
 * @typedef {object} RunPage
 * @property {false} [unchanged]
 * @property {RunRecord[]} runs
 * @property {number} total
 * @property {number} page
 * @property {number} pages
 * @property {string} stamp
 * @property {string[]} unread ids of runs whose record cannot be read
 */

/**
 * The number, or null where it is no finite number.
 * @param {unknown} value
 */
export function finite(value) {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

/**
 * A string, number or boolean as a text of at most `most` characters; "" for anything else.
 * @param {unknown} value
 * @param {number} [most]
 */
export function text(value, most = MOST_TEXT) {
  if (typeof value === "number" || typeof value === "boolean") return String(value);
  return typeof value === "string" ? value.slice(0, most) : "";
}

/**
 * @param {unknown} value
 * @returns {value is string}
 */
export function isRunId(value) {
  return typeof value === "string" && ID.test(value);
}

/**
 * The value if it is a picture's file name without a path, else null.
 * @param {unknown} value
 */
function sampleFile(value) {
  return typeof value === "string" && PICTURE.test(value) && !value.includes("..") ? value : null;
}

/**
 * The number of the prompt that a sample's file shows, from 0: 000040.png is the first one's, 000040_02.png the second's.
 * @param {string} file
 */
export function sampleRow(file) {
  const found = /_(\d+)\.\w+$/.exec(file);
  return found ? Math.max(0, Number(found[1]) - 1) : 0;
}

/**
 * The prompts of a trainer's sample_prompt, without their options.
 * @param {unknown} value
 */
export function samplePrompts(value) {
  const lines = text(value, 2000).split(/\r\n|\r|\n/).map((line) => line.trim()).filter(Boolean);
  return lines.map((line) => line.replace(/(^|\s)--[A-Za-z][\w-]*(\s.*)?$/, "").trim());
}

/**
 * The value if it is a number of steps, else null.
 * @param {unknown} value
 */
function step(value) {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= 1e9 ? value : null;
}

/**
 * The entries [step, value] of a list whose step and value can be used, of the first `most` entries.
 * @template Value
 * @param {unknown} list
 * @param {number} most
 * @param {(value: unknown) => Value | null} read
 * @returns {[number, Value][]}
 */
function pairs(list, most, read) {
  if (!Array.isArray(list)) return [];
  /** @type {[number, Value][]} */
  const out = [];
  for (const item of list.slice(0, most)) {
    if (!Array.isArray(item)) continue;
    const [at, value] = [step(item[0]), read(item[1])];
    if (at !== null && value !== null) out.push([at, value]);
  }
  return out;
}

/**
 * The fields of an event, or null where it is about no run.
 * @param {any} detail
 * @returns {RunEvent | null}
 */
export function readEvent(detail) {
  if (!detail || typeof detail !== "object" || !isRunId(detail.run_id)) return null;
  return {
    id: detail.run_id,
    node: pathOf(detail.node_id),
    workflow: text(detail.workflow, 80),
    step: step(detail.step),
    steps: step(detail.steps),
    state: STATES.includes(detail.state) ? detail.state : null,
    image: sampleFile(detail.image),
    text: text(detail.text, 400),
    loss: finite(detail.loss),
    leak: finite(detail.leak),
    comparison: readComparison(detail.comparison),
    loss_ema: finite(detail.loss_ema),
    lr: finite(detail.lr),
    found_rate: finite(detail.found_rate),
    images_per_second: finite(detail.images_per_second),
    eta_s: finite(detail.eta_s),
    memory_mb: finite(detail.memory_mb),
    seconds: finite(detail.seconds),
  };
}

/**
 * A phase and its node, or null where the event is none.
 * @param {any} detail
 * @returns {{ node: string, phase: Phase } | null}
 */
export function readPhase(detail) {
  const node = pathOf(detail?.node_id);
  if (!node || !PHASES.includes(detail.phase)) return null;
  const total = step(detail.total) ?? 0;
  const position = Math.min(total, (step(detail.done) ?? 0) + 1);
  return { node, phase: { kind: detail.phase, position, total, workflow: text(detail.workflow, 80) } };
}

/**
 * The execution path of a node, or "".
 * @param {unknown} value
 */
function pathOf(value) {
  return typeof value === "string" && PATH.test(value) ? value : "";
}

/**
 * A run's record or summary with every field in its type, or null where it is no record.
 * @param {any} json
 * @returns {RunRecord | null}
 */
export function readRecord(json) {
  if (!json || typeof json !== "object" || !isRunId(json.id)) return null;
  const losses = Array.isArray(json.losses) ? json.losses.slice(0, MOST_STEPS) : null;
  return {
    id: json.id,
    technique: text(json.technique, 40),
    base: text(json.base),
    trigger: text(json.trigger),
    prediction: text(json.prediction, 40),
    architecture: text(json.architecture, 80),
    resolution: text(json.resolution, 40),
    images: finite(json.images) ?? 0,
    trained: finite(json.trained) ?? 0,
    seconds: finite(json.seconds) ?? 0,
    started: finite(json.started) ?? 0,
    state: STATES.includes(json.state) ? json.state : "failed",
    node: pathOf(json.node),
    workflow: text(json.workflow, 80),
    settings: readSettings(json.settings),
    // A loss that is not finite stays as a gap, so that every loss keeps its step.
    losses: losses && losses.map((/** @type {unknown} */ loss) => finite(loss) ?? NaN),
    steps_done: step(json.steps_done) ?? losses?.length ?? 0,
    best: pairs([json.best], 1, finite)[0] ?? null,
    held_out: pairs(json.held_out, MOST_POINTS, finite),
    leak: readLeak(json.leak),
    comparisons: readComparisons(json.comparisons),
    samples: pairs(json.samples, MOST_SAMPLES, sampleFile),
    label: text(json.label, MOST_LABEL),
    startLine: text(json.start_line, 400),
    live: json.live === true,
  };
}

/**
 * The leak of each row [step, change of other prompts, change of the captions], as the server's `LeakPoint.leak`.
 * @param {unknown} rows
 */
function readLeak(rows) {
  const list = Array.isArray(rows) ? rows.filter(Array.isArray) : [];
  const leaks = list.map(([at, other, own]) => [at, other === 0 ? 0 : own > 0 && other > 0 ? Math.sqrt(other / own) : NaN]);
  return pairs(leaks, MOST_POINTS, finite);
}

/**
 * A row [step, lowest, difference, standard error, ...], or null where it is none.
 * @param {unknown} row
 * @returns {Comparison | null}
 */
function readComparison(row) {
  if (!Array.isArray(row)) return null;
  const [at, lowest, difference, error] = [step(row[0]), step(row[1]), finite(row[2]), finite(row[3])];
  if (at === null || lowest === null || difference === null || error === null || error < 0) return null;
  return { step: at, lowest, difference, margin: MARGIN * error };
}

/**
 * @param {unknown} rows
 * @returns {Comparison[]}
 */
function readComparisons(rows) {
  if (!Array.isArray(rows)) return [];
  return rows.slice(0, MOST_POINTS).map(readComparison).filter((row) => row !== null);
}

/**
 * @param {unknown} settings
 * @returns {RunRecord["settings"]}
 */
function readSettings(settings) {
  if (!settings || typeof settings !== "object") return {};
  const simple = Object.entries(settings)
    .slice(0, MOST_SETTINGS)
    .filter(([, value]) => ["string", "number", "boolean"].includes(typeof value));
  return Object.fromEntries(simple.map(([name, value]) => [name.slice(0, 60), typeof value === "string" ? value.slice(0, 2000) : value]));
}

/**
 * A page of the list of runs, or { unchanged: true } where it is as the page that has the stamp that was sent.
 * @param {any} json
 * @returns {RunPage | { unchanged: true }}
 */
export function readPage(json) {
  if (json?.unchanged === true) return { unchanged: true };
  const count = (/** @type {unknown} */ value) => step(value) ?? 0;
  const live = Array.isArray(json?.live) ? json.live : [];
  const runs = (Array.isArray(json?.runs) ? json.runs : []).map(readRecord).filter((/** @type {unknown} */ run) => run !== null);
  // A record that says "running" and is not trained is that of a server that was killed.
  for (const run of runs) if (run.state === "running" && !live.includes(run.id)) run.state = "cut off";
  return {
    runs,
    total: count(json?.total),
    page: count(json?.page),
    pages: count(json?.pages),
    stamp: text(json?.stamp, 100),
    unread: (Array.isArray(json?.unread) ? json.unread : []).filter(isRunId),
  };
}
