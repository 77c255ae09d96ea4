// The small picture on the strength nodes: the noise schedule, the part of it that runs, where it starts and how
// much of the start is noise. It moves with the slider, before anything is queued. No side effects: index.js attaches it.

import { addPanel, classOf, fetchApi, modelChain, valueOf, valuesOf, watch, whileOnGraph } from "./comfy.js";
import { prepare, themeColours } from "./curve_plot.js";
import { el } from "./dom.js";
import { t } from "./words.js";

const HEIGHT = 128;
const WIDGETS = ["strength", "steps", "contract", "exact_steps", "scheduler", "sampler_name"];
const COLOURS = { skipped: "#7d8494", runs: "#ffab40", start: "#ff5c7a", picture: "#4c8dce" };
const FONT = "Inter, system-ui, sans-serif";

export const DIAL_NODES = new Set(["BespokePartialDenoise", "BespokeStrengthSigmas"]);

/** Add the picture to a node. */
export function attachDial(node) {
  const canvas = el("canvas", { role: "img" });
  const box = el("div", { class: "bespoke-dial", style: `min-height:${HEIGHT}px` }, canvas);
  let answer = null;
  let asked = "";
  let busy = false;

  async function refresh() {
    if (busy || !canvas.isConnected) return;
    const query = queryOf(node);
    if (query === asked) return;
    [asked, busy] = [query, true];
    try {
      answer = await (await fetchApi(`/bespoke/schedule?${query}`)).json();
    } catch {
      answer = { error: t("dial.unanswered") };
      asked = ""; // and so asked again
    }
    busy = false;
    canvas.setAttribute("aria-label", answer.report ?? answer.error);
    draw(canvas, answer);
    if (asked) again(); // the widgets may have changed meanwhile
  }

  addPanel(node, "schedule", box, { height: () => HEIGHT });
  const again = watch(node, refresh);
  whileOnGraph(node, () => {
    const sizes = new ResizeObserver(() => {
      draw(canvas, answer);
      again(); // not asked for before the canvas was in the page
    });
    sizes.observe(canvas);
    return () => sizes.disconnect();
  });
}

// --- What is asked ---------------------------------------------------------------------------------------------------

/** The query for a node's present widgets and the model that is wired to it. */
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

// --- The picture -----------------------------------------------------------------------------------------------------

/** Draw an answer of the route, { whole, sigmas, run, total, sigma, timestep, noise, model } or { error }. */
export function draw(canvas, answer) {
  const ready = answer && prepare(canvas);
  if (!ready) return;
  const { pen, width, height } = ready;
  const { text, faint, border } = themeColours();
  const write = (words, x, y, { size = 11, fill = text, align = "left", room = width - 16 } = {}) => {
    pen.font = `${size}px ${FONT}`;
    pen.fillStyle = fill;
    pen.textAlign = align;
    let shown = words;
    while (shown.length > 4 && pen.measureText(shown).width > room) shown = `${shown.slice(0, -2)}…`;
    pen.fillText(shown, x, y);
  };
  if (answer.error) return write(answer.error, 8, height / 2, { fill: faint });

  const left = 8;
  const top = 22;
  const bottom = height - 18;
  const barLeft = width - 24;
  const right = barLeft - 14;
  const level = axis(answer);
  const at = ([place, sigma]) => [left + ((right - left) * place) / Math.max(answer.total, 1), bottom - (bottom - top) * level(sigma)];
  const path = (points, stroke, thick) => {
    pen.beginPath();
    points.forEach((point, i) => (i ? pen.lineTo(...at(point)) : pen.moveTo(...at(point))));
    pen.strokeStyle = stroke;
    pen.lineWidth = thick;
    pen.lineJoin = "round";
    pen.stroke();
  };
  const dots = (points, fill, radius) => {
    if (points.length > 60) return; // closer together they hide the line
    pen.fillStyle = fill;
    for (const point of points) {
      pen.beginPath();
      pen.arc(...at(point), radius, 0, 2 * Math.PI);
      pen.fill();
    }
  };

  pen.strokeStyle = border;
  pen.lineWidth = 1;
  pen.beginPath();
  pen.moveTo(left, top);
  pen.lineTo(left, bottom + 0.5);
  pen.lineTo(right, bottom + 0.5);
  pen.stroke();
  path(answer.whole, COLOURS.skipped, 1.2);
  dots(answer.whole, COLOURS.skipped, 1.6);
  if (answer.run) {
    const [x, y] = at(answer.sigmas[0]);
    pen.strokeStyle = COLOURS.start;
    pen.setLineDash([3, 3]);
    pen.beginPath();
    pen.moveTo(left, y);
    pen.lineTo(x, y);
    pen.lineTo(x, bottom);
    pen.stroke();
    pen.setLineDash([]);
    path(answer.sigmas, COLOURS.runs, 2.2);
    dots(answer.sigmas, COLOURS.runs, 2.2);
    dots([answer.sigmas[0]], COLOURS.start, 4);
  }
  const middle = bottom - (bottom - top) * answer.noise;
  pen.fillStyle = COLOURS.picture;
  pen.fillRect(barLeft, top, 16, middle - top);
  pen.fillStyle = COLOURS.runs;
  pen.fillRect(barLeft, middle, 16, bottom - middle);

  const noise = t("dial.noise", { share: percent(answer.noise) });
  write(noise, width - 8, 14, { fill: COLOURS.runs, align: "right" });
  const free = width - 24 - pen.measureText(noise).width;
  write(answer.run ? t("dial.runs", { run: answer.run, total: answer.total }) : t("dial.runs.none"), left, 14, { room: free });
  const start = answer.run ? t("dial.start", { sigma: digits(answer.sigma), t: digits(answer.timestep) }) : "";
  write(start, left, height - 5, { size: 10, fill: faint });
  pen.font = `10px ${FONT}`;
  const room = width - 32 - pen.measureText(start).width;
  write(answer.model ?? t("dial.model"), width - 8, height - 5, { size: 10, fill: faint, align: "right", room });
}

/** Sigma to 0..1: linear where sigma is at most 1 (flow), else logarithmic with 0 below the lowest sigma. */
function axis({ whole, sigmas }) {
  const all = [...whole, ...sigmas].map((point) => point[1]);
  const top = Math.max(...all);
  if (top <= 1.5) return (sigma) => sigma / top;
  const least = Math.min(...all.filter((sigma) => sigma > 0));
  const span = Math.log(top / least) || 1;
  return (sigma) => (sigma <= 0 ? 0 : 0.08 + (0.92 * Math.log(sigma / least)) / span);
}

function digits(value) {
  return Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}

function percent(share) {
  const value = 100 * share;
  if (share > 0 && value < 1) return "<1 %";
  if (share < 1 && value > 99) return ">99 %";
  return `${value.toFixed(0)} %`;
}
