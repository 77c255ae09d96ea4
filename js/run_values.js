// What the server says of a run, read as if a stranger had written it: numbers are finite or nothing, text is cut,
// lists end, names of files are names of files. No side effects.

const ID = /^[a-z][a-z-]{0,60}-[0-9a-f]{12}$/;
const PICTURE = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,120}\.(png|jpg|jpeg|webp)$/;
const PATH = /^[0-9A-Za-z_-]+(:[0-9A-Za-z_-]+)*$/;
export const STATES = ["running", "finished", "kept", "interrupted", "failed"];
const MOST_STEPS = 2_000_000;
const MOST_POINTS = 20_000; // held-out scores
const MOST_SAMPLES = 2_000;
const MOST_TEXT = 300;
const MOST_SETTINGS = 80;

/** The number, or null where it is none or not finite. */
export function finite(value) {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

/** The text, cut; what is no text or number becomes "". */
export function text(value, most = MOST_TEXT) {
  if (typeof value === "number" || typeof value === "boolean") return String(value);
  return typeof value === "string" ? value.slice(0, most) : "";
}

export function isRunId(value) {
  return typeof value === "string" && ID.test(value);
}

/** A picture's file name as a sample may have it, or null. */
export function sampleFile(value) {
  return typeof value === "string" && PICTURE.test(value) && !value.includes("..") ? value : null;
}

function step(value) {
  return Number.isInteger(value) && value >= 0 && value <= 1e9 ? value : null;
}

function pairs(list, most, read) {
  if (!Array.isArray(list)) return [];
  const out = [];
  for (const item of list.slice(0, most)) {
    const found = Array.isArray(item) && item.length >= 2 && step(item[0]) !== null ? read(item) : null;
    if (found) out.push(found);
  }
  return out;
}

/** The fields of an event that can be used, or null where it is about no run. */
export function readEvent(detail) {
  if (!detail || typeof detail !== "object" || !isRunId(detail.run_id)) return null;
  const numbers = ["loss", "loss_ema", "lr", "images_per_second", "eta_s", "memory_mb"];
  return {
    id: detail.run_id,
    node: typeof detail.node_id === "string" && PATH.test(detail.node_id) ? detail.node_id : "",
    step: step(detail.step),
    steps: step(detail.steps),
    best: detail.best === true,
    state: STATES.includes(detail.state) ? detail.state : null,
    image: sampleFile(detail.image),
    text: text(detail.text, 400),
    ...Object.fromEntries(numbers.map((name) => [name, finite(detail[name])])),
  };
}

/** A run's record or summary with every field in its type, or null where it is no record. */
export function readRecord(json) {
  if (!json || typeof json !== "object" || !isRunId(json.id)) return null;
  const settings = json.settings && typeof json.settings === "object" ? Object.entries(json.settings) : [];
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
    node: typeof json.node === "string" && PATH.test(json.node) ? json.node : "",
    workflow: text(json.workflow, 80),
    settings: Object.fromEntries(
      settings
        .slice(0, MOST_SETTINGS)
        .filter(([, value]) => ["string", "number", "boolean"].includes(typeof value))
        .map(([name, value]) => [name.slice(0, 60), typeof value === "string" ? value.slice(0, 2000) : value]),
    ),
    // What is not finite stays in its place as a gap, so that every loss keeps its step.
    losses: Array.isArray(json.losses) ? json.losses.slice(0, MOST_STEPS).map((loss) => finite(loss) ?? NaN) : null,
    steps_done: step(json.steps_done) ?? (Array.isArray(json.losses) ? Math.min(json.losses.length, MOST_STEPS) : 0),
    best: pairs([json.best], 1, ([at, loss]) => (finite(loss) === null ? null : [at, loss]))[0] ?? null,
    held_out: pairs(json.held_out, MOST_POINTS, ([at, loss]) => (finite(loss) === null ? null : [at, loss])),
    samples: pairs(json.samples, MOST_SAMPLES, ([at, file]) => (sampleFile(file) ? [at, file] : null)),
  };
}

/** A page of the list: { unchanged: true }, or { runs, total, page, pages, stamp }. */
export function readPage(json) {
  if (json?.unchanged === true) return { unchanged: true };
  const count = (value) => step(value) ?? 0;
  return {
    runs: (Array.isArray(json?.runs) ? json.runs : []).map(readRecord).filter(Boolean),
    total: count(json?.total),
    page: count(json?.page),
    pages: count(json?.pages),
    stamp: text(json?.stamp, 100),
  };
}
