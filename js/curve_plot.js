// @ts-check
// Draws loss curves on a canvas: the loss of every step faint, the moving average, and the held-out scores with the best
// one marked. No side effects.

import { BINS } from "./curve.js";
import { ticks } from "./scales.js";
import { loss as lossText, t } from "./words.js";

/** @typedef {import("./curve.js").Curve} Curve */
/** @typedef {import("./curve.js").Score} Score */
/** @typedef {CanvasRenderingContext2D} Context */
/** @typedef {{ left: number, right: number, top: number, bottom: number }} Box in px */
/** @typedef {(value: number) => number} Scale from a step or a loss to px */
/** @typedef {{ at: number, text: string, faint: string, border: string, ground: string }} Theme at: when it was read, in ms */

const COLOURS = { average: "#4c9be8", heldOut: "#f0a030", second: "#3fb57f", secondHeldOut: "#c678dd", leak: "#e0607a" };
const FONT = "Inter, system-ui, sans-serif";
const THEME_MS = 500; // the theme's colours are read again after this time: reading them makes the browser compute the layout
const PIXELS = 2; // canvas pixels per px, at least: the graph may be zoomed in

/** @type {Theme | null} */
let theme = null;

/**
 * The colours of ComfyUI's palette.
 * @param {number} [now] ms
 * @returns {Theme}
 */
export function themeColours(now = performance.now()) {
  if (theme && now - theme.at < THEME_MS) return theme;
  const style = getComputedStyle(document.documentElement);
  const read = (/** @type {string} */ name, /** @type {string} */ fallback) => style.getPropertyValue(name).trim() || fallback;
  theme = {
    at: now,
    text: read("--input-text", "#ddd"),
    faint: read("--descrip-text", "#999"),
    border: read("--border-color", "#4e4e4e"),
    ground: read("--comfy-input-bg", "#222"),
  };
  return theme;
}

/**
 * Set the canvas's resolution to its size on the screen and clear it.
 * @param {HTMLCanvasElement} canvas
 * @returns {{ context: Context, width: number, height: number } | null} width and height in px; null where it is hidden
 */
export function prepare(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const context = canvas.getContext("2d");
  if (!width || !height || !context) return null;
  const pixels = Math.max(PIXELS, window.devicePixelRatio || 1);
  const [across, down] = [Math.round(width * pixels), Math.round(height * pixels)];
  if (canvas.width !== across || canvas.height !== down) [canvas.width, canvas.height] = [across, down];
  context.setTransform(pixels, 0, 0, pixels, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

/**
 * Draw one curve, or several on the same axes. Nothing is drawn on a hidden canvas.
 * @param {HTMLCanvasElement} canvas
 * @param {Curve[]} curves
 * @param {{ isLive?: boolean, small?: boolean, singleLosses?: boolean }} [options] isLive: whether more steps come;
 *   small: without axes; singleLosses: whether the loss of every step is drawn
 */
export function drawCurves(canvas, curves, { isLive = false, small = false, singleLosses = true } = {}) {
  const prepared = prepare(canvas);
  const shown = curves.filter((curve) => curve.last > 0 || curve.heldOut.length);
  if (!prepared) return;
  const { context, width, height } = prepared;
  const colours = themeColours();
  const limits = limitsOf(shown);
  if (!limits) return;
  const [low, high] = limits;
  const steps = Math.max(...shown.map((curve) => curve.extent(isLive)));
  const marked = small || shown.length > 1 ? null : shown[0];
  const box = small
    ? { left: 1, right: width - 1, top: 2, bottom: height - 2 }
    : { left: 42, right: width - (marked?.leak.length ? 28 : 8), top: 8, bottom: height - 16 };
  /** @type {Scale} */
  const x = (step) => box.left + ((box.right - box.left) * Math.max(0, step - 1)) / Math.max(1, steps - 1);
  /** @type {Scale} */
  const y = (value) => box.bottom - ((box.bottom - box.top) * (value - low)) / (high - low);
  /** @type {Scale} */
  const clipped = (value) => Math.min(box.bottom, Math.max(box.top, y(value)));

  if (!small) drawAxes(context, box, colours, ticks(low, high), y, steps);
  if (marked) drawBand(context, marked, x, clipped, box);
  shown.forEach((curve, i) => {
    if (!small && singleLosses) drawSingleLosses(context, curve, x, clipped, shown.length > 1 ? lines(i).average : colours.text);
    drawAverage(context, curve, x, clipped, lines(i).average, small ? 1.3 : 1.8);
    drawHeldOut(context, curve, x, clipped, lines(i).heldOut, small);
  });
  if (marked) drawMarks(context, marked, x, clipped, box, colours);
}

/**
 * The leak and the best held-out score of the only curve.
 * @param {Context} context
 * @param {Curve} curve
 * @param {Scale} x
 * @param {Scale} y
 * @param {Box} box
 * @param {Theme} colours
 */
function drawMarks(context, curve, x, y, box, colours) {
  if (curve.leak.length) drawLeak(context, curve.leak, x, box);
  const best = bestOf(curve);
  if (best) drawBest(context, best, x, y, box, colours, best[0] === curve.turn);
}

/**
 * The lowest and the highest loss of the curves; null where none has a loss.
 * @param {Curve[]} curves
 * @returns {[number, number] | null}
 */
function limitsOf(curves) {
  const ranges = curves.map((curve) => curve.range()).filter((range) => range !== null);
  return ranges.length ? [Math.min(...ranges.map(([low]) => low)), Math.max(...ranges.map(([, high]) => high))] : null;
}

/**
 * The point to mark. A single score of step 0 is the base model's: it is the best of nothing.
 * @param {Curve} curve
 */
const bestOf = ({ best, heldOut }) => (best && (best[0] > 0 || heldOut.length > 1) ? best : null);

/**
 * The two colours of the i-th curve.
 * @param {number} i
 */
export function lines(i) {
  return i
    ? { average: COLOURS.second, heldOut: COLOURS.secondHeldOut }
    : { average: COLOURS.average, heldOut: COLOURS.heldOut };
}

/**
 * @param {Context} context
 * @param {Box} box
 * @param {Theme} colours
 * @param {number[]} marks losses
 * @param {Scale} y
 * @param {number} steps
 */
function drawAxes(context, box, colours, marks, y, steps) {
  context.strokeStyle = colours.border;
  context.lineWidth = 1;
  context.fillStyle = colours.faint;
  context.font = `11px ${FONT}`;
  context.textAlign = "right";
  for (const value of marks) {
    context.globalAlpha = 0.4;
    stroke(context, [[box.left, y(value)], [box.right, y(value)]]);
    context.globalAlpha = 1;
    context.fillText(lossText(value), box.left - 5, y(value) + 3);
  }
  stroke(context, [[box.left, box.top], [box.left, box.bottom + 0.5], [box.right, box.bottom + 0.5]]);
  context.textAlign = "left";
  context.fillText("1", box.left, box.bottom + 12);
  context.textAlign = "right";
  context.fillText(steps.toLocaleString("en"), box.right, box.bottom + 12);
}

/**
 * The loss of every step: a line, or where steps share a bin a bar from the lowest to the highest loss. One long line up
 * and down instead of bars took ten times as long to fill.
 * @param {Context} context
 * @param {Curve} curve
 * @param {Scale} x
 * @param {Scale} y
 * @param {string} colour
 */
function drawSingleLosses(context, curve, x, y, colour) {
  context.globalAlpha = curve.stride > 1 ? 0.15 : 0.22;
  if (curve.stride > 1) {
    context.fillStyle = colour;
    const each = perPixel(curve, x);
    const wide = Math.max(0.5, x(1 + each * curve.stride) - x(1));
    for (let i = 0; i < BINS && i * curve.stride < curve.last; i += each) {
      const [low, high] = [Math.min(...curve.low.subarray(i, i + each)), Math.max(...curve.high.subarray(i, i + each))];
      if (low > high) continue;
      const top = y(high);
      context.fillRect(x(1 + i * curve.stride), top, wide, Math.max(1, y(low) - top));
    }
  } else {
    /** @type {[number, number][]} */
    const points = [];
    for (let i = 0; i < Math.min(BINS, curve.last); i++) if (curve.low[i] <= curve.high[i]) points.push([x(i + 1), y(curve.high[i])]);
    context.strokeStyle = colour;
    context.lineWidth = 1;
    stroke(context, points);
  }
  context.globalAlpha = 1;
}

/**
 * How many bins share one px across, and so cannot be told apart.
 * @param {Curve} curve
 * @param {Scale} x
 */
function perPixel(curve, x) {
  return Math.max(1, Math.floor(1 / (x(1 + curve.stride) - x(1))));
}

/**
 * @param {Context} context
 * @param {Curve} curve
 * @param {Scale} x
 * @param {Scale} y
 * @param {string} colour
 * @param {number} lineWidth
 */
function drawAverage(context, curve, x, y, colour, lineWidth) {
  /** @type {[number, number][]} */
  const points = [];
  const each = perPixel(curve, x);
  const end = Math.min(BINS, Math.ceil(curve.last / curve.stride));
  for (let i = (end - 1) % each; i < end; i += each) {
    if (Number.isFinite(curve.average[i])) points.push([x(Math.min(curve.last, (i + 1) * curve.stride)), y(curve.average[i])]);
  }
  context.strokeStyle = colour;
  context.lineWidth = lineWidth;
  context.lineJoin = "round";
  stroke(context, points);
}

/**
 * @param {Context} context
 * @param {Curve} curve
 * @param {Scale} x
 * @param {Scale} y
 * @param {string} colour
 * @param {boolean} small
 */
function drawHeldOut(context, curve, x, y, colour, small) {
  const every = Math.max(1, Math.ceil(curve.heldOut.length / BINS));
  /** @type {[number, number][]} */
  const points = curve.heldOut.filter((_, i) => i % every === 0).map(([step, loss]) => [x(step), y(loss)]);
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = small ? 1 : 1.5;
  stroke(context, points);
  if (small || points.length > 60) return; // more dots would hide the line
  for (const [px, py] of points) disc(context, px, py, 2.2);
}

/**
 * A dashed line on an axis of its own at the right, from 0 to 1 or, where the leak is larger, to the next whole number.
 * @param {Context} context
 * @param {Score[]} leak
 * @param {Scale} x
 * @param {Box} box
 */
function drawLeak(context, leak, x, box) {
  const top = Math.max(1, Math.ceil(Math.max(...leak.map(([, value]) => value))));
  /** @type {Scale} */
  const y = (value) => box.bottom - ((box.bottom - box.top) * value) / top;
  context.strokeStyle = context.fillStyle = COLOURS.leak;
  context.lineWidth = 1.3;
  context.lineJoin = "round";
  /** @type {[number, number][]} */
  const points = leak.map(([step, value]) => [x(step), y(value)]);
  context.setLineDash([4, 3]);
  stroke(context, points);
  context.setLineDash([]);
  for (const [px, py] of points) disc(context, px, py, points.length > 1 ? 1.8 : 3); // no line shows where one is alone
  context.font = `11px ${FONT}`;
  context.textAlign = "left";
  for (const value of [0, top]) context.fillText(String(value), box.right + 5, y(value) + 3);
}

/**
 * The band in which a held-out score is neither lower nor higher than the lowest one before it, but for noise; and a line
 * across the plot at the step where the scores turned.
 * @param {Context} context
 * @param {Curve} curve
 * @param {Scale} x
 * @param {Scale} y
 * @param {Box} box
 */
function drawBand(context, { band, turn }, x, y, box) {
  if (band.length < 2) return;
  context.beginPath();
  for (const { step, high } of band) context.lineTo(x(step), y(high));
  for (const { step, low } of [...band].reverse()) context.lineTo(x(step), y(low));
  context.closePath();
  context.globalAlpha = 0.2;
  context.fillStyle = COLOURS.heldOut;
  context.fill();
  context.globalAlpha = 1;
  if (turn === null) return;
  context.strokeStyle = COLOURS.heldOut;
  context.lineWidth = 1;
  context.setLineDash([2, 3]);
  stroke(context, [[x(turn), box.top], [x(turn), box.bottom]]);
  context.setLineDash([]);
}

/**
 * Mark the best held-out score and write its step beside it.
 * @param {Context} context
 * @param {Score} score
 * @param {Scale} x
 * @param {Scale} y
 * @param {Box} box
 * @param {Theme} colours
 * @param {boolean} hasTurned whether the later scores are higher by more than noise
 */
function drawBest(context, [step, loss], x, y, box, colours, hasTurned) {
  const [px, py] = [x(step), y(loss)];
  context.strokeStyle = COLOURS.heldOut;
  context.lineWidth = 1.5;
  context.beginPath();
  context.arc(px, py, 5, 0, 2 * Math.PI);
  context.stroke();
  const label = `${t(hasTurned ? "turned" : "best")} ${step.toLocaleString("en")}`;
  context.font = `11px ${FONT}`;
  const fitsRight = px + 9 + context.measureText(label).width < box.right;
  context.textAlign = fitsRight ? "left" : "right";
  const [labelX, labelY] = [fitsRight ? px + 9 : px - 9, Math.max(box.top + 9, Math.min(box.bottom - 3, py - 6))];
  // An outline in the background's colour keeps the label readable over the lines.
  context.lineJoin = "round";
  context.lineWidth = 3;
  context.strokeStyle = colours.ground;
  context.strokeText(label, labelX, labelY);
  context.fillStyle = colours.text;
  context.fillText(label, labelX, labelY);
}

/**
 * @param {Context} context
 * @param {[number, number][]} points px
 */
function stroke(context, points) {
  context.beginPath();
  points.forEach(([px, py], i) => (i ? context.lineTo(px, py) : context.moveTo(px, py)));
  context.stroke();
}

/**
 * @param {Context} context
 * @param {number} px
 * @param {number} py
 * @param {number} radius px
 */
function disc(context, px, py, radius) {
  context.beginPath();
  context.arc(px, py, radius, 0, 2 * Math.PI);
  context.fill();
}
