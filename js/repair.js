// Puts the values of a wrongly saved node back. Up to 0.1.0 this pack moved the values of some of its nodes by one
// whenever a page from 1.53 on saved them. Such a file still has the right values by name (`widgets_values_named`, saved
// since page 1.49) if it was saved so once; saved so again, it has not. No side effects: index.js attaches it.

import { classOf, graphIdOf, onConfigured, savedWidgets, setValue, titleOf, toast } from "./comfy.js";
import { t } from "./words.js";

// Lists whose entries differ from one ComfyUI to the next: an entry that is not there is no sign of a moved value.
const OPEN_LISTS = new Set(["lora_name", "embedding_name", "folder", "sampler_name", "scheduler"]);
const told = new Set(); // what a notice was shown for, as undo and a change of tabs open the same values again
let waiting = { restored: [], lost: [] };

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
    const wrong = widgets.filter(({ name, value }) => name in named && value !== named[name]);
    if (!wrong.length) return; // the page reads values by name itself
    for (const { name } of wrong) setValue(node, name, named[name]);
  }
  tell(verdict === "moved" ? "restored" : "lost", node, JSON.stringify([graphIdOf(node), node.id, listed, named]));
}

/**
 * What the saved values of a node are: "right" (they fit the widgets, or nothing says that they were moved), "moved"
 * (they do not fit, and those by name do), or "lost" (neither do). widgets: as `savedWidgets` gives them; listed: values
 * in the order of the widgets; named: values by widget name, or undefined.
 */
export function judge(widgets, listed, named) {
  const pairs = widgets.slice(0, listed.length).map((widget, i) => [widget, listed[i]]);
  if (pairs.every(([widget, value]) => fits(widget, value))) return "right";
  const both = named && typeof named === "object" ? pairs.filter(([{ name }]) => Object.hasOwn(named, name)) : [];
  const differ = both.some(([{ name }, value]) => !same(value, named[name]));
  if (differ && both.every(([widget]) => fits(widget, named[widget.name]))) return "moved";
  return pairs.some(([widget, value]) => value !== null && !hasKind(widget, value)) ? "lost" : "right";
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

/** One notice for all nodes of a file. */
function tell(kind, node, key) {
  if (told.has(key)) return;
  told.add(key);
  if (!waiting.restored.length && !waiting.lost.length) setTimeout(showNotices, 0);
  waiting[kind].push(`${titleOf(node)} (${node.id})`);
}

function showNotices() {
  const { restored, lost } = waiting;
  waiting = { restored: [], lost: [] };
  if (restored.length) toast({ severity: "warn", summary: t("repair.restored"), detail: t("repair.restored.nodes", { nodes: restored.join(", ") }) });
  if (lost.length) toast({ severity: "error", summary: t("repair.lost"), detail: t("repair.lost.nodes", { nodes: lost.join(", ") }) });
}
