// @ts-check
// The plot on the strength nodes: the noise schedule, the part of it that runs, where it starts and how much of the start is
// noise. It follows the widgets before anything is queued. No side effects: index.js attaches it.

import { addPanel, classOf, fetchJson, modelChain, onNodeChange, ServerError, valueOf, valuesOf, whileOnGraph } from "./comfy.js";
import { prepare, themeColours } from "./curve_plot.js";
import { el } from "./dom.js";
import { sigmaScale } from "./scales.js";
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
/** @typedef {{ size?: number, fill?: string, align?: CanvasTextAlign, room?: number }} TextOptions size and room in px */

const HEIGHT = 128; // px
const WIDGETS = ["strength", "steps", "contract", "exact_steps", "scheduler", "sampler_name"];
const COLOURS = { skipped: "#7d8494", runs: "#ffab40", start: "#ff5c7a", picture: "#4c8dce" };
const FONT = "Inter, system-ui, sans-serif";

export const DIAL_NODES = new Set(["BespokePartialDenoise", "BespokeStrengthSigmas"]);

/**
 * Add the plot to a node.
 * @param {Node} node
 */
export function attachDial(node) {
  const canvas = el("canvas", { role: "img" });
  const box = el("div", { class: "bespoke-dial", style: `min-height:${HEIGHT}px` }, canvas);
  /** @type {Schedule | { error: string } | null} */
  let shown = null;
  let asked = "";
  let busy = false;

  async function refresh() {
    if (busy || !canvas.isConnected) return;
    const query = queryOf(node);
    if (query === asked) return;
    [asked, busy] = [query, true];
    try {
      shown = /** @type {Schedule} */ (await fetchJson(`/bespoke/schedule?${query}`));
    } catch (error) {
      if (error instanceof ServerError) shown = { error: error.message };
      else {
        shown = { error: t("dial.unanswered") };
        asked = ""; // the next change asks again
      }
    }
    busy = false;
    canvas.setAttribute("aria-label", "error" in shown ? shown.error : String(shown.report));
    draw(canvas, shown);
    if (asked) refreshSoon(); // the widgets may have changed meanwhile
  }

  addPanel(node, "schedule", box, { height: () => HEIGHT });
  const refreshSoon = onNodeChange(node, refresh);
  whileOnGraph(node, () => {
    const sizes = new ResizeObserver(() => {
      draw(canvas, shown);
      refreshSoon(); // nothing is asked before the canvas is in the page
    });
    sizes.observe(canvas);
    return () => sizes.disconnect();
  });
}

// --- The request -----------------------------------------------------------------------------------------------------

/**
 * The query for a node's widgets and the model that is linked to it.
 * @param {Node} node
 */
function queryOf(node) {
  const query = new URLSearchParams();
  for (const name of WIDGETS) {
    const value = valueOf(node, name);
    if (value !== undefined) query.set(name, String(value));
  }
  const chain = modelChain(node).map((one) => ({ type: classOf(one), values: valuesOf(one) }));
  query.set("model", JSON.stringify(chain.filter(({ type }) => /Loader|ModelSampling|ModelNoiseScale/.test(type))));
  return query.toString();
}

// --- The plot --------------------------------------------------------------------------------------------------------

/**
 * Draw a schedule, or the error that came instead.
 * @param {HTMLCanvasElement} canvas
 * @param {Schedule | { error: string } | null} schedule
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
  if ("error" in schedule) return write(schedule.error, 8, height / 2, { fill: faint });

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
  context.font = `10px ${FONT}`;
  const room = width - 32 - context.measureText(start).width;
  write(model ?? t("dial.model"), width - 8, height - 5, { size: 10, fill: faint, align: "right", room });
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
