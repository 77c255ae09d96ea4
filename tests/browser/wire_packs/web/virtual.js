// Stand-ins for nodes of other packs that exist in the page only, with the interface that those packs use: virtual nodes
// with `getInputLink` and `resolveVirtualOutput`, and a change of the links while the prompt is made.

import { app } from "../../scripts/app.js";

const { LiteGraph } = globalThis;
const { LGraphNode } = LiteGraph;
globalThis.wireAlerts = [];

class Virtual extends LGraphNode {
  isVirtualNode = true;
  serialize_widgets = true;
}

/** Pairs of nodes that find each other by the name in their first widget. */
function registerPair(set, get, { acrossGraphs }) {
  class SetNode extends Virtual {
    constructor(title) {
      super(title);
      this.addInput("*", "*");
      this.addOutput("*", "*");
      this.addWidget("text", "Constant", "", () => {});
    }
  }
  class GetNode extends Virtual {
    constructor(title) {
      super(title);
      this.addOutput("*", "*");
      this.addWidget("combo", "Constant", "", () => {}, { values: [] });
    }
    settersOf(graph) {
      return graph.nodes.filter((node) => node.type === set && node.widgets[0].value === this.widgets[0].value);
    }
    getInputLink() {
      const [setter] = this.settersOf(this.graph);
      if (!setter && !(acrossGraphs && this.settersOf(app.rootGraph).length)) globalThis.wireAlerts.push(`no ${set}`);
      return setter ? LGraphNode.prototype.getInputLink.call(setter, 0) : null;
    }
    resolveVirtualOutput() {
      if (!acrossGraphs || this.settersOf(this.graph).length) return undefined;
      const [setter] = this.settersOf(app.rootGraph);
      const link = setter && LGraphNode.prototype.getInputLink.call(setter, 0);
      return link ? { node: app.rootGraph.getNodeById(link.origin_id), slot: link.origin_slot } : undefined;
    }
  }
  LiteGraph.registerNodeType(set, SetNode);
  LiteGraph.registerNodeType(get, GetNode);
}

class PackReroute extends Virtual {
  constructor(title) {
    super(title);
    this.addInput("", "*");
    this.addOutput("", "*");
  }
}

/** Reads a bus by number, without any name that the other packs use and without the page's functions. */
class BusReader extends Virtual {
  constructor(title) {
    super(title);
    this.addOutput("*", "*");
    this.addWidget("number", "bus", 1, () => {});
  }
  getInputLink() {
    return null;
  }
}

function openInputs(type) {
  const inputs = app.rootGraph.nodes.flatMap((node) => (node.inputs ?? []).map((input, slot) => ({ node, input, slot })));
  return inputs.filter(({ node, input }) => input.link == null && !input.widget && input.type === type && node.type !== "Anything Everywhere");
}

app.registerExtension({
  name: "wire_packs",
  registerCustomNodes() {
    registerPair("SetNode", "GetNode", { acrossGraphs: true });
    registerPair("easy setNode", "easy getNode", { acrossGraphs: false });
    LiteGraph.registerNodeType("Reroute (rgthree)", PackReroute);
    LiteGraph.registerNodeType("BusReader", BusReader);
  },
  setup() {
    const make = app.graphToPrompt;
    app.graphToPrompt = async function (...args) {
      const added = [];
      for (const source of app.rootGraph.nodes.filter((node) => node.type === "Anything Everywhere" && node.inputs[0].link != null)) {
        const link = LGraphNode.prototype.getInputLink.call(source, 0);
        const origin = app.rootGraph.getNodeById(link.origin_id);
        for (const { node, slot } of openInputs(origin.outputs[link.origin_slot].type)) {
          origin.connect(link.origin_slot, node, slot);
          added.push({ node, slot });
        }
      }
      try {
        return await make.apply(this, args);
      } finally {
        for (const { node, slot } of added) node.disconnectInput(slot);
      }
    };
  },
});
