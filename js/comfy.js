// @ts-check
// The only module that uses ComfyUI's page: `app`, `api`, LiteGraph, graphs, nodes and widgets. No side effects.
//
// Public extension API: `app.registerExtension`, `app.extensionManager` (settings, toasts, sidebar, commands), `api`,
// `node.addDOMWidget`, `node.setSize`, `node.computeSize`, the node callbacks `onConfigure`, `onConnectionsChange`,
// `onExecuted`, `onAdded`, `onRemoved`, `onDragOver`, `onDragDrop`, `widget.callback`, `widget.serialize`, `widget.options`,
// `LiteGraph.createNode`, `LiteGraph.isValidConnection`, `graph.add`, `graph.setDirtyCanvas` and `LGraphNode.getInputLink`.
// No module reorders `node.widgets` or writes `widgets_values`.
//
// Not documented, each seen on the pages 1.44.19, 1.47.12, 1.49.6, 1.53.6 and 1.58.1:
//   app.rootGraph, graph.rootGraph, subgraphs  the outermost graph; the graphs inside nodes, by id
//   app.canvas.graph, setGraph, selectNode, centerOnNode, setDirty, selectedItems, visible_area
//   app.canvas.emitBeforeChange, emitAfterChange  what changes between both calls is one step of undo
//   app.loadGraphData, app.reloadNodeDefs      open a workflow; read the lists of files again
//   api.dispatchCustomEvent                    tell the page and all extensions of an event, as the socket does
//   api "graphChanged", "reconnected"          the page noticed a change of the graph; the server is back
//   app.ui.settings "<id>.change"              a setting was changed
//   extensionManager.getSidebarTabs            the sidebar's tabs; their buttons follow a change of title and tooltip
//   node.subgraph, graph.nodes, getNodeById    the graph inside a node; a graph's nodes
//   graph.groups                               the boxes around nodes, with pos and size
//   subgraph.outputNode.slots[i].getLinks()    what leaves a subgraph
//   link.origin_id === -10                     a link from outside a subgraph
//   node.isVirtualNode, resolveVirtualOutput   nodes that the prompt leaves out: Reroute, Get nodes
//   node.mode 2 and 4, getWidgetFromSlot       muted and bypassed; the widget of an input, also on a subgraph's node
//   node.constructor.nodeData.python_module    where the class of a node comes from: "nodes", "comfy_extras.…", "custom_nodes.…"
//   widget.beforeQueued                        called on every widget before the page makes a prompt
//   LiteGraph.vueNodesMode, [data-node-id]     Nodes 2.0 is on; a node's element there
//   widget.computeLayoutSize, computeSize      the room that a widget takes
//   widget.hidden, node.constructor.nodeData   a widget that is not drawn; the definition of a node's inputs

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { t } from "./words.js";

/** @typedef {import("@comfyorg/comfyui-frontend-types").ComfyApp} ComfyApp */
/** @typedef {Parameters<ComfyApp["registerExtension"]>[0]} ComfyExtension */
/** @typedef {ComfyApp["extensionManager"]} ExtensionManager */
/** @typedef {ComfyApp["rootGraph"]} Graph the outermost graph, or the graph inside a node */
/** @typedef {NonNullable<ReturnType<Graph["getNodeById"]>> & UntypedFields} Node */
/** @typedef {NonNullable<Node["widgets"]>[number]} Widget */
/** @typedef {NonNullable<ReturnType<Node["getInputLink"]>>} Link */
/** @typedef {(this: Node, event: DragEvent, ...rest: unknown[]) => boolean} DragHandler */
/**
 * Fields of nodes that the published types leave out, or declare for the node of a subgraph only.
 * @typedef {object} UntypedFields
 * @property {DragHandler} [onDragOver]
 * @property {DragHandler} [onDragDrop]
 * @property {Subgraph} [subgraph]
 * @property {(slot: number) => { node: Node, slot: number } | undefined} [resolveVirtualOutput]
 */
/** @typedef {{ addDOMWidget(name: string, type: string, element: HTMLElement, options: object): Widget }} DOMWidgetHost */
/** @typedef {Graph & { outputNode?: { slots?: { getLinks?(): Link[] }[] } }} Subgraph */
/**
 * An output of a node. holders: the nodes of the subgraphs around it, outermost first.
 * @typedef {{ node: Node, slot: number, holders: Node[] }} NodeSource
 */
/** @typedef {{ value: unknown, node?: undefined, holders?: undefined }} WidgetSource a widget that is shown on a subgraph's node */
/**
 * Why the source of an input is not known. "open": nothing is linked, so the queue would fail. "muted": the same, because a
 * node on the way is muted, or bypassed without an input that fits. "unknown": the page cannot follow the path.
 * @typedef {"open" | "muted" | "unknown"} Problem
 */
/** @typedef {{ problem: Problem, node?: undefined, holders?: undefined }} NoSource */
/** @typedef {NodeSource | WidgetSource | NoSource} Source */
/** @typedef {{ value: unknown, isKnown: true } | { value?: undefined, isKnown: false }} Reading a widget's value, if it is known */
/** @typedef {{ node: Node, input: string | null, values: Record<string, unknown> }} ModelStep input: which input the model comes from; null: none, the node loads it */
/** @typedef {{ name: string, kind: "number" | "boolean" | "string" | null, choices: unknown[] | null, value: unknown }} SavedWidget */

// --- The server and the page ---------------------------------------------------------------------------------------

/** The server answered a request with an error. The message is the server's own where it gave one. */
export class ServerError extends Error {}

const MOST_ERROR = 300; // characters of a server's message

/**
 * As `fetch`, for a path of ComfyUI's server.
 * @param {string} path
 * @param {RequestInit} [options]
 */
export const fetchApi = (path, options) => api.fetchApi(path, options);

/** @param {string} path */
export const apiURL = (path) => api.apiURL(path);

/**
 * As `fetchApi`. Throws ServerError where the status is an error.
 * @param {string} path
 * @param {RequestInit} [options]
 */
export async function request(path, options) {
  const answer = await fetchApi(path, options);
  if (answer.ok) return answer;
  const json = await answer.json().catch(() => null);
  throw errorIn(json) ?? new ServerError(t("runs.status", { status: answer.status }));
}

/**
 * The JSON that the server gives for a path. Throws ServerError where the status is an error or the JSON has the text
 * field `error`, which some routes send with status 200.
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<any>} not checked: the caller reads every field in its type
 */
export async function fetchJson(path, options) {
  const json = await (await request(path, options)).json();
  const error = errorIn(json);
  if (error) throw error;
  return json;
}

/** @param {any} json */
function errorIn(json) {
  return typeof json?.error === "string" ? new ServerError(json.error.slice(0, MOST_ERROR)) : null;
}

/**
 * The options of a POST request with JSON as its body.
 * @param {unknown} body
 * @returns {RequestInit}
 */
export function jsonPost(body) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

/**
 * Call `listener(detail)` on an event of the server's socket or of the page. Returns the function that ends it.
 * @param {string} name
 * @param {(detail: any) => void} listener the detail is not checked
 */
export function onEvent(name, listener) {
  const target = /** @type {EventTarget} */ (api);
  const react = (/** @type {Event} */ event) => listener(/** @type {CustomEvent} */ (event).detail);
  target.addEventListener(name, react);
  return () => target.removeEventListener(name, react);
}

/**
 * Call `react()` after the user changed a setting. Returns the function that ends it.
 * @param {string} id
 * @param {() => void} react
 */
export function onSettingChange(id, react) {
  const settings = /** @type {EventTarget | undefined} */ (/** @type {any} */ (app).ui?.settings);
  const later = () => requestAnimationFrame(react); // page 1.47 tells of it before the setting has its new value
  settings?.addEventListener?.(`${id}.change`, later);
  return () => settings?.removeEventListener?.(`${id}.change`, later);
}

/**
 * Call `react()` after the page has changed between the classic look and Nodes 2.0. Returns the function that ends it.
 * @param {() => void} react
 */
export function onLookChange(react) {
  // The page sets `LiteGraph.vueNodesMode` some time after the setting has changed.
  const later = () => requestAnimationFrame(() => requestAnimationFrame(react));
  return onSettingChange("Comfy.VueNodes.Enabled", later);
}

/** @type {Set<string>} ids of the workflows whose outputs were shown again */
const restored = new Set();
const MOST_HISTORY = 16; // prompts that are looked through

/**
 * Show again what the nodes of these classes showed when the open workflow ran last, once for each workflow: after a reload
 * the page has lost it, and the server still has it in its history. The page gets it as when the node ran.
 * @param {(kind: unknown) => boolean} isWanted
 */
export async function restoreOutputs(isWanted) {
  const id = workflowId();
  if (!id || restored.has(id)) return;
  restored.add(id);
  const history = await fetchJson(`/history?max_items=${MOST_HISTORY}`); // the oldest first
  /** @type {Map<string, { output: any, prompt_id: string }>} the newest output by path */
  const found = new Map();
  for (const [promptId, { prompt, outputs }] of /** @type {[string, any][]} */ (Object.entries(history))) {
    const [, , items] = Array.isArray(prompt) ? prompt : [];
    if (workflowOf(prompt) !== id) continue;
    for (const [path, output] of Object.entries(outputs ?? {})) {
      const kind = items?.[path]?.class_type;
      if (isWanted(kind) && classOfPath(path) === kind) found.set(path, { output, prompt_id: promptId });
    }
  }
  if (workflowId() !== id) return; // another workflow was opened meanwhile
  for (const [path, output] of found) api.dispatchCustomEvent("executed", { node: path, display_node: path, ...output });
}

/**
 * The id of the workflow that a prompt of the server's queue or history was made from, "" where it has none.
 * @param {any} item [number, prompt_id, prompt, extra data, outputs]
 */
export const workflowOf = (item) => String(item?.[3]?.extra_pnginfo?.workflow?.id ?? "");

/** @param {string} path */
function classOfPath(path) {
  const node = nodeAt(path);
  return node && classOf(node);
}

/**
 * A setting's value, or undefined.
 * @param {string} id
 * @returns {unknown}
 */
export const setting = (id) => app.extensionManager?.setting?.get(id);

/**
 * Show a message in the corner of the page. life: milliseconds; without it the message stays.
 * @param {Parameters<ExtensionManager["toast"]["add"]>[0]} message
 */
export const toast = (message) => app.extensionManager?.toast?.add(message);

/** @param {Parameters<ExtensionManager["registerSidebarTab"]>[0]} tab */
export const addSidebarTab = (tab) => app.extensionManager.registerSidebarTab(tab);

/**
 * Change what the button of a sidebar tab is called.
 * @param {string} id
 * @param {{ title: string, tooltip: string }} texts
 */
export function renameSidebarTab(id, texts) {
  const tab = app.extensionManager.getSidebarTabs?.().find((one) => one.id === id);
  if (tab) Object.assign(tab, texts);
}

/**
 * Register the extension. From then on the functions given to `onNodeChange` are called for changes of the graph.
 * @param {Omit<ComfyExtension, "settings" | "nodeCreated"> & { settings: object[], nodeCreated: (node: Node) => void }} options
 */
export function register(options) {
  const extension = /** @type {ComfyExtension} */ (/** @type {unknown} */ (options)); // the types allow ComfyUI's own settings only
  for (const name of ["graphChanged", "reconnected"]) onEvent(name, wakeAll);
  const afterConfigureGraph = (/** @type {any[]} */ ...args) => {
    stopRemovedNodes();
    return extension.afterConfigureGraph?.(.../** @type {[any, any]} */ (args));
  };
  app.registerExtension({ ...extension, afterConfigureGraph });
}

/** Read the lists of files (LoRAs, embeddings, folders) again. */
export const refreshLists = async () => app.reloadNodeDefs?.();

/**
 * Open a workflow in a new tab.
 * @param {any} workflow as the page saves it
 * @param {string} name
 */
export const openWorkflow = (workflow, name) => app.loadGraphData(workflow, true, true, name);

/** The id of the open workflow, "" where it has none. */
export const workflowId = () => app.rootGraph?.id ?? "";

/**
 * Whether something of a workflow is about the open one. Where no id is known, it may be.
 * @param {string} id of a workflow, or ""
 */
export const isOpenWorkflow = (id) => !id || id === workflowId();

/**
 * The defaults of a node's widgets, by name, as the server tells them.
 * @param {string} kind
 * @returns {Promise<Record<string, unknown>>}
 */
export async function defaultsOf(kind) {
  const { input } = (await fetchJson(`/object_info/${encodeURIComponent(kind)}`))[kind] ?? {};
  const inputs = /** @type {[string, any[]][]} */ (Object.entries({ ...input?.required, ...input?.optional }));
  const known = inputs.map(([name, spec]) => [name, defaultIn(spec)]);
  return Object.fromEntries(known.filter(([, value]) => value !== undefined));
}

/**
 * The default of an input by its definition: the one that is named, else the first entry of a list, else undefined.
 * @param {any[]} spec [type, options]; the type of a list of the older kind is the list
 */
const defaultIn = ([type, options]) => options?.default ?? (Array.isArray(type) ? type[0] : options?.options?.[0]);

/**
 * Copy a text. Where the page may not write to the clipboard (over plain HTTP), the browser's older command does it.
 * @param {string} text
 */
export async function copyText(text) {
  if (globalThis.navigator.clipboard) return globalThis.navigator.clipboard.writeText(text);
  const field = document.createElement("textarea");
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
  return undefined;
}

// --- Callbacks of nodes and widgets ----------------------------------------------------------------------------------

/**
 * Call `extra` with the same arguments after the object's own callback. The callback's result is kept.
 * @param {any} object a node or a widget
 * @param {string} name
 * @param {(...args: any[]) => void} extra
 */
function after(object, name, extra) {
  const own = object[name];
  object[name] = function (/** @type {unknown[]} */ ...args) {
    const result = own?.apply(this, args);
    extra.apply(this, args);
    return result;
  };
}

/**
 * Call `react(output)` when the node ran.
 * @param {Node} node
 * @param {(output: any) => void} react
 */
export const onExecuted = (node, react) => after(node, "onExecuted", react);

/**
 * Call `react(saved)` when the node was given the values of a file, a copy or an undone step.
 * @param {Node} node
 * @param {(saved: any) => void} react
 */
export const onConfigured = (node, react) => after(node, "onConfigure", react);

/**
 * Call `react()` when the page is about to make a prompt and all widgets have their values for it.
 * @param {Node} node
 * @param {string} name of a panel of the node
 * @param {() => void} react
 */
export function onQueue(node, name, react) {
  after(widgetOf(node, name), "beforeQueued", () => {
    // At once, since some packs change the links while the prompt is made; later where other widgets change first.
    if (setting("Comfy.WidgetControlMode") === "before") queueMicrotask(react);
    else react();
  });
}

/** @type {Map<Node, (() => void)[]>} what stops that which was started for a node */
const started = new Map();

/**
 * Call `start()` whenever the node is put on a graph, and the function that it returns whenever the node leaves it.
 * @param {Node} node
 * @param {() => () => void} start
 */
export function whileOnGraph(node, start) {
  /** @type {(() => void) | null} */
  let stop = null;
  const begin = () => {
    if (stop) return;
    stop = start();
    started.set(node, [...(started.get(node) ?? []), finish]);
  };
  const finish = () => {
    stop?.();
    stop = null;
  };
  if (node.graph) begin();
  after(node, "onAdded", begin);
  after(node, "onRemoved", () => stopAll(node));
}

/** @param {Node} node */
function stopAll(node) {
  for (const finish of started.get(node) ?? []) finish();
  started.delete(node);
}

/** After a load: page 1.47 does not call `onRemoved` of the nodes inside subgraphs. */
function stopRemovedNodes() {
  for (const node of started.keys()) if (!isOnOpenGraph(node)) stopAll(node);
  wakeAll();
}

/**
 * Take files that are dropped on the node. Drops without files go to the node's own handler.
 * @param {Node} node
 * @param {(entries: FileSystemEntry[]) => void} take is given the dropped files and folders
 * @param {(entry: FileSystemEntry) => boolean} [isWanted] drops of which no file is wanted go on to the page
 */
export function onFilesDropped(node, take, isWanted = () => true) {
  const { onDragOver, onDragDrop } = node;
  node.onDragOver = function (event, ...rest) {
    const items = [...(event?.dataTransfer?.items ?? [])];
    return items.some((item) => item.kind === "file") || (onDragOver?.call(this, event, ...rest) ?? false);
  };
  node.onDragDrop = function (event, ...rest) {
    const items = [...(event?.dataTransfer?.items ?? [])];
    const entries = items.map((item) => item.webkitGetAsEntry?.()).filter((entry) => entry !== null && entry !== undefined);
    if (!entries.some(isWanted)) return onDragDrop?.call(this, event, ...rest) ?? false;
    take(entries);
    return true;
  };
}

/**
 * Whether a node is on a graph of the open workflow. A node that was removed by a load can still have `node.graph` set.
 * @param {Node} node
 */
function isOnOpenGraph(node) {
  const { graph, id } = node;
  const isOpen = graph === app.rootGraph || (graph && app.rootGraph?.subgraphs?.get(graph.id) === graph);
  return Boolean(isOpen) && graph?.getNodeById(id) === node;
}

/** @type {Set<() => void>} */
const wakers = new Set();
const wakeAll = () => wakers.forEach((wake) => wake());

/**
 * Call `react()` in the next frame after a change of the node or of anything else in the graph: a widget, a link, or the
 * values that the node is given.
 * @param {Node} node
 * @param {() => void} react
 * @returns {() => void} asks for one more call
 */
export function onNodeChange(node, react) {
  let scheduled = false;
  const wake = () => {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      if (isOnOpenGraph(node)) react();
    });
  };
  for (const widget of node.widgets ?? []) after(widget, "callback", wake);
  after(node, "onConnectionsChange", wake);
  after(node, "onConfigure", wake);
  whileOnGraph(node, () => {
    wakers.add(wake);
    wake();
    return () => wakers.delete(wake);
  });
  return wake;
}

// --- Widgets ---------------------------------------------------------------------------------------------------------

/** @param {Node} node */
export const classOf = (node) => node.comfyClass ?? node.type;

/**
 * A key that no other node has: the graph's id and the node's.
 * @param {Node} node
 */
export const nodeKey = (node) => `${node.graph?.id ?? ""}:${node.id}`;

/** @param {Node} node */
export const titleOf = (node) => String(node.title ?? classOf(node));

/**
 * @param {Node} node
 * @param {string} name
 */
export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/**
 * @param {Node} node
 * @param {string} name
 */
export const ownValue = (node, name) => widgetOf(node, name)?.value;

/**
 * Set a widget's value and call its callback. Does nothing where the value is the same.
 * @param {Node} node
 * @param {string} name
 * @param {Widget["value"]} value
 */
export function setValue(node, name, value) {
  const widget = widgetOf(node, name);
  if (!widget || widget.value === value) return;
  widget.value = value;
  widget.callback?.(value);
  node.graph?.setDirtyCanvas?.(true, true);
}

/**
 * Set several widgets; one undo takes all of them back.
 * @param {Node} node
 * @param {[name: string, value: Widget["value"]][]} changes
 */
export function setValues(node, changes) {
  app.canvas.emitBeforeChange?.();
  try {
    for (const [name, value] of changes) setValue(node, name, value);
  } finally {
    app.canvas.emitAfterChange?.();
  }
}

/** @type {Record<string, SavedWidget["kind"]>} the type of a widget's value, by the widget's type */
const KINDS = {
  number: "number",
  slider: "number",
  knob: "number",
  gradientslider: "number",
  toggle: "boolean",
  combo: "string",
  text: "string",
  string: "string",
  customtext: "string",
};

/**
 * The widgets that are saved, in the order in which the page reads a list of values.
 * @param {Node} node
 * @returns {SavedWidget[]} choices: the entries of a list, else null
 */
export function savedWidgets(node) {
  return (node.widgets ?? [])
    .filter((widget) => widget.serialize !== false)
    .map((widget) => ({
      name: widget.name,
      kind: KINDS[widget.type] ?? null,
      choices: widget.type === "combo" && Array.isArray(widget.options?.values) ? widget.options.values : null,
      value: widget.value,
    }));
}

/**
 * The values of a node's widgets that have no link, by name.
 * @param {Node} node
 * @returns {Record<string, unknown>}
 */
export function unlinkedValues(node) {
  const linked = new Set((node.inputs ?? []).map((input, slot) => (input.widget && linkInto(node, slot) ? input.widget.name : null)));
  const values = savedWidgets(node).filter(({ name }) => !linked.has(name));
  return Object.fromEntries(values.map(({ name, value }) => [name, value]));
}

/** Whether the canvas draws the nodes, not Nodes 2.0. */
export const isClassic = () => !globalThis.LiteGraph?.vueNodesMode;

/**
 * The widgets of a node's advanced inputs, in their order.
 * @param {Node} node
 */
function advancedOf(node) {
  const inputs = inputsOf(node);
  return (node.widgets ?? []).filter(({ name }) => inputs[name]?.[1]?.advanced);
}

/**
 * The definitions of a node's inputs, by name.
 * @param {Node} node
 * @returns {Record<string, any[]>}
 */
function inputsOf(node) {
  const { required, optional } = /** @type {any} */ (node.constructor).nodeData?.input ?? {};
  return { ...required, ...optional };
}

/**
 * The advanced inputs of a node, in their order.
 * @param {Node} node
 * @returns {{ name: string, isLinked: boolean, isDefault: boolean }[]}
 */
export function advancedWidgets(node) {
  const [inputs, values] = [inputsOf(node), unlinkedValues(node)];
  return advancedOf(node).map(({ name, value }) => ({ name, isLinked: !(name in values), isDefault: value === defaultIn(inputs[name]) }));
}

/**
 * Hide the named widgets from the canvas and show all others. Their values are saved and sent either way.
 * @param {Node} node
 * @param {Set<string>} names
 */
export function hideWidgets(node, names) {
  for (const widget of advancedOf(node)) widget.hidden = names.has(widget.name);
  node.graph?.setDirtyCanvas?.(true, true);
}

const ROW = 24; // px, of a widget in the classic look

/**
 * Leave the advanced widgets out of the height that Nodes 2.0 gives a node at least, where it folds them. Without this the
 * node keeps the classic height, and more than half of it is empty.
 * @param {Node} node
 */
export function leaveAdvancedOut(node) {
  const own = node.computeSize;
  node.computeSize = function (/** @type {any[]} */ ...args) {
    const size = own.apply(this, /** @type {any} */ (args));
    if (!isClassic() && !this.showAdvanced) size[1] -= ROW * advancedOf(node).length;
    return size;
  };
}

/**
 * A property of a node, which is saved with the graph.
 * @param {Node} node
 * @param {string} name
 */
export const propertyOf = (node, name) => node.properties?.[name];

/**
 * @param {Node} node
 * @param {string} name
 * @param {boolean} value
 */
export function setProperty(node, name, value) {
  node.properties = { ...node.properties, [name]: value };
}

// --- Panels ----------------------------------------------------------------------------------------------------------

const MARGIN = 6; // px

/**
 * Add an element below all inputs of a node. It is not a value of the prompt and is not saved. The panel is the last
 * widget, so it does not shift saved values: pages up to 1.52 count it in the list of values, later pages do not.
 * The node never becomes smaller.
 * @param {Node} node
 * @param {string} name
 * @param {HTMLElement} element
 * @param {{ height: () => number, grows?: boolean }} options height in px; grows: whether the panel uses the extra height of a larger node
 */
export function addPanel(node, name, element, { height, grows = false }) {
  const outer = () => height() + 2 * MARGIN;
  const frame = document.createElement("div");
  frame.className = "bespoke-frame";
  frame.dataset.panel = name;
  frame.append(element);
  const host = /** @type {DOMWidgetHost} */ (/** @type {unknown} */ (node));
  const widget = host.addDOMWidget(name, `bespoke_${name}`, frame, {
    serialize: false, // not a value of the prompt
    hideOnZoom: false,
    hideInPanel: true, // no input: the page's side panel of parameters would show its name and nothing else
    margin: MARGIN, // in the classic canvas; Nodes 2.0 has its own
    getMinHeight: outer,
  });
  widget.serialize = false; // nor of the workflow
  if (!grows) {
    // Without a layout size Nodes 2.0, too, gives the element exactly its own height.
    widget.computeLayoutSize = undefined;
    widget.computeSize = (width) => [width ?? 0, outer()];
  }
  onNodeChange(node, () => replaceStalePanel(node, frame));
  fitNode(node);
}

/**
 * After undo and redo Nodes 2.0 still shows the panel of the removed node. Replace it by the panel of the new node. Where
 * the page inserts the panel itself later, it moves the element.
 * @param {Node} node
 * @param {HTMLElement} frame
 */
function replaceStalePanel(node, frame) {
  if (frame.isConnected || isClassic() || app.canvas.graph !== node.graph) return;
  const selector = `[data-node-id="${CSS.escape(String(node.id))}"] .bespoke-frame[data-panel="${frame.dataset.panel}"]`;
  document.querySelector(selector)?.replaceChildren(frame);
}

/**
 * Make the node as large as its widgets need. It never becomes smaller.
 * @param {Node} node
 */
export function fitNode(node) {
  if (!isClassic()) return; // Nodes 2.0 measures the elements itself, without the folded inputs
  const [width, height] = node.computeSize();
  if (node.size[0] < width || node.size[1] < height) node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  node.graph?.setDirtyCanvas?.(true, true);
}

/**
 * The height of the node in px.
 * @param {Node} node
 */
export const heightOf = (node) => node.size[1];

/**
 * The height in px that the node's widgets need.
 * @param {Node} node
 */
export const neededHeight = (node) => node.computeSize()[1];

/**
 * Make the node lower by a number of px, but not lower than its widgets need.
 * @param {Node} node
 * @param {number} by
 */
export function shrinkNode(node, by) {
  const height = Math.max(neededHeight(node), node.size[1] - by);
  if (height < node.size[1]) node.setSize([node.size[0], height]);
  node.graph?.setDirtyCanvas?.(true, true);
}

// --- Links -----------------------------------------------------------------------------------------------------------

const SUBGRAPH_INPUT = -10; // origin id of a link that comes from outside a subgraph
const [MUTED, BYPASSED] = [2, 4];
const DEEPEST = 100; // nodes on one path, for graphs with a circle

/**
 * The link into an input slot, or null. The node of a subgraph overrides `getInputLink` with the link inside the subgraph,
 * so the method of the base class is called.
 * @param {Node} node
 * @param {number} slot
 * @returns {Link | null}
 */
function linkInto(node, slot) {
  if (slot < 0 || !node.graph) return null;
  const read = globalThis.LiteGraph?.LGraphNode?.prototype.getInputLink ?? node.getInputLink;
  return read.call(node, slot) ?? null;
}

/**
 * @param {Node} node
 * @param {string} name
 */
const slotOf = (node, name) => (node.inputs ?? []).findIndex((input) => (input.widget?.name ?? input.name) === name);

/**
 * Whether an input has a link, wherever it comes from.
 * @param {Node} node
 * @param {string} name
 */
export const isLinked = (node, name) => linkInto(node, slotOf(node, name)) !== null;

/**
 * What feeds an input, as the prompt resolves it: through reroutes, Get and Set nodes, bypassed nodes and the borders of
 * subgraphs. Where that is not certain, the reason.
 * @param {Node} node
 * @param {string} name
 * @returns {Source}
 */
export function sourceOf(node, name) {
  return sourceOfSlot(node, slotOf(node, name), []);
}

// In the functions below, holders are the nodes of the subgraphs that the path has entered and not left, outermost first.

/** @type {NoSource} */
const OPEN = { problem: "open" };
/** @type {NoSource} */
const MUTED_SOURCE = { problem: "muted" };
/** @type {NoSource} */
const UNKNOWN = { problem: "unknown" };

/**
 * @param {Node} node
 * @param {number} slot
 * @param {Node[]} holders
 * @returns {Source}
 */
function sourceOfSlot(node, slot, holders, depth = 0) {
  const link = linkInto(node, slot);
  if (!link) return isFedAtQueue(node, slot) ? UNKNOWN : OPEN;
  return sourceOfLink(link, node.graph, node.inputs?.[slot]?.type, holders, depth);
}

/**
 * @param {Link | null | undefined} link
 * @param {Graph | null} graph
 * @param {unknown} type of the input at the end of the path
 * @param {Node[]} holders
 * @param {number} depth
 * @returns {Source}
 */
function sourceOfLink(link, graph, type, holders, depth) {
  if (depth > DEEPEST) return UNKNOWN;
  if (!link || !graph) return OPEN;
  if (Number(link.origin_id) === SUBGRAPH_INPUT) return sourceOutside(graph, link.origin_slot, holders, depth + 1);
  const origin = graph.getNodeById(link.origin_id);
  return origin ? sourceOfOutput(origin, link.origin_slot, type, holders, depth + 1) : OPEN;
}

/**
 * The source of a subgraph's input. Where several nodes stand for the subgraph and their sources differ, it is unknown.
 * @param {Graph} subgraph
 * @param {number} slot
 * @param {Node[]} holders
 * @param {number} depth
 * @returns {Source}
 */
function sourceOutside(subgraph, slot, holders, depth) {
  const last = holders[holders.length - 1];
  const possible = last?.subgraph === subgraph ? [last] : holdersOf(subgraph);
  const [first, ...others] = possible.map((holder) => sourceAtHolder(holder, slot, holders.slice(0, -1), depth));
  if (!first) return UNKNOWN;
  return others.every((one) => isSameSource(one, first)) ? first : UNKNOWN;
}

/**
 * @param {Node} holder
 * @param {number} slot
 * @param {Node[]} holders
 * @param {number} depth
 * @returns {Source}
 */
function sourceAtHolder(holder, slot, holders, depth) {
  if (linkInto(holder, slot)) return sourceOfSlot(holder, slot, holders, depth);
  if (isFedAtQueue(holder, slot)) return UNKNOWN;
  const input = holder.inputs?.[slot];
  const shown = input && holder.getWidgetFromSlot?.(input);
  return shown ? { value: shown.value } : OPEN;
}

/**
 * @param {Source} a
 * @param {Source} b
 */
function isSameSource(a, b) {
  const slotOfSource = (/** @type {Source} */ one) => (one.node ? one.slot : -1);
  const problemOf = (/** @type {Source} */ one) => ("problem" in one ? one.problem : null);
  const isSamePath = (a.holders ?? []).every((holder, i) => holder === b.holders?.[i]) && a.holders?.length === b.holders?.length;
  return a.node === b.node && slotOfSource(a) === slotOfSource(b) && isSamePath && valueIn(a) === valueIn(b) && problemOf(a) === problemOf(b);
}

/** @param {Source} source */
const valueIn = (source) => ("value" in source ? source.value : undefined);

/**
 * @param {Node} node
 * @param {number} slot of an output
 * @param {unknown} type
 * @param {Node[]} holders
 * @param {number} depth
 * @returns {Source}
 */
function sourceOfOutput(node, slot, type, holders, depth) {
  if (depth > DEEPEST) return UNKNOWN;
  if (node.mode === MUTED) return MUTED_SOURCE;
  if (node.mode === BYPASSED) {
    const around = bypassSlot(node, slot, type);
    return linkInto(node, around) ? sourceOfSlot(node, around, holders, depth) : MUTED_SOURCE;
  }
  if (node.subgraph) {
    const link = node.subgraph.outputNode?.slots?.[slot]?.getLinks?.()[0];
    return sourceOfLink(link, node.subgraph, type, [...holders, node], depth);
  }
  if (!node.isVirtualNode || node.type === "PrimitiveNode") return { node, slot, holders };
  return sourceOfVirtual(node, slot, type, holders, depth);
}

/**
 * The source of an output of a node that the prompt leaves out, as the node itself resolves it.
 * @param {Node} node
 * @param {number} slot of the output
 * @param {unknown} type
 * @param {Node[]} holders
 * @param {number} depth
 * @returns {Source}
 */
function sourceOfVirtual(node, slot, type, holders, depth) {
  // Some packs' Get nodes open an alert where their Set node is missing or is there twice, so it is looked up first.
  if (isGetNode(node)) {
    const setters = settersOf(node);
    if (setters.length !== 1) return setters.length ? UNKNOWN : OPEN;
    if (!linkInto(setters[0], 0)) return OPEN;
  }
  try {
    const source = node.resolveVirtualOutput?.(slot);
    if (source) return sourceOfOutput(source.node, source.slot, type, holders, depth + 1);
    const link = /** @type {Link | null | undefined} */ (node.getInputLink(slot));
    if (link) return sourceOfLink(link, node.graph, type, holders, depth + 1);
  } catch {
    return UNKNOWN; // another pack's code
  }
  return node.inputs?.length === 1 && !isGetNode(node) ? OPEN : UNKNOWN;
}

/** @param {Node} node */
const isGetNode = (node) => /get_?node$/i.test(node.type ?? "");

/**
 * The Set nodes that a Get node may read: of the same pack, with the same name in their first widget, in the nearest graph
 * that has one, from its own outwards.
 * @param {Node} getter
 * @returns {Node[]}
 */
function settersOf(getter) {
  const type = getter.type.replace(/get(_?node)$/i, (all, rest) => (all[0] === "G" ? `Set${rest}` : `set${rest}`));
  const name = getter.widgets?.[0]?.value;
  for (let graph = getter.graph; graph; graph = holdersOf(graph)[0]?.graph ?? null) {
    const found = nodesOf(graph).filter((node) => node.type === type && node.widgets?.[0]?.value === name);
    if (found.length) return found;
  }
  return [];
}

/**
 * Whether a pack may link an input that has no link when the prompt is made. cg-use-everywhere does so, for inputs, and for
 * widgets where its property allows it.
 * @param {Node} node
 * @param {number} slot
 */
function isFedAtQueue(node, slot) {
  const input = node.inputs?.[slot];
  const rules = /** @type {any} */ (node.properties?.ue_properties);
  const may = input?.widget ? rules?.widget_ue_connectable?.[input.widget.name] : input && !rules?.input_ue_unconnectable?.[input.name];
  return Boolean(may) && hasBroadcast(node.graph?.rootGraph ?? node.graph);
}

/**
 * @param {Graph | null | undefined} root
 * @returns {boolean}
 */
function hasBroadcast(root) {
  return allNodes(root).some((node) => node.mode !== MUTED && (/\bEverywhere\b/.test(node.type ?? "") || node.properties?.ue_convert));
}

/**
 * The input that stands for an output of a bypassed node, by the page's rule: the one at the same slot if it fits the
 * output and the asked type, else the first of exactly the asked type, else the first that fits both. -1 where none does.
 * @param {Node} node
 * @param {number} slot
 * @param {unknown} type
 */
function bypassSlot(node, slot, type) {
  const inputs = node.inputs ?? [];
  if (!type || type === "*") return inputs.length > slot ? slot : 0;
  const isValid = (/** @type {any} */ one, /** @type {any} */ other) => globalThis.LiteGraph.isValidConnection(one, other);
  const connects = (/** @type {{ type: unknown } | undefined} */ input) =>
    input !== undefined && isValid(input.type, node.outputs?.[slot]?.type) && isValid(input.type, type);
  if (connects(inputs[slot])) return slot;
  const exact = inputs.findIndex((input) => input.type === type);
  return exact >= 0 ? exact : inputs.findIndex(connects);
}

/** @type {Reading} */
const NOT_KNOWN = { isKnown: false };
// Core's nodes that hand on their widget.
const PRIMITIVES = /^Primitive(Int|Float|Boolean|String|StringMultiline)$/;

/**
 * A widget's value as the prompt gets it: that of the primitive or of the subgraph's widget linked to it, else its own, also
 * where the link leads to no source or to a muted one. Not known where something else is linked to it.
 * @param {Node} node
 * @param {string} name
 * @param {Node[]} [holders] see above
 * @returns {Reading}
 */
export function readValue(node, name, holders = [], depth = 0) {
  const own = ownValue(node, name);
  const slot = slotOf(node, name);
  const source = slot < 0 ? OPEN : sourceOfSlot(node, slot, holders);
  if ("problem" in source) return source.problem === "unknown" ? NOT_KNOWN : { value: own, isKnown: true };
  const found = source.node ? readPrimitive(source, depth) : source;
  return found !== NOT_KNOWN && typeof found.value === typeof own ? { value: found.value, isKnown: true } : NOT_KNOWN;
}

/**
 * @param {NodeSource} source
 * @param {number} depth
 * @returns {Reading}
 */
function readPrimitive({ node, holders }, depth) {
  const control = node.widgets?.find(({ name }) => name === "control_after_generate")?.value ?? "fixed";
  const isCore = PRIMITIVES.test(node.type ?? "") && moduleOf(node).startsWith("comfy_extras.");
  if (depth > DEEPEST || !(isCore || node.type === "PrimitiveNode")) return NOT_KNOWN;
  if (control !== "fixed" && setting("Comfy.WidgetControlMode") === "before") return NOT_KNOWN; // the queue changes it first
  return isCore ? readValue(node, "value", holders, depth + 1) : { value: node.widgets?.[0]?.value, isKnown: true };
}

/** @param {Node} node */
const moduleOf = (node) => String(/** @type {any} */ (node.constructor)?.nodeData?.python_module ?? "");

/**
 * As `readValue`, undefined where the value is not known.
 * @param {Node} node
 * @param {string} name
 */
export function linkedValue(node, name) {
  return /** @type {Widget["value"]} */ (readValue(node, name).value);
}

/**
 * The nodes that lead to a node's model, the first one first, with the values that are known: strings, numbers, booleans.
 * problem: why the path ends before a node that loads the model.
 * @param {Node} node
 * @returns {{ steps: ModelStep[], problem: Problem | null }}
 */
export function modelChain(node) {
  /** @type {ModelStep[]} */
  const steps = [];
  let at = node;
  /** @type {Node[]} */
  let holders = [];
  for (let slot = modelSlot(at); slot >= 0; slot = modelSlot(at)) {
    const source = sourceOfSlot(at, slot, holders);
    if (!source.node) return { steps, problem: "problem" in source ? source.problem : "unknown" };
    [at, holders] = [source.node, source.holders];
    steps.unshift({ node: at, input: at.inputs?.[modelSlot(at)]?.name ?? null, values: readValues(at, holders) });
    if (at.outputs?.[source.slot]?.type !== "MODEL" || steps.length > DEEPEST) return { steps, problem: "unknown" };
  }
  return { steps, problem: null };
}

/**
 * @param {Node} node
 * @param {Node[]} holders
 */
function readValues(node, holders) {
  const simple = savedWidgets(node).filter(({ value }) => ["string", "number", "boolean"].includes(typeof value));
  const readings = simple.map(({ name }) => ({ name, ...readValue(node, name, holders) }));
  return Object.fromEntries(readings.filter(({ isKnown }) => isKnown).map(({ name, value }) => [name, value]));
}

/**
 * The input called "model", else the first that takes a model. -1 where there is none.
 * @param {Node} node
 */
function modelSlot(node) {
  const inputs = node.inputs ?? [];
  const named = inputs.findIndex((input) => input.name === "model" && input.type === "MODEL");
  return named >= 0 ? named : inputs.findIndex(({ type }) => type === "MODEL");
}

// Outputs that carry no model and no number: the widgets of a node with no other outputs do not matter to a schedule.
const NO_SCHEDULE = new Set(["CONDITIONING", "IMAGE", "LATENT", "MASK", "CLIP", "VAE", "CLIP_VISION", "CONTROL_NET"]);

/**
 * A text that changes with what some inputs of a node depend on: the nodes before them, their links, their modes and their
 * widgets, but for seeds. Where a node before them finds its source in its own way, it changes with the whole workflow.
 * @param {Node} node
 * @param {string[]} names of the inputs
 */
export function wiringOf(node, names) {
  /** @type {Map<Node, unknown>} */
  const lines = new Map();
  const mayBeFed = hasBroadcast(node.graph?.rootGraph ?? node.graph);
  let isWhole = false;
  /** @type {(at: Node, wanted: string[] | null) => void} */
  const visit = (at, wanted) => {
    if (lines.has(at)) return;
    const inputs = (at.inputs ?? []).map((input, slot) => ({ name: input.widget?.name ?? input.name, slot, link: linkInto(at, slot) }));
    const used = inputs.filter(({ name }) => !wanted || wanted.includes(name));
    lines.set(at, lineOf(at, used, wanted));
    const setters = isGetNode(at) ? settersOf(at) : [];
    const isClosed = at.isVirtualNode && at.type !== "PrimitiveNode" && !setters.length && !used.some(({ link }) => link);
    isWhole ||= isClosed || (mayBeFed && used.some(({ slot, link }) => !link && isFedAtQueue(at, slot)));
    for (const { link } of used) visitOrigin(at, link);
    for (const inner of [...setters, ...nodesOf(at.subgraph)]) visit(inner, null);
  };
  const visitOrigin = (/** @type {Node} */ at, /** @type {Link | null} */ link) => {
    if (!link) return;
    const origin = at.graph?.getNodeById(link.origin_id);
    for (const one of Number(link.origin_id) === SUBGRAPH_INPUT ? holdersOf(at.graph) : origin ? [origin] : []) visit(one, null);
  };
  visit(node, names);
  if (isWhole) allNodes(node.graph?.rootGraph ?? node.graph).forEach((one) => visit(one, null));
  return JSON.stringify([...lines.values()]);
}

/**
 * @param {Node} node
 * @param {{ name: string, link: Link | null }[]} inputs
 * @param {string[] | null} wanted the widgets that count; null: all
 */
function lineOf(node, inputs, wanted) {
  const matters = !node.outputs?.length || node.outputs.some(({ type }) => !NO_SCHEDULE.has(String(type)));
  const widgets = savedWidgets(node).filter(({ name }) => (wanted ? wanted.includes(name) : matters && !/(^|_)seed$/i.test(name)));
  const values = widgets.map(({ name, value }) => [name, typeof value === "object" ? JSON.stringify(value) : value]);
  const links = inputs.map(({ name, link }) => [name, link ? `${link.origin_id}:${link.origin_slot}` : null]);
  return [nodeKey(node), node.type, node.mode, values, links];
}

// --- Graphs and where nodes are in them ------------------------------------------------------------------------------

/**
 * @param {Graph | null | undefined} graph
 * @returns {Node[]}
 */
const nodesOf = (graph) => graph?.nodes ?? [];

/**
 * The nodes of a graph and of all graphs inside it.
 * @param {Graph | null | undefined} graph
 * @returns {Node[]}
 */
function allNodes(graph, depth = 0) {
  if (depth > DEEPEST) return [];
  return nodesOf(graph).flatMap((node) => [node, ...(node.subgraph ? allNodes(node.subgraph, depth + 1) : [])]);
}

/**
 * The nodes that stand for a subgraph in the graphs around it. None for the root graph.
 * @param {Graph | null | undefined} subgraph
 * @returns {Node[]}
 */
function holdersOf(subgraph) {
  const root = subgraph?.rootGraph;
  if (!root || root === subgraph) return [];
  return [...new Set(allNodes(root).filter((node) => node.subgraph === subgraph))];
}

/**
 * The node at an execution path such as "1:2:3", or null.
 * @param {string} path
 */
function nodeAt(path) {
  /** @type {Node | null} */
  let node = null;
  /** @type {Graph | undefined} */
  let graph = app.rootGraph;
  for (const id of String(path).split(":")) {
    node = graph?.getNodeById(id) ?? graph?.getNodeById(Number(id)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

/**
 * Every execution path that leads to a node: one, or as many as there are nodes with its subgraph.
 * @param {Node} node
 */
export function pathsOf(node) {
  const root = node.graph?.rootGraph ?? node.graph;
  if (!root) return [];
  if (node.graph === root) return [String(node.id)];
  /** @type {string[]} */
  const found = [];
  /** @type {(graph: Graph, before: string, depth: number) => void} */
  const look = (graph, before, depth) => {
    for (const holder of nodesOf(graph)) {
      if (!holder.subgraph || depth > DEEPEST) continue;
      const path = `${before}${holder.id}:`;
      if (holder.subgraph === node.graph) found.push(`${path}${node.id}`);
      look(holder.subgraph, path, depth + 1);
    }
  };
  look(root, "", 0);
  return found;
}

/**
 * Open the graph that contains the node at a path and bring the node into view. Returns whether there is such a node.
 * @param {string} path
 */
export function showNode(path) {
  const node = nodeAt(path);
  if (!node) return false;
  if (node.graph && app.canvas.graph !== node.graph) app.canvas.setGraph(node.graph);
  app.canvas.selectNode?.(node);
  app.canvas.centerOnNode(node);
  app.canvas.setDirty(true, true);
  return true;
}

/** The selected nodes of the graph that is shown. */
export function selectedNodes() {
  const items = /** @type {Iterable<Node>} */ (app.canvas.selectedItems ?? []);
  return [...items].filter((item) => item.widgets || item.inputs);
}

/**
 * Add a node in the middle of the visible part of the graph and select it. Throws where this ComfyUI has no such node.
 * @param {string} type
 */
export function addNode(type) {
  const node = globalThis.LiteGraph.createNode(type);
  if (!node) throw new Error(type);
  const [x, y, width, height] = app.canvas.visible_area ?? [0, 0, 800, 600];
  node.pos = [x + width / 2 - node.size[0] / 2, y + height / 2 - node.size[1] / 2];
  app.canvas.graph?.add(node);
  app.canvas.selectNode?.(node);
  app.canvas.setDirty(true, true);
  return node;
}

/**
 * The left and the bottom of all nodes and groups of the graph that is shown, in its units; [0, 0] where it is empty.
 * @returns {[left: number, bottom: number]}
 */
export function bottomLeft() {
  const graph = app.canvas.graph;
  const boxes = [...(graph?.nodes ?? []), ...(graph?.groups ?? [])];
  if (!boxes.length) return [0, 0];
  return [Math.min(...boxes.map(({ pos }) => pos[0])), Math.max(...boxes.map(({ pos, size }) => pos[1] + size[1]))];
}

/**
 * Select a node and move the view to it.
 * @param {Node} node
 */
export function goTo(node) {
  app.canvas.selectNode?.(node);
  app.canvas.centerOnNode(node);
}

/** The nodes of the graph that is shown. @returns {Node[]} */
export const shownNodes = () => [...(app.canvas.graph?.nodes ?? [])];

/**
 * The name of a node's first output of a type, "" where it has none.
 * @param {Node} node
 * @param {string} type
 */
export function outputOfType(node, type) {
  return node.outputs?.find((output) => output.type === type)?.name ?? "";
}

/**
 * Connect an output with an input, both by name. Does nothing where one of the nodes has no such.
 * @param {Node} from
 * @param {string} output
 * @param {Node} to
 * @param {string} input
 */
export function connect(from, output, to, input) {
  const slots = [from.outputs?.findIndex(({ name }) => name === output) ?? -1, slotOf(to, input)];
  if (slots.every((slot) => slot >= 0)) from.connect?.(slots[0], to, slots[1]);
}
