// @ts-check
// Registers the pack with the page. All other modules in this folder have no side effects, because ComfyUI loads each .js
// file under WEB_DIRECTORY by itself.

import { addSidebarTab, classOf, fetchJson, register, setting } from "./comfy.js";
import { createCommands } from "./commands.js";
import { el } from "./dom.js";
import { attachFolder, FOLDER_NODE } from "./folder_panel.js";
import { attachLoraDial, LORA_NODES } from "./lora_dial.js";
import { repairMovedValues } from "./repair.js";
import { createRuns } from "./runs.js";
import { fillTab } from "./runs_tab.js";
import { dropDefaultsOfBlueprints } from "./saved_values.js";
import { commandDefinitions, KEYS, MENU, settingDefinitions, settingReader } from "./settings.js";
import { attachDial, DIAL_NODES } from "./strength_dial.js";
import { notifyOfRuns } from "./toasts.js";
import { attachPanel, TRAINERS } from "./training_panel.js";
import { attachWords, WORD_NODE } from "./word_list.js";
import { setTexts, t } from "./words.js";

const runs = createRuns();
const getSetting = settingReader(setting);

register({
  name: "Bespoke",
  settings: settingDefinitions(),
  commands: commandDefinitions(createCommands(runs)),
  keybindings: KEYS,
  menuCommands: MENU,
  beforeConfigureGraph: dropDefaultsOfBlueprints,
  async init() {
    document.head.append(el("link", { rel: "stylesheet", href: new URL("./style.css", import.meta.url).href }));
    await loadTexts();
    notifyOfRuns(runs, getSetting);
  },
  setup() {
    /** @type {(() => void) | null} */
    let removeTab = null;
    addSidebarTab({
      id: "bespoke-runs",
      icon: "pi pi-chart-line",
      title: t("runs"),
      tooltip: t("runs.tip"),
      type: "custom",
      render: (root) => {
        removeTab?.();
        removeTab = fillTab(root, runs);
      },
      destroy: () => {
        removeTab?.();
        removeTab = null;
      },
    });
  },
  nodeCreated(node) {
    const kind = classOf(node);
    if (!kind?.startsWith("Bespoke")) return;
    if (DIAL_NODES.has(kind)) attachDial(node);
    if (kind === FOLDER_NODE) attachFolder(node);
    if (kind in LORA_NODES && getSetting("LoraDial")) attachLoraDial(node);
    if (kind === WORD_NODE) attachWords(node);
    if (kind in TRAINERS) attachPanel(node, runs, getSetting);
    repairMovedValues(node);
  },
});

/** Load the texts of every language. Without the server the page shows the keys instead. */
async function loadTexts() {
  try {
    setTexts(await fetchJson("/i18n"), () => setting("Comfy.Locale"));
  } catch {
    // The keys are shown.
  }
}
