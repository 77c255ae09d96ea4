// Draws curves on a canvas: single losses faint, the moving average, the held-out scores with the best marked.
// No side effects.

import { BINS } from "./curve.js";
import { loss as lossText, t } from "./words.js";

export const COLOURS = { average: "#4c9be8", heldOut: "#f0a030", second: "#3fb57f", secondHeldOut: "#c678dd" };
const FONT = "Inter, system-ui, sans-serif";
const THEME_MS = 500; // how long the theme's colours are kept: reading them makes the page lay itself out

let theme = { at: -Infinity };

/** The colours of ComfyUI's palette: { text, faint, border, ground }. */
export function themeColours(now = performance.now()) {
  if (now - theme.at < THEME_MS) return theme;
  const style = getComputedStyle(document.documentElement);
  const read = (name, otherwise) => style.getPropertyValue(name).trim() || otherwise;
  theme = {
    at: now,
    text: read("--input-text", "#ddd"),
    faint: read("--descrip-text", "#999"),
    border: read("--border-color", "#4e4e4e"),
    ground: read("--comfy-input-bg", "#222"),
  };
  return theme;
}

/** Make the canvas as sharp as its place on the screen and clear it: { pen, width, height } in px, or null if hidden. */
export function prepare(canvas, sharpest = 2) {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width || !height) return null;
  const sharp = Math.max(sharpest, window.devicePixelRatio || 1); // the graph may be zoomed in
  const [across, down] = [Math.round(width * sharp), Math.round(height * sharp)];
  const pen = canvas.getContext("2d");
  if (canvas.width !== across || canvas.height !== down) [canvas.width, canvas.height] = [across, down];
  pen.setTransform(sharp, 0, 0, sharp, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

/**
 * Draw one curve or two beside each other.
 * curves: [Curve, ...]; goesOn: whether more steps come; at: a step to mark, or null. Gives a function from x in px to the step there, or null.
 */
export function drawCurves(canvas, curves, { goesOn = false, at = null, small = false, singleLosses = true } = {}) {
  const ready = prepare(canvas);
  const shown = curves.filter((curve) => curve.last > 0 || curve.heldOut.length);
  if (!ready || !shown.length) return null;
  const { pen, width, height } = ready;
  const colours = themeColours();
  const ranges = shown.map((curve) => curve.range()).filter(Boolean);
  if (!ranges.length) return null;
  const low = Math.min(...ranges.map(([value]) => value));
  const high = Math.max(...ranges.map(([, value]) => value));
  const steps = Math.max(...shown.map((curve) => curve.extent(goesOn)));
  const box = small
    ? { left: 1, right: width - 1, top: 2, bottom: height - 2 }
    : { left: 42, right: width - 8, top: 8, bottom: height - 16 };
  const x = (step) => box.left + ((box.right - box.left) * Math.max(0, step - 1)) / Math.max(1, steps - 1);
  const y = (value) => box.bottom - ((box.bottom - box.top) * (value - low)) / (high - low);
  const inside = (value) => Math.min(box.bottom, Math.max(box.top, y(value)));

  if (!small) axes(pen, box, colours, ticks(low, high), y, steps);
  shown.forEach((curve, i) => {
    if (!small && singleLosses) singles(pen, curve, x, inside, shown.length > 1 ? lines(i).average : colours.text);
    average(pen, curve, x, inside, lines(i).average, small ? 1.3 : 1.8);
    heldOut(pen, curve, x, inside, lines(i).heldOut, small);
  });
  if (!small && shown.length === 1 && shown[0].best) best(pen, shown[0].best, x, inside, box, colours);
  if (at !== null) {
    pen.strokeStyle = colours.faint;
    pen.lineWidth = 1;
    stroke(pen, [[x(at), box.top], [x(at), box.bottom]]);
  }
  return (px) => Math.max(1, Math.min(steps, Math.round(1 + ((px - box.left) / (box.right - box.left)) * (steps - 1))));
}

/** The two colours of the i-th curve. */
export function lines(i) {
  return i
    ? { average: COLOURS.second, heldOut: COLOURS.secondHeldOut }
    : { average: COLOURS.average, heldOut: COLOURS.heldOut };
}

/** Round values between low and high, at most four: multiples of 1, 2 or 5 times a power of ten. */
export function ticks(low, high) {
  const rough = (high - low) / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const out = [];
  for (let value = Math.ceil(low / step) * step; value <= high && out.length < 4; value += step) out.push(Number(value.toPrecision(6)));
  return out;
}

function axes(pen, box, colours, marks, y, steps) {
  pen.strokeStyle = colours.border;
  pen.lineWidth = 1;
  pen.fillStyle = colours.faint;
  pen.font = `10px ${FONT}`;
  pen.textAlign = "right";
  for (const value of marks) {
    pen.globalAlpha = 0.4;
    stroke(pen, [[box.left, y(value)], [box.right, y(value)]]);
    pen.globalAlpha = 1;
    pen.fillText(lossText(value), box.left - 5, y(value) + 3);
  }
  stroke(pen, [[box.left, box.top], [box.left, box.bottom + 0.5], [box.right, box.bottom + 0.5]]);
  pen.textAlign = "left";
  pen.fillText("1", box.left, box.bottom + 12);
  pen.textAlign = "right";
  pen.fillText(steps.toLocaleString("en"), box.right, box.bottom + 12);
}

/**
 * The single losses: a line from step to step, and where steps share a bin a bar from the lowest to the highest. Bars and
 * not one long line up and down: that took a processor ten times as long to fill.
 */
function singles(pen, curve, x, y, colour) {
  pen.globalAlpha = curve.stride > 1 ? 0.15 : 0.22;
  if (curve.stride > 1) {
    pen.fillStyle = colour;
    const each = perPixel(curve, x);
    const wide = Math.max(0.5, x(1 + each * curve.stride) - x(1));
    for (let i = 0; i < BINS && i * curve.stride < curve.last; i += each) {
      const [low, high] = [Math.min(...curve.low.subarray(i, i + each)), Math.max(...curve.high.subarray(i, i + each))];
      if (low > high) continue;
      const top = y(high);
      pen.fillRect(x(1 + i * curve.stride), top, wide, Math.max(1, y(low) - top));
    }
  } else {
    const points = [];
    for (let i = 0; i < Math.min(BINS, curve.last); i++) if (curve.low[i] <= curve.high[i]) points.push([x(i + 1), y(curve.high[i])]);
    pen.strokeStyle = colour;
    pen.lineWidth = 1;
    stroke(pen, points);
  }
  pen.globalAlpha = 1;
}

/** How many bins lie on one pixel across: more cannot be seen apart. */
function perPixel(curve, x) {
  return Math.max(1, Math.floor(1 / (x(1 + curve.stride) - x(1))));
}

function average(pen, curve, x, y, colour, thick) {
  const points = [];
  const each = perPixel(curve, x);
  const end = Math.min(BINS, Math.ceil(curve.last / curve.stride));
  for (let i = (end - 1) % each; i < end; i += each) {
    if (Number.isFinite(curve.average[i])) points.push([x(Math.min(curve.last, (i + 1) * curve.stride)), y(curve.average[i])]);
  }
  pen.strokeStyle = colour;
  pen.lineWidth = thick;
  pen.lineJoin = "round";
  stroke(pen, points);
}

function heldOut(pen, curve, x, y, colour, small) {
  const every = Math.max(1, Math.ceil(curve.heldOut.length / BINS));
  const points = curve.heldOut.filter((_, i) => i % every === 0).map(([step, loss]) => [x(step), y(loss)]);
  pen.strokeStyle = pen.fillStyle = colour;
  pen.lineWidth = small ? 1 : 1.5;
  stroke(pen, points);
  if (small || points.length > 60) return; // closer together the dots hide the line
  for (const [px, py] of points) disc(pen, px, py, 2.2);
}

function best(pen, [step, loss], x, y, box, colours) {
  const [px, py] = [x(step), y(loss)];
  pen.strokeStyle = COLOURS.heldOut;
  pen.lineWidth = 1.5;
  pen.beginPath();
  pen.arc(px, py, 5, 0, 2 * Math.PI);
  pen.stroke();
  const words = `${t("best")} ${step.toLocaleString("en")}`;
  pen.font = `10px ${FONT}`;
  const room = pen.measureText(words).width;
  const left = px + 9 + room < box.right;
  pen.textAlign = left ? "left" : "right";
  // With an edge in the ground's colour, as the lines run through it.
  const at = [words, left ? px + 9 : px - 9, Math.max(box.top + 9, Math.min(box.bottom - 3, py - 6))];
  pen.lineJoin = "round";
  pen.lineWidth = 3;
  pen.strokeStyle = colours.ground;
  pen.strokeText(...at);
  pen.fillStyle = colours.text;
  pen.fillText(...at);
}

function stroke(pen, points) {
  pen.beginPath();
  points.forEach(([px, py], i) => (i ? pen.lineTo(px, py) : pen.moveTo(px, py)));
  pen.stroke();
}

function disc(pen, px, py, radius) {
  pen.beginPath();
  pen.arc(px, py, radius, 0, 2 * Math.PI);
  pen.fill();
}
