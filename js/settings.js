// @ts-check
// Definitions of the pack's settings, commands and keys. Their translations are in locales/<language>/settings.json and
// commands.json. No side effects: index.js registers them.

const GROUP = "Bespoke";

/** The settings by name. ComfyUI stores their values under "Bespoke.<name>". */
const SETTINGS = {
  Toasts: {
    name: "Say when a training is done",
    tooltip: "A message in the corner when a run has finished. A run that failed is always said.",
    type: "boolean",
    defaultValue: true,
    section: "Training",
  },
  SingleLosses: {
    name: "Draw the loss of every step",
    tooltip: "The faint line behind the moving average.",
    type: "boolean",
    defaultValue: true,
    section: "Training",
  },
  CurveHeight: {
    name: "Height of the curve",
    tooltip: "In pixels, on the trainer node.",
    type: "slider",
    attrs: { min: 80, max: 400, step: 10 },
    defaultValue: 120,
    section: "Training",
  },
  SampleHeight: {
    name: "Height of the sample pictures",
    tooltip: "In pixels, in the strip on the trainer node.",
    type: "slider",
    attrs: { min: 40, max: 192, step: 8 },
    defaultValue: 64,
    section: "Training",
  },
  SpokenEvery: {
    name: "Tell a screen reader how a training goes",
    tooltip: "Seconds between two sentences. A run that begins or ends is always told.",
    type: "combo",
    options: [
      { text: "Never", value: 0 },
      { text: "Every 15 seconds", value: 15 },
      { text: "Every minute", value: 60 },
    ],
    defaultValue: 15,
    section: "Training",
  },
  LoraDial: {
    name: "Heatmap on the LoRA nodes",
    tooltip: "What a LoRA changes, by block and projection. Nodes that are there already follow when the page is loaded again.",
    type: "boolean",
    defaultValue: true,
    section: "Dials",
  },
};

/**
 * @typedef {object} Settings the types of their values
 * @property {boolean} Toasts
 * @property {boolean} SingleLosses
 * @property {number} CurveHeight px
 * @property {number} SampleHeight px
 * @property {number} SpokenEvery s; 0: never
 * @property {boolean} LoraDial
 */
/** @typedef {<Name extends keyof Settings>(name: Name) => Settings[Name]} GetSetting */

/** The settings as `registerExtension` takes them. */
export function settingDefinitions() {
  return Object.entries(SETTINGS).map(([name, { section, ...definition }]) => ({
    id: `${GROUP}.${name}`,
    category: [GROUP, section, name],
    ...definition,
  }));
}

/**
 * A function that gives a setting's value by its name, or its default where the page has none.
 * @param {(id: string) => unknown} read gives the page's value of an id, or undefined
 * @returns {GetSetting}
 */
export function settingReader(read) {
  return (name) => /** @type {Settings[typeof name]} */ (read(`${GROUP}.${name}`) ?? SETTINGS[name].defaultValue);
}

/**
 * The commands as `registerExtension` takes them. ComfyUI itself adds the command that opens the sidebar's tab.
 * @param {{ goToTraining: () => void, finishTraining: () => Promise<void> }} actions
 */
export function commandDefinitions({ goToTraining, finishTraining }) {
  return [
    { id: "Bespoke.GoToTraining", icon: "pi pi-map-marker", label: "Go to the training that runs", function: goToTraining },
    { id: "Bespoke.FinishTraining", icon: "pi pi-check", label: "Finish the training that runs and keep it", function: finishTraining },
  ];
}

export const KEYS = [
  { combo: { key: "b" }, commandId: "Workspace.ToggleSidebarTab.bespoke-runs" },
  { combo: { key: "B", shift: true }, commandId: "Bespoke.GoToTraining" },
];
export const MENU = [
  {
    path: ["Extensions", GROUP],
    commands: ["Workspace.ToggleSidebarTab.bespoke-runs", "Bespoke.GoToTraining", "Bespoke.FinishTraining"],
  },
];
