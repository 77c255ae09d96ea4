// Puts a run's result into the present graph, where a person would put it. No side effects: index.js makes it.

const LORA_NODE = "BespokeInjectLora";
const WORD_NODE = "CLIPTextEncode";

/** { openGraph, addLora, addWord } on the page. page: { app, LiteGraph }. */
export function placer({ app, LiteGraph }) {
  const selected = () => Object.values(app.canvas.selected_nodes ?? {});

  function set(widget, value) {
    widget.value = value;
    widget.callback?.(value);
  }

  /** A new node in the middle of what is seen, selected. */
  function add(kind) {
    const node = LiteGraph.createNode(kind);
    if (!node) throw new Error(`this ComfyUI has no node ${kind}`);
    const [x, y, width, height] = app.canvas.visible_area ?? [0, 0, 800, 600];
    node.pos = [x + width / 2 - node.size[0] / 2, y + height / 2 - node.size[1] / 2];
    app.canvas.graph.add(node);
    app.canvas.selectNode?.(node);
    return node;
  }

  function done() {
    app.canvas.setDirty(true, true);
  }

  return {
    openGraph: (workflow, name) => app.loadGraphData(workflow, true, true, name),

    /** Choose the file in the selected node that has a LoRA list, else in a new Bespoke Inject LoRA. */
    async addLora(name) {
      await app.reloadNodeDefs?.(); // the file may be newer than the lists
      const widgetOf = (node) => node.widgets?.find((widget) => widget.name === "lora_name");
      const node = selected().find(widgetOf) ?? add(LORA_NODE);
      set(widgetOf(node), name);
      done();
    },

    /** Write the word behind the selected prompt, else into a new one. */
    async addWord(file) {
      const word = `embedding:${file.replace(/\.safetensors$/, "").replaceAll("\\", "/")}`;
      const widgetOf = (node) => node.widgets?.find((widget) => widget.name === "text");
      const node = selected().find((one) => one.type === WORD_NODE && widgetOf(one)) ?? add(WORD_NODE);
      const before = String(widgetOf(node).value ?? "").trimEnd();
      if (!before.includes(word)) set(widgetOf(node), before ? `${before} ${word}` : word);
      done();
    },
  };
}
