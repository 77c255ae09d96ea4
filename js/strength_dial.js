// The small picture under the strength slider: the noise schedule, the part of it that runs, where it starts and how
// much of the start is noise. It moves with the slider, before anything is queued. No side effects: index.js attaches it.

import { addBox, whenRemoved } from "./box.js";

const HEIGHT = 128;
const LOOK_EVERY_MS = 80; // widgets, links and files upstream change in more ways than there are events for
const WIDGETS = ["strength", "steps", "contract", "exact_steps", "scheduler", "sampler_name"];
const COLOURS = { skipped: "#7d8494", runs: "#ffab40", start: "#ff5c7a", picture: "#4c8dce" };
const SUBGRAPH_INPUT = -10; // origin id of a link that comes from outside a subgraph
const BYPASSED = 4;

export const DIAL_NODES = new Set(["BespokePartialDenoise", "BespokeStrengthSigmas"]);

/** Add the picture to a node. fetchApi: (path) => Promise<Response>, as ComfyUI's `api.fetchApi`. */
export function attachDial(node, fetchApi) {
  const box = document.createElement("div");
  const canvas = document.createElement("canvas");
  box.style.cssText = `position:relative;width:100%;height:100%;min-height:${HEIGHT}px;pointer-events:none`;
  canvas.style.cssText = "position:absolute;inset:0;width:100%;height:100%";
  canvas.setAttribute("role", "img");
  box.append(canvas);

  const state = { asked: "", answer: null, busy: false };
  const paint = () => draw(canvas, state.answer);

  async function refresh() {
    if (state.busy || document.hidden || !canvas.isConnected) return;
    const query = queryOf(node);
    if (query === state.asked) return;
    state.asked = query;
    state.busy = true;
    try {
      state.answer = await (await fetchApi(`/bespoke/schedule?${query}`)).json();
    } catch {
      state.answer = { error: "no answer from the server" };
      state.asked = ""; // and so asked again
    } finally {
      state.busy = false;
    }
    canvas.setAttribute("aria-label", state.answer.report ?? state.answer.error);
    paint();
  }

  const timer = setInterval(refresh, LOOK_EVERY_MS);
  const sizes = new ResizeObserver(paint);
  sizes.observe(canvas);

  const widget = addBox(node, "schedule", "bespoke_schedule", box, { after: "strength", height: () => HEIGHT });

  whenRemoved(node, () => {
    clearInterval(timer);
    sizes.disconnect();
  });
  return widget;
}

// --- What is asked ---------------------------------------------------------------------------------------------------

/** The query for a node's present widgets and the model that is wired to it. */
export function queryOf(node) {
  const query = new URLSearchParams();
  for (const name of WIDGETS) {
    const value = valueOf(node, name);
    if (value !== undefined) query.set(name, String(value));
  }
  query.set("model", JSON.stringify(modelChain(node)));
  return query.toString();
}

/** A widget's value, or that of the primitive node that is wired to it. */
function valueOf(node, name) {
  const slot = node.inputs?.findIndex((input) => input.widget?.name === name && input.link != null) ?? -1;
  const source = slot >= 0 ? sourceOf(node, slot)?.node : null;
  const wired = source?.widgets?.[0]?.value;
  const own = node.widgets?.find((widget) => widget.name === name)?.value;
  return wired !== undefined && typeof wired === typeof own ? wired : own;
}

/** The nodes that lead to a node's model, the loader first: [{ type, values }]. */
export function modelChain(node) {
  const chain = [];
  const seen = new Set();
  let at = { node };
  while (at && !seen.has(at.node)) {
    seen.add(at.node);
    const slot = modelSlot(at.node);
    if (at.node !== node && at.node.mode !== BYPASSED) chain.unshift({ type: at.node.comfyClass ?? at.node.type, values: values(at.node) });
    at = slot < 0 ? null : sourceOf(at.node, slot);
  }
  return chain.filter(({ type }) => /Loader|ModelSampling|ModelNoiseScale/.test(type));
}

function modelSlot(node) {
  const inputs = node.inputs ?? [];
  const named = inputs.findIndex((input) => input.name === "model" && input.link != null);
  return named >= 0 ? named : inputs.findIndex((input) => (input.type === "MODEL" || input.type === "*") && input.link != null);
}

function values(node) {
  const simple = (node.widgets ?? []).filter((widget) => ["string", "number", "boolean"].includes(typeof widget.value));
  return Object.fromEntries(simple.map((widget) => [widget.name, valueOf(node, widget.name)]));
}

/** What is wired to an input, through the borders of subgraphs: { node, slot } or null. */
function sourceOf(node, slot) {
  let graph = node.graph;
  let link = linkOf(graph, node.inputs[slot].link);
  for (let depth = 0; link && depth < 20; depth++) {
    if (Number(link.origin_id) === SUBGRAPH_INPUT) {
      const outer = holderOf(graph);
      const input = outer?.inputs?.[link.origin_slot];
      if (input?.link == null) return null;
      graph = outer.graph;
      link = linkOf(graph, input.link);
      continue;
    }
    const origin = graph.getNodeById(link.origin_id);
    if (!origin?.subgraph) return origin ? { node: origin, slot: link.origin_slot } : null;
    graph = origin.subgraph;
    link = linkOf(graph, graph.outputs?.[link.origin_slot]?.linkIds?.[0]);
  }
  return null;
}

function linkOf(graph, id) {
  if (id == null || !graph) return null;
  return graph.getLink ? graph.getLink(id) : graph.links?.[id];
}

/** The node that stands for a subgraph in the graph around it. */
function holderOf(subgraph) {
  const look = (graph) => {
    for (const node of graph?.nodes ?? graph?._nodes ?? []) {
      if (!node.subgraph) continue;
      if (node.subgraph === subgraph) return node;
      const inside = look(node.subgraph);
      if (inside) return inside;
    }
    return null;
  };
  return look(subgraph?.rootGraph);
}

// --- The picture -----------------------------------------------------------------------------------------------------

/** Draw an answer of the route, { whole, sigmas, run, total, sigma, timestep, noise, model } or { error }. */
export function draw(canvas, answer) {
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (!width || !height) return;
  const sharp = Math.max(2, window.devicePixelRatio || 1); // the canvas of the graph may be zoomed in
  canvas.width = Math.round(width * sharp);
  canvas.height = Math.round(height * sharp);
  const pen = canvas.getContext("2d");
  pen.scale(sharp, sharp);
  const style = getComputedStyle(document.documentElement);
  const colour = (name, otherwise) => style.getPropertyValue(name).trim() || otherwise;
  const text = colour("--input-text", "#ddd");
  const faint = colour("--descrip-text", "#999");
  const border = colour("--border-color", "#4e4e4e");
  const write = (words, x, y, { size = 11, fill = text, align = "left", room = width - 16 } = {}) => {
    pen.font = `${size}px Inter, system-ui, sans-serif`;
    pen.fillStyle = fill;
    pen.textAlign = align;
    let shown = words;
    while (shown.length > 4 && pen.measureText(shown).width > room) shown = `${shown.slice(0, -2)}…`;
    pen.fillText(shown, x, y);
  };
  if (!answer) return;
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

  write(answer.run ? `runs ${answer.run} of ${answer.total} steps` : "runs nothing: the picture stays", left, 14, { room: width - 110 });
  write(`${percent(answer.noise)} noise`, width - 8, 14, { fill: COLOURS.runs, align: "right" });
  const start = answer.run ? `sigma ${digits(answer.sigma)} · t ${digits(answer.timestep)}` : "";
  write(start, left, height - 5, { size: 10, fill: faint });
  pen.font = "10px Inter, system-ui, sans-serif";
  const room = width - 32 - pen.measureText(start).width;
  write(answer.model ?? "epsilon model (default)", width - 8, height - 5, { size: 10, fill: faint, align: "right", room });
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
