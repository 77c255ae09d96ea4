// Registers the pack with the page. Every other module in this folder is free of side effects, because ComfyUI loads
// each .js file under WEB_DIRECTORY by itself.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { actsOn } from "./acts.js";
import { el } from "./dom.js";
import { attachFolder, FOLDER_NODE } from "./folder_panel.js";
import { attachLoraDial, LORA_NODES } from "./lora_dial.js";
import { placer } from "./place.js";
import { createRuns } from "./runs.js";
import { TRAINERS } from "./run_match.js";
import { fillTab } from "./runs_tab.js";
import { commands, KEYS, MENU, settings, wishes } from "./settings.js";
import { attachDial, DIAL_NODES } from "./strength_dial.js";
import { STYLE } from "./style.js";
import { tellOfRuns } from "./toasts.js";
import { attachPanel } from "./training_panel.js";
import { attachWords, WORD_NODE } from "./word_list.js";
import { loadWords, t } from "./words.js";

const fetchApi = (path, options) => api.fetchApi(path, options);
const runs = createRuns(api);
const wish = wishes((id) => app.extensionManager?.setting?.get(id));
const acts = actsOn(runs, { app, toast: (message) => app.extensionManager.toast.add(message) });

app.registerExtension({
  name: "Bespoke",
  settings: settings(),
  commands: commands(acts),
  keybindings: KEYS,
  menuCommands: MENU,
  async init() {
    document.head.append(el("style", {}, STYLE));
    await loadWords(fetchApi, app.extensionManager?.setting?.get("Comfy.Locale"));
    tellOfRuns(runs, {
      toast: (message) => app.extensionManager.toast.add(message),
      refresh: () => app.reloadNodeDefs?.(),
      addEventListener: (name, listener) => api.addEventListener(name, listener),
      wish,
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
    if (node.comfyClass in LORA_NODES && wish("LoraDial")) attachLoraDial(node, fetchApi);
    if (node.comfyClass === WORD_NODE) attachWords(node);
    if (node.comfyClass in TRAINERS) attachPanel(node, runs, { graphId: () => app.rootGraph?.id ?? "", wish });
  },
});
