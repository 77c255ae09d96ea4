// The pack's page of settings and its commands; their words are in locales/<language>/settings.json and commands.json.
// No side effects: index.js registers them.

const GROUP = "Bespoke";

/** What a person may wish, by name. ComfyUI keeps the values under "Bespoke.<name>". */
const WISHES = {
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

/** As `registerExtension` takes them. */
export function settings() {
  return Object.entries(WISHES).map(([name, { section, ...setting }]) => ({ id: `${GROUP}.${name}`, category: [GROUP, section, name], ...setting }));
}

/** Reads the settings: (name) => value. read: (id) => the page's value, or undefined. */
export function wishes(read) {
  return (name) => read(`${GROUP}.${name}`) ?? WISHES[name].defaultValue;
}

/** The commands. acts: { go(), finish() }; the sidebar's own command opens the runs. */
export function commands({ go, finish }) {
  return [
    { id: "Bespoke.GoToTraining", icon: "pi pi-map-marker", label: "Go to the training that runs", function: go },
    { id: "Bespoke.FinishTraining", icon: "pi pi-check", label: "Finish the training that runs and keep it", function: finish },
  ];
}

export const KEYS = [
  { combo: { key: "b" }, commandId: "Workspace.ToggleSidebarTab.bespoke-runs" },
  { combo: { key: "B", shift: true }, commandId: "Bespoke.GoToTraining" },
];
export const MENU = [{ path: ["Extensions", GROUP], commands: ["Workspace.ToggleSidebarTab.bespoke-runs", "Bespoke.GoToTraining", "Bespoke.FinishTraining"] }];
