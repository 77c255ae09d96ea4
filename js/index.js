// Registers the pack with the page. Every other module in this folder is free of side effects, because ComfyUI loads
// each .js file under WEB_DIRECTORY by itself.
import { app } from "../../scripts/app.js";

app.registerExtension({ name: "Bespoke" });
