// Which run a trainer node shows. A workflow stores none of it: the run's record says what was asked, and the node says
// what it asks, so the two find each other on a copy of the graph, after a reload and inside a subgraph. No side effects.

// As the server's: what may differ between two requests of the same run.
const NOT_IDENTITY = new Set(["steps", "save_every", "sample_every", "sample_prompt", "keep"]);
export const TRAINERS = { BespokeTrainLora: "lora", BespokeTrainTextualInversion: "textual inversion" };

/** What a node's widgets ask for, by name; a widget that is wired up is left out, as its value comes from elsewhere. */
export function requestOf(node) {
  const wired = new Set((node.inputs ?? []).filter((input) => input.widget && input.link != null).map((input) => input.widget.name));
  const widgets = (node.widgets ?? []).filter((widget) => !wired.has(widget.name));
  return Object.fromEntries(widgets.map((widget) => [widget.name, widget.value]));
}

/** Whether a run with these settings is what the request asks for. */
export function sameRequest(settings, request) {
  const both = Object.keys(settings).filter((name) => name in request && !NOT_IDENTITY.has(name));
  return both.length > 0 && both.every((name) => same(settings[name], request[name]));
}

function same(a, b) {
  if (typeof a !== "number" || typeof b !== "number") return a === b;
  return Math.abs(a - b) <= 1e-9 * Math.max(1, Math.abs(a), Math.abs(b)); // widgets round in their own way
}

/**
 * The run for a node among summaries (newest first), or null: one made by this very node of this very workflow, else
 * one that asked for the same at the same place, else one that asked for the same.
 * place: { technique, paths: [execution path], workflow: the graph's id }.
 */
export function runFor(runs, request, { technique, paths, workflow }) {
  const fitting = runs.filter((run) => run.technique === technique);
  const here = (run) => run.node && paths.includes(run.node);
  return (
    fitting.find((run) => here(run) && run.workflow && run.workflow === workflow) ??
    fitting.find((run) => here(run) && sameRequest(run.settings, request)) ??
    fitting.find((run) => sameRequest(run.settings, request)) ??
    null
  );
}
