// The page's words in the user's language: locales/<language>/main.json under "bespoke". No side effects.

import { fetchApi, setting } from "./comfy.js";

const OTHERWISE = "en";
let words = {}; // by language, then by key

/** Load the words of every language. */
export async function loadWords() {
  try {
    words = await (await fetchApi("/i18n")).json();
  } catch {
    // Without the server there are no words: keys are shown, and the page goes on.
  }
}

/** The text for a key in the language that is set now, such as "fr" or "zh-TW", or else in English. */
function textOf(key) {
  const language = String(setting("Comfy.Locale") ?? OTHERWISE);
  const texts = [language, language.split("-")[0], OTHERWISE].map((name) => words[name]?.bespoke?.[key]);
  return texts.find((text) => typeof text === "string") ?? key;
}

/** The words for a key, with {name} filled in from `values`. A key without words is shown itself. */
export function t(key, values = {}) {
  return textOf(key).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** A loss in three digits. */
export function loss(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-4 || size >= 1e5) ? value.toExponential(2) : String(Number(value.toPrecision(3)));
}

/** Seconds as 0:42, 12:05 or 1:02:05. */
export function time(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const two = (value) => String(value).padStart(2, "0");
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

/** Megabytes as 812 MB or 1.4 GB. */
export function memory(mb) {
  return mb >= 1000 ? `${(mb / 1024).toFixed(1)} GB` : `${mb.toFixed(0)} MB`;
}

/** A rate in two or three digits. */
export function rate(value) {
  return value >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(2)));
}
