// What the commands do. No side effects: index.js registers them.

import { nodeAt } from "./graph_paths.js";
import { t } from "./words.js";

const LIFE_MS = 4000;

/** { go, finish } for the training that runs. page: { app, toast(message) }. */
export function actsOn(runs, { app, toast }) {
  const tell = (severity, summary) => toast({ severity, summary, life: LIFE_MS });

  /** Open the graph that the training node is in and bring the node into view. */
  function go() {
    const run = runs.live();
    const node = run && nodeAt(app.rootGraph, run.path);
    if (!node) return tell("info", t("go.none"));
    if (app.canvas.graph !== node.graph) app.canvas.setGraph(node.graph);
    app.canvas.selectNode?.(node);
    app.canvas.centerOnNode(node);
    app.canvas.setDirty(true, true);
  }

  async function finish() {
    const run = runs.live();
    if (!run) return tell("info", t("go.none"));
    try {
      await runs.finish(run.id);
      tell("info", t("finish.asked"));
    } catch (error) {
      tell("error", error.message);
    }
  }

  return { go, finish };
}
