// Where a node is. ComfyUI names a running node by its path through subgraphs, "1:2:3"; the page has one node object
// for every place that a subgraph stands in. No side effects.

const DEEPEST = 20;

/** The node at an execution path, or null. graph: the root graph. */
export function nodeAt(graph, path) {
  const ids = String(path).split(":");
  let node = null;
  for (const id of ids) {
    if (!graph) return null;
    node = byId(graph, id);
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

/** Every node of a graph and of the subgraphs in it, each once. */
export function everyNode(root) {
  const found = new Set();
  const look = (graph, depth) => {
    for (const node of nodesOf(graph)) {
      if (found.has(node) || depth > DEEPEST) continue;
      found.add(node);
      if (node.subgraph) look(node.subgraph, depth + 1);
    }
  };
  look(root, 0);
  return [...found];
}

export function nodesOf(graph) {
  return graph?.nodes ?? graph?._nodes ?? [];
}

function byId(graph, id) {
  return graph.getNodeById?.(id) ?? graph.getNodeById?.(Number(id)) ?? null;
}
