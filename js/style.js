// The pack's styles, in the colours of ComfyUI's palette, so that they follow light, dark and anyone's own theme.
// No side effects: index.js puts them into the page.

export const STYLE = `
.bespoke-panel { display: flex; flex-direction: column; gap: 4px; width: 100%; height: 100%; box-sizing: border-box;
  padding: 6px 8px; border: 1px solid var(--border-color); border-radius: 8px; color: var(--input-text);
  font: 11px/1.35 Inter, system-ui, sans-serif; overflow: hidden; text-align: left; contain: content; }
.bespoke-panel [hidden], .bespoke-tab [hidden] { display: none !important; }
.bespoke-panel canvas { flex: 1 1 96px; min-height: 0; width: 100%; }
.bespoke-panel p, .bespoke-tab p { margin: 0; }
.bespoke-empty > :not(.bespoke-note) { display: none !important; }
.bespoke-note { color: var(--descrip-text); overflow-wrap: anywhere; max-height: 5.4em; overflow-y: auto; }
.bespoke-head { display: flex; gap: 8px; align-items: baseline; white-space: nowrap; min-width: 0; }
.bespoke-state { font-weight: 600; flex: none; }
.bespoke-state::before { content: ""; display: inline-block; width: 7px; height: 7px; border-radius: 50%; margin-right: 5px;
  background: var(--descrip-text); }
[data-state="running"] .bespoke-state::before, [data-state="finishing"] .bespoke-state::before { background: #4c9be8; }
[data-state="finished"] .bespoke-state::before, [data-state="kept"] .bespoke-state::before { background: #3fb57f; }
[data-state="failed"] .bespoke-state::before { background: #e5534b; }
[data-state="lost"] .bespoke-state::before, [data-state="interrupted"] .bespoke-state::before,
[data-state="cut off"] .bespoke-state::before { background: #f0a030; }
.bespoke-numbers { color: var(--descrip-text); overflow: hidden; text-overflow: ellipsis; font-variant-numeric: tabular-nums; }
.bespoke-legend { display: flex; flex-wrap: wrap; gap: 0 12px; color: var(--descrip-text); font-size: 10px; }
.bespoke-legend b { color: var(--input-text); font-weight: 500; margin-left: 4px; font-variant-numeric: tabular-nums; }
.bespoke-legend i { display: inline-block; width: 12px; height: 0; border-top: 2px solid; margin-right: 4px; vertical-align: 3px; }
.bespoke-loss i { border-color: var(--descrip-text); opacity: .5; border-top-width: 1px; }
.bespoke-average i { border-color: #4c9be8; }
.bespoke-held-out i { border-color: #f0a030; }
.bespoke-second-average i { border-color: #3fb57f; }
.bespoke-second-held-out i { border-color: #c678dd; }
.bespoke-strip { display: flex; gap: 4px; overflow-x: auto; flex: none; padding-bottom: 2px; scrollbar-width: thin; }
.bespoke-strip button { display: block; padding: 0; border: 0; background: none; color: var(--descrip-text); cursor: zoom-in;
  font: 10px Inter, system-ui, sans-serif; text-align: center; }
.bespoke-strip img { display: block; height: var(--bespoke-sample, 64px); min-width: 40px; border-radius: 4px; margin-bottom: 1px; }
.bespoke-buttons { display: flex; gap: 6px; flex-wrap: wrap; flex: none; }
.bespoke-button { padding: 4px 10px; border: 1px solid var(--border-color); border-radius: 6px; background: var(--comfy-input-bg);
  color: var(--input-text); font: 11px Inter, system-ui, sans-serif; cursor: pointer; }
.bespoke-button:hover:not(:disabled) { border-color: var(--descrip-text); }
.bespoke-button:disabled { opacity: .5; cursor: default; }
.bespoke-main { background: #2f6fb0; border-color: #2f6fb0; color: #fff; }
.bespoke-panel :focus-visible, .bespoke-tab :focus-visible, .bespoke-large :focus-visible { outline: 2px solid #4c9be8; outline-offset: 1px; }
.bespoke-spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.bespoke-large { margin: auto; padding: 16px; border: 1px solid var(--border-color); border-radius: 10px; text-align: center;
  background: var(--comfy-menu-bg); color: var(--input-text); font: 13px Inter, system-ui, sans-serif; }
.bespoke-large::backdrop { background: rgb(0 0 0 / .6); }
.bespoke-large img { display: block; max-width: 84vw; max-height: 76vh; min-width: min(384px, 80vw); border-radius: 6px;
  image-rendering: auto; margin: auto; }
.bespoke-large p { margin: 10px 0; }
.bespoke-heat-scroll { flex: 1; min-height: 0; overflow: auto; scrollbar-width: thin; }
.bespoke-heat { width: 100%; border-collapse: separate; border-spacing: 2px; table-layout: fixed; font-size: 10px; }
.bespoke-heat.bespoke-tall thead { position: sticky; top: 0; z-index: 2; background: var(--component-node-background, var(--comfy-menu-bg)); }
.bespoke-heat tr > :first-child { width: 34%; }
.bespoke-heat th { font-weight: 400; padding: 0; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.bespoke-heat tbody th { text-align: left; }
.bespoke-heat tbody th, .bespoke-heat thead th { color: var(--descrip-text); }
.bespoke-heat th button { padding: 1px 3px; border: 0; border-radius: 3px; background: none; color: var(--input-text); font: inherit; cursor: pointer;
  overflow: hidden; text-overflow: ellipsis; }
.bespoke-heat tbody th button { width: calc(100% - 42px); text-align: left; vertical-align: middle; }
.bespoke-heat th button[aria-pressed="false"] { color: var(--descrip-text); text-decoration: line-through; }
.bespoke-heat th button:hover:not(:disabled) { background: var(--comfy-input-bg); }
.bespoke-heat thead th button { display: block; width: 100%; }
.bespoke-heat input { width: 40px; height: 17px; box-sizing: border-box; padding: 0 3px; border: 1px solid var(--border-color); border-radius: 3px;
  background: var(--comfy-input-bg); color: var(--input-text); font: inherit; text-align: right; appearance: textfield;
  font-variant-numeric: tabular-nums; vertical-align: middle; }
.bespoke-heat thead input { width: 100%; text-align: center; }
.bespoke-heat input::-webkit-inner-spin-button { appearance: none; }
.bespoke-heat td { position: relative; height: 17px; padding: 0; border-radius: 3px; }
.bespoke-heat tbody td:not(:empty)::before, .bespoke-heat tbody td[title]::before { content: ""; position: absolute; inset: 0; border-radius: 3px; background: var(--input-text); opacity: .07; }
.bespoke-heat tbody td::after { content: ""; position: absolute; inset: 0; border-radius: 3px; background: #f0a030; opacity: var(--bespoke-heat, 0); pointer-events: none; }
.bespoke-heat tbody td[data-sign="minus"]::after { background: #4c9be8; }
.bespoke-heat td button { position: absolute; inset: 0; width: 100%; border: 0; background: none; cursor: pointer; z-index: 1; }
.bespoke-heat tbody td:hover { outline: 1px solid var(--descrip-text); }
.bespoke-near { flex: 1; min-height: 0; overflow-y: auto; display: grid; gap: 8px; align-content: start; scrollbar-width: thin; }
.bespoke-near-head { display: flex; justify-content: space-between; gap: 8px; color: var(--descrip-text); margin-bottom: 3px; }
.bespoke-near-head b { color: var(--input-text); font-weight: 600; }
.bespoke-near-head .bespoke-long { color: #e08a2a; }
.bespoke-words-near { display: flex; flex-wrap: wrap; gap: 4px; }
.bespoke-word { position: relative; padding: 1px 6px; border-radius: 4px; overflow: hidden; border: 1px solid var(--border-color); }
.bespoke-word::before { content: ""; position: absolute; inset: 0; width: calc(100% * var(--bespoke-near)); background: #4c9be8; opacity: .3; z-index: -1; }
.bespoke-word { isolation: isolate; }
.bespoke-word i { font-style: normal; color: var(--descrip-text); margin-left: 5px; font-variant-numeric: tabular-nums; }
.bespoke-captions { flex: 1; min-height: 0; overflow-y: auto; display: grid; gap: 4px; align-content: start; scrollbar-width: thin; }
.bespoke-captions > div { display: flex; gap: 6px; align-items: center; }
.bespoke-captions img { width: 36px; height: 36px; object-fit: cover; border-radius: 4px; flex: none; }
.bespoke-captions input { flex: 1; min-width: 0; padding: 4px 6px; border: 1px solid var(--border-color); border-radius: 5px;
  background: var(--comfy-input-bg); color: var(--input-text); font: 11px Inter, system-ui, sans-serif; }
.bespoke-captions .bespoke-wrong { border-color: #e5534b; }
.bespoke-tab { height: 100%; overflow-y: auto; box-sizing: border-box; padding: 12px; color: var(--input-text);
  font: 12px/1.4 Inter, system-ui, sans-serif; background: var(--comfy-menu-bg); }
.bespoke-tab header { display: flex; justify-content: space-between; align-items: center; margin-bottom: 8px; }
.bespoke-tab h2 { font-size: 15px; font-weight: 600; margin: 0; }
.bespoke-tab h3 { font-size: 12px; font-weight: 600; margin: 10px 0 4px; }
.bespoke-search { width: 100%; box-sizing: border-box; padding: 6px 8px; margin-bottom: 8px; border: 1px solid var(--border-color);
  border-radius: 6px; background: var(--comfy-input-bg); color: var(--input-text); font: inherit; }
.bespoke-item { border: 1px solid var(--border-color); border-radius: 8px; margin-bottom: 8px; background: var(--comfy-input-bg); }
.bespoke-row { display: flex; align-items: center; padding-left: 10px; }
.bespoke-card { flex: 1; min-width: 0; display: flex; gap: 8px; align-items: center; padding: 8px 10px; border: 0; background: none;
  color: inherit; font: inherit; text-align: left; cursor: pointer; border-radius: 8px; }
.bespoke-words { flex: 1; min-width: 0; display: grid; gap: 1px; }
.bespoke-name { font-weight: 600; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bespoke-card .bespoke-state { font-weight: 400; }
.bespoke-under { color: var(--descrip-text); font-size: 11px; }
.bespoke-spark { width: 84px; height: 40px; flex: none; }
.bespoke-detail { padding: 0 10px 10px; display: grid; gap: 6px; min-width: 0; }
.bespoke-detail canvas, .bespoke-compare canvas { width: 100%; height: 150px; }
.bespoke-detail .bespoke-strip { min-width: 0; }
.bespoke-settings { display: grid; grid-template-columns: auto 1fr; gap: 1px 10px; margin: 0; font-size: 11px; }
.bespoke-settings dt { color: var(--descrip-text); }
.bespoke-settings dd { margin: 0; overflow-wrap: anywhere; white-space: pre-line; text-align: right; }
.bespoke-compare { border: 1px solid var(--border-color); border-radius: 8px; padding: 0 10px 10px; margin-bottom: 8px; }
.bespoke-table { width: 100%; border-collapse: collapse; font-size: 11px; table-layout: fixed; }
.bespoke-table th, .bespoke-table td { text-align: left; padding: 2px 4px; overflow-wrap: anywhere; vertical-align: top; }
.bespoke-table th[scope="row"] { color: var(--descrip-text); font-weight: 400; }
.bespoke-swatch { display: inline-block; width: 8px; height: 8px; border-radius: 2px; margin-right: 4px; }
`;
