// @ts-check
// The plot on the strength nodes: the noise schedule, the part of it that runs, where it starts and how much of the start is
// noise. It follows the widgets before anything is queued, as far as the page knows what they and the model will be. Else it
// says so, and shows the schedule that the node sent when it ran, until something before the node changes. No side effects:
// index.js attaches it.

import {
  addPanel,
  classOf,
  fetchJson,
  isLinked,
  modelChain,
  nodeKey,
  onEvent,
  onNodeChange,
  onQueue,
  pathsOf,
  readValue,
  ServerError,
  whileOnGraph,
  widgetOf,
  wiringOf,
} from "./comfy.js";
import { prepare, themeColours } from "./curve_plot.js";
import { el } from "./dom.js";
import { sigmaScale } from "./scales.js";
import { createTrueSchedules } from "./true_schedules.js";
import { digits, percent, t } from "./words.js";

/** @typedef {import("./comfy.js").Node} Node */
/** @typedef {[place: number, sigma: number]} Point place: in steps from the start of the schedule */
/**
 * @typedef {object} Schedule
 * @property {Point[]} whole the whole schedule
 * @property {Point[]} sigmas the part that runs
 * @property {number} run steps that run
 * @property {number} total steps of the schedule
 * @property {number} sigma noise level of the start
 * @property {number} timestep of the start
 * @property {number} noise share of the start's variance, 0 to 1
 * @property {string | null} model
 * @property {string} [report] in words
 */
/** @typedef {{ error: string }} Message shown instead of a schedule */
/** @typedef {{ size?: number, fill?: string, align?: CanvasTextAlign, room?: number }} TextOptions size and room in px */

const HEIGHT = 128; // px
const LINE = 15; // px
const WIDGETS = ["strength", "steps", "contract", "exact_steps", "scheduler", "sampler_name"];
const COLOURS = { skipped: "#7d8494", runs: "#ffab40", start: "#ff5c7a", picture: "#4c8dce" };
const FONT = "Inter, system-ui, sans-serif";

export const DIAL_NODES = new Set(["BespokePartialDenoise", "BespokeStrengthSigmas"]);

/** @type {import("./true_schedules.js").TrueSchedules} */
const trueSchedules = createTrueSchedules();

/** @typedef {{ values: Record<string, unknown>, schedule: Schedule }} Ran what a node sends */

/** @type {Map<Node, (ran: Ran) => void>} the nodes of the open workflow */
const dials = new Map();

/** Notice what the nodes send when they ran, and when the server has nothing to do. Called once. */
export function followServer() {
  onEvent("executed", (detail) => {
    const ran = readRan(detail?.output?.bespoke_schedule?.[0]);
    const path = String(detail?.display_node ?? detail?.node);
    for (const [node, react] of ran ? dials : []) if (ran && pathsOf(node).includes(path)) react(ran);
  });
  onEvent("status", (detail) => trueSchedules.remaining(detail?.exec_info?.queue_remaining ?? NaN));
}

/**
 * @param {string} problem
 */
function messageFor(problem) {
  if (problem === "muted") return t("dial.muted");
  return problem === "open" ? t("dial.open") : t("dial.unread");
}

/**
 * Add the plot to a node.
 * @param {Node} node
 */
export function attachDial(node) {
  const canvas = el("canvas", { role: "img" });
  const box = el("div", { class: "bespoke-dial", style: `min-height:${HEIGHT}px` }, canvas);
  /** @type {Schedule | Message | null} */
  let shown = null;
  let asked = "";
  let busy = false;

  /** @param {Schedule | Message} what */
  function show(what) {
    shown = what;
    canvas.setAttribute("aria-label", "error" in shown ? shown.error : String(shown.report));
    draw(canvas, shown);
  }

  async function refresh() {
    if (busy || !canvas.isConnected) return;
    const { query, isKnown, model } = requestOf(node);
    const ran = trueSchedules.find(nodeKey(node), signatureOf(node));
    if (ran.length) {
      asked = "";
      const last = /** @type {Schedule} */ (ran[ran.length - 1]);
      return show(ran.length > 1 && pathsOf(node).length > 1 ? { error: t("dial.several") } : { ...last, model: model ?? t("dial.ran") });
    }
    if (!isKnown) {
      asked = "";
      return show({ error: t("dial.unread") });
    }
    if (query === asked) return;
    [asked, busy] = [query, true];
    /** @type {Schedule | Message} */
    let answer;
    try {
      const json = await fetchJson(`/bespoke/schedule?${query}`);
      answer = json.problem ? { error: messageFor(json.problem) } : json;
    } catch (error) {
      if (error instanceof ServerError) answer = { error: error.message };
      else {
        answer = { error: t("dial.unanswered") };
        asked = ""; // the next change asks again
      }
    }
    busy = false;
    show(answer);
    if (asked) refreshSoon(); // the widgets may have changed meanwhile
  }

  addPanel(node, "schedule", box, { height: () => HEIGHT });
  const refreshSoon = onNodeChange(node, refresh);
  onQueue(node, "schedule", () => {
    trueSchedules.queue(nodeKey(node), signatureOf(node), knownValues(node), Date.now(), pathsOf(node).length);
  });
  whileOnGraph(node, () => {
    const sizes = new ResizeObserver(() => {
      draw(canvas, shown);
      refreshSoon(); // nothing is asked before the canvas is in the page
    });
    sizes.observe(canvas);
    dials.set(node, ({ values, schedule }) => {
      if (trueSchedules.ran(nodeKey(node), values, schedule)) refreshSoon();
    });
    return () => {
      sizes.disconnect();
      dials.delete(node);
    };
  });
}

// --- The request -----------------------------------------------------------------------------------------------------

/**
 * The query for a node's widgets and the model that is linked to it. isKnown: whether the widgets are. model: the file that
 * the model is loaded from, where the page knows it.
 * @param {Node} node
 * @returns {{ query: string, isKnown: boolean, model: string | null }}
 */
function requestOf(node) {
  const known = knownValues(node);
  const query = new URLSearchParams(Object.entries(known).map(([name, value]) => [name, String(value)]));
  const chain = modelChain(node);
  const steps = chain.steps.map(({ node: one, input, values }) => ({ type: classOf(one), input, values }));
  query.set("model", JSON.stringify(steps));
  // Without any link the default model is drawn. Else the server says whether it knows the nodes that are linked.
  if (chain.problem && (chain.problem !== "open" || isLinked(node, "model"))) query.set("problem", chain.problem);
  const isKnown = WIDGETS.every((name) => name in known || !widgetOf(node, name));
  const file = Object.entries(steps[0]?.values ?? {}).find(([name]) => name === "ckpt_name" || name === "unet_name");
  return { query: query.toString(), isKnown, model: chain.problem || !file ? null : String(file[1]) };
}

/** @param {Node} node */
const signatureOf = (node) => wiringOf(node, ["model", ...WIDGETS]);

/**
 * The values that the page knows.
 * @param {Node} node
 */
function knownValues(node) {
  const readings = WIDGETS.filter((name) => widgetOf(node, name)).map((name) => ({ name, ...readValue(node, name) }));
  return Object.fromEntries(readings.filter(({ isKnown }) => isKnown).map(({ name, value }) => [name, value]));
}

/**
 * What the node sent when it ran, or null where it is not as the node sends it.
 * @param {unknown} text
 * @returns {Ran | null}
 */
function readRan(text) {
  try {
    const { values, ...schedule } = JSON.parse(String(text));
    const isWhole = [schedule.whole, schedule.sigmas].every(Array.isArray) && typeof schedule.sigma === "number";
    return isWhole && values ? { values, schedule } : null;
  } catch {
    return null;
  }
}

// --- The plot --------------------------------------------------------------------------------------------------------

/**
 * Draw a schedule, or the message that is shown instead.
 * @param {HTMLCanvasElement} canvas
 * @param {Schedule | Message | null} schedule
 */
function draw(canvas, schedule) {
  const prepared = schedule && prepare(canvas);
  if (!prepared) return;
  const { context, width, height } = prepared;
  const { text, faint, border } = themeColours();
  /** @type {(words: string, x: number, y: number, options?: TextOptions) => void} */
  const write = (words, x, y, { size = 11, fill = text, align = "left", room = width - 16 } = {}) => {
    context.font = `${size}px ${FONT}`;
    context.fillStyle = fill;
    context.textAlign = align;
    let shown = words;
    while (shown.length > 4 && context.measureText(shown).width > room) shown = `${shown.slice(0, -2)}…`;
    context.fillText(shown, x, y);
  };
  if ("error" in schedule) {
    context.font = `11px ${FONT}`;
    const lines = wrapped(schedule.error, (words) => context.measureText(words).width <= width - 16);
    const top = height / 2 - (LINE * (lines.length - 1)) / 2 + 4;
    return lines.forEach((line, i) => write(line, 8, top + LINE * i));
  }

  const { run, total, sigma, timestep, noise, model } = schedule;
  const barLeft = width - 24;
  const box = { left: 8, right: barLeft - 14, top: 22, bottom: height - 18 };
  drawLines(context, schedule, box, border);
  const middle = box.bottom - (box.bottom - box.top) * noise;
  context.fillStyle = COLOURS.picture;
  context.fillRect(barLeft, box.top, 16, middle - box.top);
  context.fillStyle = COLOURS.runs;
  context.fillRect(barLeft, middle, 16, box.bottom - middle);

  const share = t("dial.noise", { share: percent(noise) });
  write(share, width - 8, 14, { fill: COLOURS.runs, align: "right" });
  const free = width - 24 - context.measureText(share).width;
  write(run ? t("dial.runs", { run, total }) : t("dial.runs.none"), box.left, 14, { room: free });
  const start = run ? t("dial.start", { sigma: level(sigma), t: level(timestep) }) : "";
  write(start, box.left, height - 5, { size: 10, fill: faint });
  context.font = `11px ${FONT}`;
  const room = width - 32 - context.measureText(start).width;
  write(model ?? t("dial.model"), width - 8, height - 5, { size: 10, fill: faint, align: "right", room });
}

/**
 * A text in lines that fit. Chinese and Japanese, which have no spaces, are broken between any two characters.
 * @param {string} text
 * @param {(line: string) => boolean} fits
 */
function wrapped(text, fits) {
  const pieces = text.match(/[\u3000-\u9fff\uff00-\uffef]|[^\s\u3000-\u9fff\uff00-\uffef]+\s*|\s+/g) ?? [];
  /** @type {string[]} */
  const lines = [];
  for (const piece of pieces) {
    const longer = (lines[lines.length - 1] ?? "") + piece;
    const closes = /^[、。，）]/.test(piece); // never begins a line
    if (lines.length && (fits(longer.trimEnd()) || closes)) lines[lines.length - 1] = longer;
    else lines.push(piece.trimStart());
  }
  return lines.map((line) => line.trimEnd());
}

/**
 * Draw the axes, the whole schedule, and the part that runs with its start.
 * @param {CanvasRenderingContext2D} context
 * @param {Schedule} schedule
 * @param {{ left: number, right: number, top: number, bottom: number }} box px
 * @param {string} border colour of the axes
 */
function drawLines(context, { whole, sigmas, run, total }, { left, right, top, bottom }, border) {
  const scale = sigmaScale([...whole, ...sigmas].map(([, sigma]) => sigma));
  /** @type {(point: Point) => [number, number]} */
  const position = ([place, sigma]) => [
    left + ((right - left) * place) / Math.max(total, 1),
    bottom - (bottom - top) * scale(sigma),
  ];
  /** @type {(points: Point[], colour: string, lineWidth: number) => void} */
  const drawPath = (points, colour, lineWidth) => {
    context.beginPath();
    points.forEach((point, i) => (i ? context.lineTo(...position(point)) : context.moveTo(...position(point))));
    context.strokeStyle = colour;
    context.lineWidth = lineWidth;
    context.lineJoin = "round";
    context.stroke();
  };
  /** @type {(points: Point[], colour: string, radius: number) => void} */
  const drawDots = (points, colour, radius) => {
    if (points.length > 60) return; // more dots would hide the line
    context.fillStyle = colour;
    for (const point of points) {
      context.beginPath();
      context.arc(...position(point), radius, 0, 2 * Math.PI);
      context.fill();
    }
  };

  context.strokeStyle = border;
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(left, top);
  context.lineTo(left, bottom + 0.5);
  context.lineTo(right, bottom + 0.5);
  context.stroke();
  drawPath(whole, COLOURS.skipped, 1.2);
  drawDots(whole, COLOURS.skipped, 1.6);
  if (!run) return;
  const [x, y] = position(sigmas[0]);
  context.strokeStyle = COLOURS.start;
  context.setLineDash([3, 3]);
  context.beginPath();
  context.moveTo(left, y);
  context.lineTo(x, y);
  context.lineTo(x, bottom);
  context.stroke();
  context.setLineDash([]);
  drawPath(sigmas, COLOURS.runs, 2.2);
  drawDots(sigmas, COLOURS.runs, 2.2);
  drawDots([sigmas[0]], COLOURS.start, 4);
}

/**
 * A noise level or timestep: three digits, from 100 on a whole number.
 * @param {number} value
 */
function level(value) {
  return Math.abs(value) >= 100 ? value.toFixed(0) : digits(value);
}
