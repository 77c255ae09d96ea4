// The only module that touches ComfyUI's page: `app`, `api`, LiteGraph, graphs, nodes and widgets. No side effects:
// index.js registers what is here.
//
// Public extension API: `app.registerExtension`, `app.extensionManager` (settings, toasts, sidebar, commands), `api`,
// `node.addDOMWidget`, `node.setSize`, `node.computeSize`, the node callbacks `onConfigure`, `onConnectionsChange`, `onExecuted`, `onAdded`, `onRemoved`,
// `onDragOver`, `onDragDrop`, `widget.callback`, `widget.serialize`, `widget.options`,
// `LiteGraph.createNode`, `LiteGraph.isValidConnection`, `graph.add`, `graph.setDirtyCanvas` and `LGraphNode.getInputLink`.
// No module reorders `node.widgets` or writes `widgets_values`.
//
// Not documented, each seen on the pages 1.44.19, 1.47.12, 1.49.6, 1.53.6 and 1.58.1:
//   app.rootGraph, graph.rootGraph, subgraphs  the outermost graph; the graphs inside nodes, by id
//   app.canvas.graph, setGraph, selectNode, centerOnNode, setDirty, selectedItems, visible_area
//   app.loadGraphData, app.reloadNodeDefs      open a workflow; read the lists of files again
//   api "graphChanged", "reconnected"          the page noticed a change of the graph; the server is back
//   node.subgraph, graph.nodes, getNodeById    the graph inside a node; a graph's nodes
//   subgraph.outputNode.slots[i].getLinks()    what leaves a subgraph
//   link.origin_id === -10                     a link from outside a subgraph
//   node.isVirtualNode, resolveVirtualOutput   nodes that the prompt leaves out: Reroute, Get nodes
//   node.mode 2 and 4, getWidgetFromSlot       muted and bypassed; the widget of an input, also on a subgraph's node
//   LiteGraph.vueNodesMode, [data-node-id]     Nodes 2.0 is on; a node's element there
//   widget.computeLayoutSize, computeSize      the room that a widget takes

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

// --- The server and the page ---------------------------------------------------------------------------------------

/** As `fetch`, for a path of ComfyUI's server. */
export const fetchApi = (path, options) => api.fetchApi(path, options);
export const apiURL = (path) => api.apiURL(path);

/** Call `listener(detail)` on an event of the server's socket or of the page. */
export function onEvent(name, listener) {
  api.addEventListener(name, ({ detail }) => listener(detail));
}

/** A setting's value, or undefined. */
export const setting = (id) => app.extensionManager?.setting?.get(id);

/** A message in the corner: { severity: "info" | "success" | "warn" | "error", summary, detail, life in ms }. */
export const toast = (message) => app.extensionManager?.toast?.add(message);

export const addSidebarTab = (tab) => app.extensionManager.registerSidebarTab(tab);

/** Register the extension. Watched nodes hear of every change of the graph from here on. */
export function register(extension) {
  for (const name of ["graphChanged", "reconnected"]) onEvent(name, wakeAll);
  app.registerExtension({ ...extension, afterConfigureGraph: endWhatIsGone });
}

/** Read the lists of files (LoRAs, embeddings, folders) again. */
export const refreshLists = async () => app.reloadNodeDefs?.();

/** Open a workflow in a new tab. */
export const openWorkflow = (workflow, name) => app.loadGraphData(workflow, true, true, name);

/** The id of the workflow that is open, "" where it has none. */
export const workflowId = () => app.rootGraph?.id ?? "";

// --- Callbacks of nodes and widgets ----------------------------------------------------------------------------------

/** Call `extra` with the same arguments after the object's own callback; its answer stays. */
function after(object, name, extra) {
  const own = object[name];
  object[name] = function (...args) {
    const answer = own?.apply(this, args);
    extra.apply(this, args);
    return answer;
  };
}

/** Call `react(output)` when the node ran. */
export const onExecuted = (node, react) => after(node, "onExecuted", react);

/** Call `react(saved)` when the node took the values of a file, a copy or an undone step. */
export const onConfigured = (node, react) => after(node, "onConfigure", react);

const started = new Map(); // node -> what ends what was started for it

/** Call `start()` whenever the node is put on a graph, and what it gives whenever the node leaves it. */
export function whileOnGraph(node, start) {
  let end = null;
  const begin = () => {
    if (end) return;
    end = start();
    started.set(node, [...(started.get(node) ?? []), finish]);
  };
  const finish = () => {
    end?.();
    end = null;
  };
  if (node.graph) begin();
  after(node, "onAdded", begin);
  after(node, "onRemoved", () => endAll(node));
}

function endAll(node) {
  for (const finish of started.get(node) ?? []) finish();
  started.delete(node);
}

/** After a load: page 1.47 does not tell the nodes inside subgraphs that they are gone. */
function endWhatIsGone() {
  for (const node of started.keys()) if (!isThere(node)) endAll(node);
  wakeAll();
}

/**
 * Take files that are dropped on the node. take(entries): the dropped file system entries; it is asked only where
 * there are some, and other drops go on to the node's own handler.
 */
export function onFilesDropped(node, take) {
  const [over, drop] = [node.onDragOver, node.onDragDrop];
  node.onDragOver = function (event, ...rest) {
    return [...(event?.dataTransfer?.items ?? [])].some((item) => item.kind === "file") || (over?.call(this, event, ...rest) ?? false);
  };
  node.onDragDrop = function (event, ...rest) {
    const entries = [...(event?.dataTransfer?.items ?? [])].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    if (!entries.length) return drop?.call(this, event, ...rest) ?? false;
    take(entries);
    return true;
  };
}

/** Whether a node is on a graph of the open workflow. A node that was removed by a load can still have `node.graph` set. */
function isThere(node) {
  const { graph, id } = node;
  const isOpen = graph === app.rootGraph || (graph && app.rootGraph?.subgraphs?.get(graph.id) === graph);
  return Boolean(isOpen) && graph.getNodeById(id) === node;
}

const watched = new Set();
const wakeAll = () => watched.forEach((wake) => wake());

/**
 * Call `react()` in the next frame after anything that it may read has changed: a widget of the node, its links, the
 * values that it was given, or anything else in the graph. Gives the function that asks for one more call.
 */
export function watch(node, react) {
  let asked = false;
  const wake = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      if (isThere(node)) react();
    });
  };
  for (const widget of node.widgets ?? []) after(widget, "callback", wake);
  after(node, "onConnectionsChange", wake);
  after(node, "onConfigure", wake);
  whileOnGraph(node, () => {
    watched.add(wake);
    wake();
    return () => watched.delete(wake);
  });
  return wake;
}

// --- Widgets ---------------------------------------------------------------------------------------------------------

export const classOf = (node) => node.comfyClass ?? node.type;
/** Tells a node from all others: its graph's id and its own. */
export const placeOf = (node) => `${node.graph?.id ?? ""}:${node.id}`;
export const titleOf = (node) => String(node.title ?? classOf(node));
export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);
export const ownValue = (node, name) => widgetOf(node, name)?.value;

/** Set a widget's value and call its callback. Does nothing where the value is the same. */
export function setValue(node, name, value) {
  const widget = widgetOf(node, name);
  if (!widget || widget.value === value) return;
  widget.value = value;
  widget.callback?.(value);
  node.graph?.setDirtyCanvas?.(true, true);
}

const KINDS = { number: "number", slider: "number", knob: "number", gradientslider: "number", toggle: "boolean", combo: "string", text: "string", string: "string", customtext: "string" };

/**
 * The widgets that are saved, in the order in which the page reads a list of values:
 * [{ name, kind: "number" | "boolean" | "string" | null, choices: array or null, value }].
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

/** What the widgets of a node that are not wired ask for, by name. */
export function requestOf(node) {
  const wired = new Set((node.inputs ?? []).filter((input, slot) => input.widget && linkInto(node, slot)).map((input) => input.widget.name));
  return Object.fromEntries(savedWidgets(node).filter(({ name }) => !wired.has(name)).map(({ name, value }) => [name, value]));
}

// --- Panels ----------------------------------------------------------------------------------------------------------

const MARGIN = 6; // px

/**
 * Add an element below all inputs of a node. It is not a value of the prompt and is not saved. The panel is the last
 * widget, so it does not shift saved values: pages up to 1.52 count it in the list of values, later pages do not.
 * height: () => px; grows: whether it takes the room that a larger node has. A node never gets smaller by it.
 */
export function addPanel(node, name, element, { height, grows = false }) {
  const outer = () => height() + 2 * MARGIN;
  const frame = document.createElement("div");
  frame.className = "bespoke-frame";
  frame.dataset.panel = name;
  frame.append(element);
  const widget = node.addDOMWidget(name, `bespoke_${name}`, frame, {
    serialize: false, // not a value of the prompt
    hideOnZoom: false,
    margin: MARGIN, // in the classic canvas; Nodes 2.0 has its own
    getMinHeight: outer,
  });
  widget.serialize = false; // nor of the workflow
  if (!grows) {
    // Without a layout size Nodes 2.0, too, gives the element its own height and no more.
    widget.computeLayoutSize = undefined;
    widget.computeSize = (width) => [width ?? 0, outer()];
  }
  watch(node, () => takePlace(node, frame));
  fitNode(node);
}

/**
 * After undo and redo Nodes 2.0 goes on showing the element of the node that was there before, whose panel is dead: its
 * place is taken. Where the page puts the panel in by itself later, it takes it out of there.
 */
function takePlace(node, frame) {
  if (frame.isConnected || !globalThis.LiteGraph?.vueNodesMode || app.canvas.graph !== node.graph) return;
  const shown = document.querySelector(`[data-node-id="${CSS.escape(node.id)}"] .bespoke-frame[data-panel="${frame.dataset.panel}"]`);
  shown?.replaceChildren(frame);
}

/** Let the node be as large as its widgets want. */
export function fitNode(node) {
  if (globalThis.LiteGraph?.vueNodesMode) return; // Nodes 2.0 measures what is there, without the folded inputs
  const [width, height] = node.computeSize();
  if (node.size[0] < width || node.size[1] < height) node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  node.graph?.setDirtyCanvas?.(true, true);
}

// --- Links -----------------------------------------------------------------------------------------------------------

const SUBGRAPH_INPUT = -10; // origin id of a link that comes from outside a subgraph
const [MUTED, BYPASSED] = [2, 4];
const DEEPEST = 100; // nodes on one way, for graphs with a circle

/** The link into an input slot, or null. A subgraph's node answers `getInputLink` for its inside, so its class is asked. */
function linkInto(node, slot) {
  if (slot < 0 || !node.graph) return null;
  const read = globalThis.LiteGraph?.LGraphNode?.prototype.getInputLink ?? node.getInputLink;
  return read.call(node, slot) ?? null;
}

const slotOf = (node, name) => (node.inputs ?? []).findIndex((input) => (input.widget?.name ?? input.name) === name);

/** Whether something is wired to an input, whatever it comes from. */
export const isWired = (node, name) => linkInto(node, slotOf(node, name)) !== null;

/**
 * What feeds an input, as the prompt resolves it: through reroutes, Get and Set nodes, bypassed nodes and the borders of
 * subgraphs. { node, slot } of the node that makes it, { value } where it is a widget shown on a subgraph's node, or
 * null where nothing comes: no link, a muted node, a Get node without its Set node.
 */
export function sourceOf(node, name) {
  return intoSlot(node, slotOf(node, name), []);
}

// holders: the subgraph's nodes that the way has entered and not left, the outermost first; a source has them as `holders`.

function intoSlot(node, slot, holders, depth = 0) {
  return alongLink(linkInto(node, slot), node.graph, node.inputs?.[slot]?.type, holders, depth);
}

function alongLink(link, graph, type, holders, depth) {
  if (!link || depth > DEEPEST) return null;
  if (Number(link.origin_id) === SUBGRAPH_INPUT) return throughBorder(graph, link.origin_slot, holders, depth + 1);
  const origin = graph.getNodeById(link.origin_id);
  return origin ? outOfSlot(origin, link.origin_slot, type, holders, depth + 1) : null;
}

function throughBorder(subgraph, slot, holders, depth) {
  const last = holders[holders.length - 1];
  const holder = last?.subgraph === subgraph ? last : holderOf(subgraph);
  if (!holder) return null;
  if (linkInto(holder, slot)) return intoSlot(holder, slot, holders.slice(0, -1), depth);
  const shown = holder.getWidgetFromSlot?.(holder.inputs?.[slot] ?? {});
  return shown ? { value: shown.value } : null;
}

function outOfSlot(node, slot, type, holders, depth) {
  if (depth > DEEPEST || node.mode === MUTED) return null;
  if (node.mode === BYPASSED) return intoSlot(node, bypassSlot(node, slot, type), holders, depth);
  if (node.subgraph) {
    const link = node.subgraph.outputNode?.slots?.[slot]?.getLinks?.()[0];
    return alongLink(link, node.subgraph, type, [...holders, node], depth);
  }
  if (!node.isVirtualNode || node.type === "PrimitiveNode") return { node, slot, holders };
  // Some packs' Get nodes open an alert where their Set node is missing, so those are looked up by name first.
  if (/get_?node$/i.test(node.type ?? "")) {
    const setter = setterOf(node);
    return setter ? intoSlot(setter, 0, holders, depth + 1) : null;
  }
  const source = node.resolveVirtualOutput?.(slot);
  if (source) return outOfSlot(source.node, source.slot, type, holders, depth + 1);
  return alongLink(node.getInputLink(slot), node.graph, type, holders, depth + 1);
}

/** The Set node that a Get node reads: of the same pack, with the same name in its first widget, here or further out. */
function setterOf(getter) {
  const type = getter.type.replace(/get(_?node)$/i, (all, rest) => (all[0] === "G" ? `Set${rest}` : `set${rest}`));
  const name = getter.widgets?.[0]?.value;
  for (let graph = getter.graph; graph; graph = holderOf(graph)?.graph) {
    const found = nodesOf(graph).find((node) => node.type === type && node.widgets?.[0]?.value === name);
    if (found) return found;
  }
  return null;
}

/**
 * The input that stands for an output of a bypassed node, by the page's rule: the one at its place if it fits the output
 * and the asked type, else the first of exactly the asked type, else the first that fits both. -1 where none does.
 */
function bypassSlot(node, slot, type) {
  const inputs = node.inputs ?? [];
  if (!type || type === "*") return inputs.length > slot ? slot : 0;
  const valid = (one, other) => globalThis.LiteGraph.isValidConnection(one, other);
  const fits = (input) => input && valid(input.type, node.outputs?.[slot]?.type) && valid(input.type, type);
  if (fits(inputs[slot])) return slot;
  const exact = inputs.findIndex((input) => input.type === type);
  return exact >= 0 ? exact : inputs.findIndex(fits);
}

/**
 * A widget's value as the prompt gets it: its own, or that of the primitive or of the subgraph's widget wired to it.
 * undefined where something else is wired to it, whose value is known only when it ran.
 */
export function wiredValue(node, name) {
  const own = ownValue(node, name);
  if (!isWired(node, name)) return own;
  const source = sourceOf(node, name);
  const value = source && ("value" in source ? source.value : source.node.widgets?.[0]?.value);
  return typeof value === typeof own ? value : undefined;
}

/** As `wiredValue`, and the widget's own value where that is not known. */
export const valueOf = (node, name) => wiredValue(node, name) ?? ownValue(node, name);

/** Every widget value of a node that is a text, a number or a switch, by name, as the prompt gets it. */
export function valuesOf(node) {
  const simple = savedWidgets(node).filter(({ value }) => ["string", "number", "boolean"].includes(typeof value));
  return Object.fromEntries(simple.map(({ name }) => [name, valueOf(node, name)]));
}

/** The nodes that lead to a node's model, the loader first. */
export function modelChain(node) {
  const chain = [];
  for (let [at, holders] = [node, []]; at && chain.length < DEEPEST && !chain.includes(at); ) {
    const inputs = at.inputs ?? [];
    const isModel = ({ type }, slot) => (type === "MODEL" || type === "*") && linkInto(at, slot);
    const named = inputs.findIndex((input, slot) => input.name === "model" && linkInto(at, slot));
    chain.unshift(at);
    const source = intoSlot(at, named >= 0 ? named : inputs.findIndex(isModel), holders);
    [at, holders] = [source?.node, source?.holders];
  }
  return chain.slice(0, -1);
}

// --- Graphs and where nodes are in them ------------------------------------------------------------------------------

const nodesOf = (graph) => graph?.nodes ?? [];

/** The node that stands for a subgraph in the graph around it: the first, where it stands in several places. */
function holderOf(subgraph) {
  const look = (graph, depth) => {
    for (const node of nodesOf(graph)) {
      if (!node.subgraph || depth > DEEPEST) continue;
      const found = node.subgraph === subgraph ? node : look(node.subgraph, depth + 1);
      if (found) return found;
    }
    return null;
  };
  return subgraph?.rootGraph === subgraph ? null : look(subgraph?.rootGraph, 0);
}

/** The node at an execution path such as "1:2:3", or null. */
function nodeAt(path) {
  let [node, graph] = [null, app.rootGraph];
  for (const id of String(path).split(":")) {
    node = graph?.getNodeById(id) ?? graph?.getNodeById(Number(id)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

/** Every execution path that leads to a node: one, or as many as its subgraph has places. */
export function pathsOf(node) {
  const root = node.graph?.rootGraph ?? node.graph;
  if (!root) return [];
  if (node.graph === root) return [String(node.id)];
  const found = [];
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

/** Open the graph that the node at a path is in and bring the node into view. Gives whether there is such a node. */
export function showNode(path) {
  const node = nodeAt(path);
  if (!node) return false;
  if (app.canvas.graph !== node.graph) app.canvas.setGraph(node.graph);
  app.canvas.selectNode?.(node);
  app.canvas.centerOnNode(node);
  app.canvas.setDirty(true, true);
  return true;
}

/** The selected nodes of the graph that is shown. */
export const selectedNodes = () => [...(app.canvas.selectedItems ?? [])].filter((item) => item.widgets || item.inputs);

/** A new node in the middle of what is seen, selected. Throws where this ComfyUI has no such node. */
export function addNode(type) {
  const node = globalThis.LiteGraph.createNode(type);
  if (!node) throw new Error(type);
  const [x, y, width, height] = app.canvas.visible_area ?? [0, 0, 800, 600];
  node.pos = [x + width / 2 - node.size[0] / 2, y + height / 2 - node.size[1] / 2];
  app.canvas.graph.add(node);
  app.canvas.selectNode?.(node);
  app.canvas.setDirty(true, true);
  return node;
}
