// Registers the pack with the page. Every other module in this folder is free of side effects, because ComfyUI loads
// each .js file under WEB_DIRECTORY by itself.
import { addSidebarTab, classOf, register, setting } from "./comfy.js";
import { commandsOn } from "./commands.js";
import { el } from "./dom.js";
import { attachFolder, FOLDER_NODE } from "./folder_panel.js";
import { attachLoraDial, LORA_NODES } from "./lora_dial.js";
import { dropDefaultsOfBlueprints, repairMovedValues } from "./repair.js";
import { createRuns } from "./runs.js";
import { fillTab } from "./runs_tab.js";
import { commands, KEYS, MENU, settings, wishes } from "./settings.js";
import { attachDial, DIAL_NODES } from "./strength_dial.js";
import { tellOfRuns } from "./toasts.js";
import { attachPanel, TRAINERS } from "./training_panel.js";
import { attachWords, WORD_NODE } from "./word_list.js";
import { loadWords, t } from "./words.js";

const runs = createRuns();
const wish = wishes(setting);

register({
  name: "Bespoke",
  settings: settings(),
  commands: commands(commandsOn(runs)),
  keybindings: KEYS,
  menuCommands: MENU,
  beforeConfigureGraph: dropDefaultsOfBlueprints,
  async init() {
    document.head.append(el("link", { rel: "stylesheet", href: new URL("./style.css", import.meta.url).href }));
    await loadWords();
    tellOfRuns(runs, wish);
  },
  setup() {
    let empty = null;
    addSidebarTab({
      id: "bespoke-runs",
      icon: "pi pi-chart-line",
      title: t("runs"),
      tooltip: t("runs.tip"),
      type: "custom",
      render: (root) => {
        empty?.();
        empty = fillTab(root, runs);
      },
      destroy: () => {
        empty?.();
        empty = null;
      },
    });
  },
  nodeCreated(node) {
    const kind = classOf(node);
    if (!kind?.startsWith("Bespoke")) return;
    if (DIAL_NODES.has(kind)) attachDial(node);
    if (kind === FOLDER_NODE) attachFolder(node);
    if (kind in LORA_NODES && wish("LoraDial")) attachLoraDial(node);
    if (kind === WORD_NODE) attachWords(node);
    if (kind in TRAINERS) attachPanel(node, runs, wish);
    repairMovedValues(node);
  },
});
