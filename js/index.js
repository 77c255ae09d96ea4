// Registers the pack with the page. Every other module in this folder is free of side effects, because ComfyUI loads
// each .js file under WEB_DIRECTORY by itself.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { attachDial, DIAL_NODES } from "./strength_dial.js";

app.registerExtension({
  name: "Bespoke",
  nodeCreated(node) {
    if (DIAL_NODES.has(node.comfyClass)) attachDial(node, (path) => api.fetchApi(path));
  },
});
