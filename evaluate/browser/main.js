// Wires mouse, keys and fields to what they do.

import { Session } from "./actions.js";
import { Overlay } from "./overlay.js";
import { byId, complain } from "./panel.js";
import { Picture } from "./picture.js";

const ZOOM_STEP = 1.5, PAN_STEP = 90;

const picture = new Picture(byId("picture"));
const overlay = new Overlay(byId("overlay"), picture);
const session = new Session(picture, overlay);

// run what may fail; say so on the page
function attempt(action) {
  Promise.resolve().then(action).catch((error) => complain(error.message));
}

const onChange = (id, action) => byId(id).addEventListener("change", (event) => attempt(() => action(event.target)));
const onClick = (id, action) => byId(id).addEventListener("click", () => attempt(action));

picture.viewer.addHandler("update-viewport", () => session.moved());
picture.viewer.addHandler("canvas-click", (event) => {
  if (!event.quick || !session.grid) return;
  const tile = session.grid.at(...picture.baseAt(event.position.x, event.position.y));
  attempt(async () => {
    await session.select(tile);
    await session.findNearest();
  });
});

const viewer = byId("viewer");
viewer.addEventListener("pointermove", (event) => {
  if (event.pointerType === "touch" || event.buttons || !session.grid || !picture.viewer.isOpen()) return;
  const box = viewer.getBoundingClientRect();
  attempt(() => session.hover(session.grid.at(...picture.baseAt(event.clientX - box.left, event.clientY - box.top))));
});
viewer.addEventListener("pointerleave", () => attempt(() => session.hover(-1)));
viewer.addEventListener("pointerdown", () => viewer.focus({ preventScroll: true, focusVisible: false }));

const toggle = (id) => byId(id).click();
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = {
  "+": () => picture.zoomBy(ZOOM_STEP),
  "=": () => picture.zoomBy(ZOOM_STEP),
  "-": () => picture.zoomBy(1 / ZOOM_STEP),
  "_": () => picture.zoomBy(1 / ZOOM_STEP),
  "0": () => picture.home(),
  "[": () => session.changeSlide(-1),
  "]": () => session.changeSlide(1),
  "g": () => toggle("show-grid"),
  "t": () => toggle("show-tissue"),
  "n": () => toggle("show-links"),
  "Enter": () => session.findNearest(),
  "Escape": () => session.select(-1),
};

viewer.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || (!session.grid && !"[]".includes(event.key))) return;
  const arrow = ARROWS[event.key];
  const action = arrow ? () => (event.shiftKey ? picture.panBy(arrow[0] * PAN_STEP, arrow[1] * PAN_STEP) : session.step(...arrow)) : KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  attempt(action);
});
document.addEventListener("keydown", (event) => {
  const types = event.target.matches("select, input:not([type=checkbox])");
  if (event.key !== "?" || types || byId("help").open) return;
  event.preventDefault();
  byId("help").showModal();
});

onClick("help-button", () => byId("help").showModal());
onClick("zoom-in", KEYS["+"]);
onClick("zoom-out", KEYS["-"]);
onClick("home", KEYS["0"]);
onClick("previous", KEYS["["]);
onClick("next", KEYS["]"]);
onChange("slide", (select) => session.openSlide(Number(select.value)));
onChange("layer", async (select) => {
  await session.colourBy(Number(select.value));
  session.layerName = session.layer ? session.layer.name : null;
});
onChange("index", () => session.select(session.tile));
for (const id of ["features", "among", "count"]) onChange(id, () => session.findNearest());
byId("opacity").addEventListener("input", (event) => {
  overlay.opacity = Number(event.target.value);
  overlay.redraw();
});
for (const [id, name] of [["show-grid", "grid"], ["show-tissue", "tissue"], ["show-links", "links"]]) {
  onChange(id, (box) => {
    overlay.show[name] = box.checked;
    overlay.redraw();
  });
}
addEventListener("popstate", () => attempt(() => session.follow()));

attempt(() => session.start());
