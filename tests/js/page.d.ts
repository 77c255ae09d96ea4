// What ComfyUI's page gives its extensions: the modules that its server serves beside this pack's scripts, and the globals.

declare module "*/scripts/app.js" {
  export const app: import("@comfyorg/comfyui-frontend-types").ComfyApp;
}

declare module "*/scripts/api.js" {
  export const api: import("@comfyorg/comfyui-frontend-types").ComfyApi;
}

/** The page sets LiteGraph as a global. Only what comfy.js uses of it is declared. */
declare var LiteGraph: {
  /** Whether Nodes 2.0 is on. */
  vueNodesMode?: boolean;
  LGraphNode: { prototype: import("../../js/comfy.js").Node };
  createNode(type: string): import("../../js/comfy.js").Node | null;
  isValidConnection(typeA: unknown, typeB: unknown): boolean;
};
