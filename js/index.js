// Registers the pack with the page. Every other module in this folder is free of side effects, because ComfyUI loads
// each .js file under WEB_DIRECTORY by itself.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { el } from "./dom.js";
import { attachFolder, FOLDER_NODE } from "./folder_panel.js";
import { placer } from "./place.js";
import { createRuns } from "./runs.js";
import { TRAINERS } from "./run_match.js";
import { fillTab } from "./runs_tab.js";
import { attachDial, DIAL_NODES } from "./strength_dial.js";
import { STYLE } from "./style.js";
import { tellOfRuns } from "./toasts.js";
import { attachPanel } from "./training_panel.js";
import { loadWords, t } from "./words.js";

const fetchApi = (path, options) => api.fetchApi(path, options);
const runs = createRuns(api);

app.registerExtension({
  name: "Bespoke",
  async init() {
    document.head.append(el("style", {}, STYLE));
    await loadWords(fetchApi, app.extensionManager?.setting?.get("Comfy.Locale"));
    tellOfRuns(runs, {
      toast: (message) => app.extensionManager.toast.add(message),
      refresh: () => app.reloadNodeDefs?.(),
      addEventListener: (name, listener) => api.addEventListener(name, listener),
    });
  },
  setup() {
    let empty = null;
    app.extensionManager.registerSidebarTab({
      id: "bespoke-runs",
      icon: "pi pi-chart-line",
      title: t("runs"),
      tooltip: t("runs.tip"),
      type: "custom",
      render: (root) => {
        empty?.();
        empty = fillTab(root, runs, placer({ app, LiteGraph: window.LiteGraph }));
      },
      destroy: () => {
        empty?.();
        empty = null;
      },
    });
  },
  nodeCreated(node) {
    if (DIAL_NODES.has(node.comfyClass)) attachDial(node, fetchApi);
    if (node.comfyClass === FOLDER_NODE) {
      attachFolder(node, { fetchApi, apiURL: (path) => api.apiURL(path), reload: () => app.reloadNodeDefs?.() });
    }
    if (node.comfyClass in TRAINERS) attachPanel(node, runs, { graphId: () => app.rootGraph?.id ?? "" });
  },
});
