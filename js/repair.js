// Puts the values of a wrongly saved node back. Up to 0.1.0 this pack moved the values of some of its nodes by one
// whenever a page from 1.53 on saved them. Such a file still has the right values by name (`widgets_values_named`, saved
// since page 1.49) if it was saved so once; saved so again, it has not. No side effects: index.js attaches it.

import { onConfigured, placeOf, savedWidgets, setValue, titleOf, toast } from "./comfy.js";
import { t } from "./words.js";

// Lists whose entries differ from one ComfyUI to the next: an entry that is not there is no sign of a moved value.
const OPEN_LISTS = new Set(["lora_name", "embedding_name", "folder", "sampler_name", "scheduler"]);
const told = new Set(); // what was told: undo, a change of tabs or of the language load the same values again
let waiting = [];

/**
 * Let the values that were set on a blueprint's node count when its workflow is loaded. Up to 0.1.0 the blueprints listed
 * their widgets in `proxyWidgets` under the id "-1"; pages from 1.47 on make each a `proxyWidgetErrorQuarantine` entry
 * with the default as its value, and prefer that to `widgets_values`. workflow: as it is saved; it is changed in place.
 */
export function dropDefaultsOfBlueprints(workflow) {
  const subgraphs = (Array.isArray(workflow?.definitions?.subgraphs) ? workflow.definitions.subgraphs : []).filter(Boolean);
  const ours = new Set(subgraphs.filter(({ nodes }) => nodes?.some?.((entry) => String(entry?.type).startsWith("Bespoke"))).map(({ id }) => id));
  for (const host of [workflow, ...subgraphs].flatMap((graph) => graph?.nodes ?? [])) {
    if (!ours.has(host?.type) || !host.properties) continue;
    const { proxyWidgets: listed, proxyWidgetErrorQuarantine: kept } = host.properties;
    if (Array.isArray(listed)) host.properties.proxyWidgets = listed.filter((pair) => String(pair?.[0]) !== "-1");
    if (Array.isArray(kept)) host.properties.proxyWidgetErrorQuarantine = kept.filter((entry) => String(entry?.originalEntry?.[0]) !== "-1");
  }
}

/** Check the values that a node is given from now on. */
export function repairMovedValues(node) {
  onConfigured(node, (saved) => repair(node, saved));
}

function repair(node, saved) {
  const [listed, named] = [saved?.widgets_values, saved?.widgets_values_named];
  if (!Array.isArray(listed)) return;
  const widgets = savedWidgets(node);
  const verdict = judge(widgets, listed, named);
  if (verdict === "right") return;
  if (verdict === "moved") {
    const wrong = widgets.filter(({ name, value }) => Object.hasOwn(named, name) && value !== named[name]);
    if (!wrong.length) return; // the page reads values by name itself
    for (const { name } of wrong) setValue(node, name, named[name]);
  }
  // A list without values and names at their first choice: what was there before may be lost.
  const isEmpty = listed.every((value) => value === null) && widgets.every(({ name, choices }) => named?.[name] === choices?.[0]);
  tell(verdict === "lost" ? "lost" : isEmpty ? "check" : "restored", node, listed);
}

/**
 * What the saved values of a node are: "right" (they fit the widgets, or nothing says that they were moved), "moved"
 * (they do not fit, and those by name do), or "lost" (neither do). widgets: as `savedWidgets` gives them; listed: values
 * in the order of the widgets; named: values by widget name, or undefined.
 *
 * One value that does not fit is no sign of a move: a script may have written it. Two are, and so is the list by name
 * without one value, which is what the fault leaves.
 */
export function judge(widgets, listed, named) {
  const pairs = widgets.slice(0, listed.length).map((widget, i) => [widget, listed[i]]);
  const misfits = pairs.filter(([widget, value]) => !fits(widget, value));
  if (!misfits.length) return "right";
  const both = named && typeof named === "object" ? widgets.filter(({ name }) => Object.hasOwn(named, name)) : [];
  const differ = pairs.some(([{ name }, value]) => both.some((one) => one.name === name) && !same(value, named[name]));
  const shifted = both.length === widgets.length && isShifted(listed, widgets.map(({ name }) => named[name]));
  if (both.length && both.every((widget) => fits(widget, named[widget.name]))) return differ && (shifted || misfits.length > 1) ? "moved" : "right";
  const wrongKind = ([widget, value]) => value !== null && !hasKind(widget, value);
  const wrongByName = differ && both.some((widget) => wrongKind([widget, named[widget.name]]));
  return misfits.some(wrongKind) || wrongByName ? "lost" : "right";
}

/** Whether `listed` is `values` without one of them, the places at the end empty. */
function isShifted(listed, values) {
  const kept = [...listed];
  while (kept.length && kept[kept.length - 1] === null) kept.pop();
  return values.some((_, gone) => {
    const rest = values.filter((value, i) => i !== gone);
    return kept.every((value, i) => same(value, rest[i])) && rest.slice(kept.length).every((value) => value === null);
  });
}

function fits(widget, value) {
  if (value === null && widget.choices) return widget.choices.length === 0; // an empty list has no value
  if (!hasKind(widget, value)) return false;
  return !widget.choices || OPEN_LISTS.has(widget.name) || widget.choices.includes(value);
}

function hasKind({ kind }, value) {
  return kind === null || typeof value === kind;
}

const same = (a, b) => a === b || JSON.stringify(a) === JSON.stringify(b);

/** One notice for all nodes of a file. kind: "restored", "check" or "lost". */
function tell(kind, node, listed) {
  const key = keyOf(kind, node, listed);
  if (told.has(key)) return;
  told.add(key);
  if (!waiting.length) setTimeout(showNotice, 0);
  waiting.push({ kind, node });
}

const keyOf = (kind, node, values) => `${kind} ${placeOf(node)} ${JSON.stringify(values)}`;

function showNotice() {
  const titles = (kind) => waiting.filter((one) => one.kind === kind).map(({ node }) => titleOf(node));
  const part = (kind) => (titles(kind).length ? [t(`repair.${kind}.nodes`, { nodes: titles(kind).join(", ") })] : []);
  const isLost = titles("lost").length > 0;
  const detail = [...part("lost"), ...part("restored"), ...part("check"), ...(isLost ? [] : [t("repair.save")])].join("\n\n");
  toast({ severity: isLost ? "error" : "warn", summary: t(isLost ? "repair.lost" : "repair.restored"), detail });
  // What stands there now is what the page saves and loads again.
  for (const { kind, node } of waiting) told.add(keyOf(kind, node, savedWidgets(node).map(({ value }) => value ?? null)));
  waiting = [];
}
