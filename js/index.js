// @ts-check
// Registers the pack with the page. All other modules in this folder have no side effects, because ComfyUI loads each .js
// file under WEB_DIRECTORY by itself.

import { attachAdvanced } from "./advanced_inputs.js";
import { addSidebarTab, classOf, fetchJson, onSettingChange, register, renameSidebarTab, restoreOutputs, setting } from "./comfy.js";
import { createCommands } from "./commands.js";
import { el } from "./dom.js";
import { attachFolder, FOLDER_NODES } from "./folder_panel.js";
import { attachLoraDial, LORA_NODES } from "./lora_dial.js";
import { createPhases } from "./phases.js";
import { repairMovedValues } from "./repair.js";
import { attachReadSettings, READ_NODES } from "./read_settings.js";
import { createRuns } from "./runs.js";
import { isTrainer, TRAINERS } from "./run_values.js";
import { fillTab } from "./runs_tab.js";
import { dropDefaultsOfBlueprints } from "./saved_values.js";
import { commandDefinitions, KEYS, MENU, settingDefinitions, settingReader } from "./settings.js";
import { attachDial, DIAL_NODES, followServer } from "./strength_dial.js";
import { notifyOfRuns } from "./toasts.js";
import { attachPanel } from "./training_panel.js";
import { attachWords, WORD_NODE } from "./word_list.js";
import { setTexts, t } from "./words.js";

/** Nodes whose server-side class sets `has_intermediate_output`: what they show is not in the workflow. */
const RESTORED = new Set([...Object.keys(TRAINERS), WORD_NODE, "BespokeLatentMaskBlend", "BespokeCropToMask"]);

const TAB = "bespoke-runs"; // the sidebar's tab
const tabTexts = () => ({ title: t("runs"), tooltip: t("runs.tip") });

const runs = createRuns();
const phases = createPhases();
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
    followServer();
  },
  afterConfigureGraph() {
    restoreOutputs((kind) => RESTORED.has(String(kind))).catch(() => {}); // without the server there is nothing to show
  },
  setup() {
    /** @type {(() => void) | null} */
    let removeTab = null;
    /** @type {HTMLElement | null} */
    let shownIn = null;
    onSettingChange("Comfy.Locale", () => {
      renameSidebarTab(TAB, tabTexts());
      if (!shownIn) return;
      removeTab?.();
      removeTab = fillTab(shownIn, runs);
    });
    addSidebarTab({
      id: TAB,
      icon: "pi pi-chart-line",
      ...tabTexts(),
      type: "custom",
      render: (root) => {
        shownIn = root;
        removeTab?.();
        removeTab = fillTab(root, runs);
      },
      destroy: () => {
        removeTab?.();
        removeTab = shownIn = null;
      },
    });
  },
  nodeCreated(node) {
    const kind = classOf(node);
    if (!kind?.startsWith("Bespoke")) return;
    attachAdvanced(node);
    if (DIAL_NODES.has(kind)) attachDial(node);
    if (FOLDER_NODES.has(kind)) attachFolder(node);
    if (kind in LORA_NODES && getSetting("LoraDial")) attachLoraDial(node);
    if (kind === WORD_NODE) attachWords(node);
    if (READ_NODES.has(kind)) attachReadSettings(node); // before the panel of the training, which is the last
    if (isTrainer(kind)) attachPanel(node, runs, phases, getSetting);
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
