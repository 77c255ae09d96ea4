// @ts-check
// The texts of the page in the user's language, and numbers as text. Pure: imports nothing, has no side effects.

const FALLBACK = "en";

/** @typedef {Record<string, { bespoke?: Record<string, string> } | undefined>} Texts by language, then by key */

/** @type {Texts} */
let texts = {};
/** @type {() => unknown} */
let currentLanguage = () => FALLBACK;

/**
 * Set the texts of every language and the function that gives the language to use, such as "fr" or "zh-TW".
 * It is called for each text, since the user can change the language while the page is open.
 * @param {Texts} all as ComfyUI's route /i18n gives them: locales/<language>/main.json of every pack, by language
 * @param {() => unknown} language undefined means English
 */
export function setTexts(all, language) {
  texts = all;
  currentLanguage = language;
}

/** The user's language, as a browser's functions take it. */
export const language = () => String(currentLanguage() ?? FALLBACK);

/**
 * The text of a key: in the user's language, else in that language without its region, else in English, else the key.
 * @param {string} key
 */
function textOf(key) {
  const chosen = language();
  const found = [chosen, chosen.split("-")[0], FALLBACK].map((name) => texts[name]?.bespoke?.[key]);
  return found.find((text) => typeof text === "string") ?? key;
}

/**
 * The text of a key, with every {name} replaced by its value. A name without a value stays as it is.
 * @param {string} key
 * @param {Record<string, unknown>} [values]
 */
export function t(key, values = {}) {
  return textOf(key).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/**
 * A number rounded to three significant digits: 0.0123, 1.23, 1230.
 * @param {number} value
 */
export function digits(value) {
  return String(Number(value.toPrecision(3)));
}

/**
 * A loss in three significant digits, in exponent form below 1e-4 and from 1e5 on; "–" where it is not finite.
 * @param {number} value
 */
export function loss(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-4 || size >= 1e5) ? value.toExponential(2) : digits(value);
}

/**
 * Seconds as 0:42, 12:05 or 1:02:05. Negative values become 0:00.
 * @param {number} seconds
 */
export function time(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const two = (/** @type {number} */ value) => String(value).padStart(2, "0");
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

/**
 * Megabytes as 812 MB or 1.4 GB. From 1000 MB on the unit is GB of 1024 MB.
 * @param {number} mb
 */
export function memory(mb) {
  return mb >= 1000 ? `${(mb / 1024).toFixed(1)} GB` : `${mb.toFixed(0)} MB`;
}

/**
 * A rate in two significant digits, from 100 on as a whole number.
 * @param {number} value
 */
export function rate(value) {
  return value >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(2)));
}

/**
 * A share of 0 to 1 in whole percent, where neither a little nor almost everything is rounded away.
 * @param {number} share
 */
export function percent(share) {
  const value = 100 * share;
  if (share > 0 && value < 1) return "<1 %";
  if (share < 1 && value > 99) return ">99 %";
  return `${value.toFixed(0)} %`;
}
