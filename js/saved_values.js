// @ts-check
// Checks on the values of a saved workflow. Pure: imports nothing, has no side effects.

// Lists whose entries differ between ComfyUI installations: an entry that is not in the list is no sign of a moved value.
const OPEN_LISTS = new Set(["lora_name", "embedding_name", "folder", "sampler_name", "scheduler"]);

/** @typedef {import("./comfy.js").SavedWidget} SavedWidget */

/**
 * Make ComfyUI use the values that were set on a blueprint's node when its workflow is loaded. Up to 0.1.0 the blueprints
 * listed their widgets in `proxyWidgets` under the id "-1". Pages from 1.47 on turn each of these into a
 * `proxyWidgetErrorQuarantine` entry that holds the default value, and prefer it to `widgets_values`.
 * @param {any} workflow as it is saved; it is changed in place
 */
export function dropDefaultsOfBlueprints(workflow) {
  const subgraphs = (Array.isArray(workflow?.definitions?.subgraphs) ? workflow.definitions.subgraphs : []).filter(Boolean);
  const ours = new Set(subgraphs.filter(hasNodeOfThisPack).map((/** @type {any} */ subgraph) => subgraph.id));
  for (const host of [workflow, ...subgraphs].flatMap((graph) => graph?.nodes ?? [])) {
    if (!ours.has(host?.type) || !host.properties) continue;
    const { proxyWidgets, proxyWidgetErrorQuarantine: quarantine } = host.properties;
    if (Array.isArray(proxyWidgets)) host.properties.proxyWidgets = proxyWidgets.filter((pair) => String(pair?.[0]) !== "-1");
    if (Array.isArray(quarantine)) {
      host.properties.proxyWidgetErrorQuarantine = quarantine.filter((entry) => String(entry?.originalEntry?.[0]) !== "-1");
    }
  }
}

/** @param {any} subgraph */
function hasNodeOfThisPack({ nodes }) {
  return nodes?.some?.((/** @type {any} */ entry) => String(entry?.type).startsWith("Bespoke"));
}

/**
 * Decide what the saved values of a node are: "right" (they fit the widgets, or nothing shows that they were moved),
 * "moved" (they do not fit, and those by name do), or "lost" (neither do).
 *
 * One value that does not fit is no sign of a move: a script may have written it. Two values are a sign, and so is a list
 * that equals the list by name without one of its values, which is what the fault leaves.
 * @param {Pick<SavedWidget, "name" | "kind" | "choices">[]} widgets as `savedWidgets` gives them
 * @param {unknown[]} listed values in the order of the widgets
 * @param {Record<string, unknown> | undefined} named values by widget name
 * @returns {"right" | "moved" | "lost"}
 */
export function judge(widgets, listed, named) {
  const pairs = widgets.slice(0, listed.length).map((widget, i) => ({ widget, value: listed[i] }));
  const misfits = pairs.filter(({ widget, value }) => !fits(widget, value));
  if (!misfits.length) return "right";
  const byName = named && typeof named === "object" ? widgets.flatMap((widget) => pairByName(widget, named)) : [];
  const differ = pairs.some(({ widget, value }) => byName.some((one) => one.widget.name === widget.name && !isSame(value, one.value)));
  if (byName.length && byName.every(({ widget, value }) => fits(widget, value))) {
    const values = byName.map(({ value }) => value);
    // A later version may have put further widgets after the last one that the file knows.
    const areFirst = byName.every(({ widget }, i) => widget.name === widgets[i].name);
    const isMove = misfits.length > 1 || (areFirst && lacksOne(listed, values));
    return differ && isMove ? "moved" : "right";
  }
  const wrongByName = differ && byName.some(hasWrongKind);
  return misfits.some(hasWrongKind) || wrongByName ? "lost" : "right";
}

/**
 * @template {{ name: string }} Widget
 * @param {Widget} widget
 * @param {Record<string, unknown>} named
 */
function pairByName(widget, named) {
  return Object.hasOwn(named, widget.name) ? [{ widget, value: named[widget.name] }] : [];
}

/**
 * Whether `listed` is `values` without one of them, the last places empty.
 * @param {unknown[]} listed
 * @param {unknown[]} values
 */
function lacksOne(listed, values) {
  const kept = [...listed];
  while (kept.length && kept[kept.length - 1] === null) kept.pop();
  return values.some((_, missing) => {
    const rest = values.filter((_value, i) => i !== missing);
    return kept.every((value, i) => isSame(value, rest[i])) && rest.slice(kept.length).every((value) => value === null);
  });
}

/**
 * Whether a value can be the widget's: of its type, and among its choices where these are fixed.
 * @param {Pick<SavedWidget, "name" | "kind" | "choices">} widget
 * @param {unknown} value
 */
function fits(widget, value) {
  if (value === null && widget.choices) return widget.choices.length === 0; // an empty list has no value
  if (!hasKind(widget, value)) return false;
  return !widget.choices || OPEN_LISTS.has(widget.name) || widget.choices.includes(value);
}

/**
 * @param {Pick<SavedWidget, "kind">} widget
 * @param {unknown} value
 */
function hasKind({ kind }, value) {
  return kind === null || typeof value === kind;
}

/** @param {{ widget: Pick<SavedWidget, "kind">, value: unknown }} pair */
function hasWrongKind({ widget, value }) {
  return value !== null && !hasKind(widget, value);
}

/**
 * @param {unknown} a
 * @param {unknown} b
 */
function isSame(a, b) {
  return a === b || JSON.stringify(a) === JSON.stringify(b);
}
