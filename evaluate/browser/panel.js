// The page beside the slide. Names come from files of any origin: they are set as text, never as markup.

import { tilePicture } from "./api.js";
import { scaleColour } from "./colours.js";

export const byId = (id) => document.getElementById(id);

export function make(kind, properties = {}, ...children) {
  const element = Object.assign(document.createElement(kind), properties);
  element.append(...children);
  return element;
}

export const whole = (number) => number.toLocaleString("en-US");

export function number(value) {
  if (value === 0 || (Math.abs(value) >= 0.001 && Math.abs(value) < 100000)) return String(Number(value.toPrecision(3)));
  return value.toExponential(1);
}

export function fillSelect(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value, textContent: text })));
  if (options.some(([value]) => String(value) === String(chosen))) select.value = chosen;
}

// onToggle(code, shown): a class was switched on or off
export function showLegend(layer, hidden, onToggle) {
  const legend = byId("legend");
  if (!layer) return legend.replaceChildren();
  legend.replaceChildren(...(layer.kind === "classes" ? classLegend(layer, hidden, onToggle) : numberLegend(layer)));
}

function classLegend(layer, hidden, onToggle) {
  const entries = layer.classes.map((one, code) => {
    const key = make("i", { className: "key" });
    key.style.background = one.colour;
    const name = make("span", { className: "name", textContent: one.name || "(no name)", title: one.name });
    const button = make("button", { type: "button" }, key, name, make("span", { className: "quiet", textContent: whole(one.count) }));
    button.setAttribute("aria-pressed", String(!hidden.has(code)));
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      onToggle(code, shown);
    });
    return make("li", {}, button);
  });
  const parts = [make("ul", { className: "classes" }, ...entries)];
  if (layer.without) parts.push(make("p", { className: "quiet small", textContent: `${whole(layer.without)} tiles without a class` }));
  return parts;
}

function numberLegend(layer) {
  if (layer.low === null) return [make("p", { className: "quiet small", textContent: "no tile has a value" })];
  const bar = make("div", { className: "bar" });
  bar.style.background = `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(scaleColour).join(", ")})`;
  const low = make("span", { textContent: (layer.below ? "≤ " : "") + number(layer.low) });
  const high = make("span", { textContent: (layer.above ? "≥ " : "") + number(layer.high) });
  return [bar, make("div", { className: "ends quiet small" }, low, high)];
}

export function showTile(slide, tile, details, neighbourText) {
  const place = byId("tile");
  if (tile < 0) {
    return place.replaceChildren(make("p", { className: "quiet", textContent: "Click a tile, or press an arrow key on the slide." }));
  }
  const picture = make("img", { src: tilePicture(slide, tile), alt: `Tile ${details.id}`, className: "tile" });
  const isClass = ([, value]) => typeof value === "string";
  const first = [["tile", details.id], ...details.values.filter(isClass), ["neighbours", neighbourText]];
  const rest = [["x, y", `${details.x}, ${details.y}`], ...details.values.filter((row) => !isClass(row))];
  const more = make("details", { open: byId("tile").querySelector("details")?.open ?? false });
  more.append(make("summary", { textContent: "All columns" }), pairs(rest));
  place.replaceChildren(make("div", { className: "beside" }, picture, pairs(first)), more);
}

function pairs(rows) {
  const list = make("dl");
  for (const [name, value] of rows) {
    const text = value === null ? "–" : typeof value === "number" ? number(value) : value;
    list.append(make("dt", { textContent: name }), make("dd", { textContent: text }));
  }
  return list;
}

// onChoose(slide, tile): one of them was clicked
export function showNearest(found, slides, onChoose) {
  const entries = (found ? found.tiles : []).map(({ slide, tile, distance }) => {
    const id = slides[slide].id;
    const picture = make("img", { src: tilePicture(slide, tile), alt: "", loading: "lazy" });
    const name = make("span", { className: "name", textContent: id });
    const button = make("button", { type: "button", title: `${id}, tile ${tile}` }, picture, name, make("span", { className: "quiet", textContent: distance.toFixed(3) }));
    button.setAttribute("aria-label", `${id}, tile ${tile}, cosine distance ${distance.toFixed(3)}: go there`);
    button.addEventListener("click", () => onChoose(slide, tile));
    return make("li", {}, button);
  });
  byId("nearest").replaceChildren(...entries);
}

// scroll the panel, not the page: in a narrow window the panel lies below the slide, which the reader is looking at
export function revealNearest() {
  const panel = document.querySelector("aside");
  if (getComputedStyle(panel).overflowY !== "auto") return;
  const box = byId("nearest").parentElement.getBoundingClientRect(), frame = panel.getBoundingClientRect();
  const hidden = Math.min(box.bottom - frame.bottom + 12, box.top - frame.top - 12);
  if (hidden > 0) panel.scrollTop += hidden;
}

export function note(text) {
  byId("nearest-note").textContent = text;
}

export function tell(text) {
  byId("status").textContent = text;
}

export function complain(text) {
  const notice = byId("notice");
  notice.hidden = !text;
  notice.textContent = text;
}

// a bar of 1, 2 or 5 times a power of ten micrometres, at most `longest` pixels long
export function showScale(umPerPx, longest = 140) {
  const most = umPerPx * longest, power = 10 ** Math.floor(Math.log10(most));
  const length = [5, 2, 1].find((step) => step * power <= most * (1 + 1e-9)) * power;
  const [text, bar] = byId("scale").children;
  text.textContent = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(1))} µm`;
  bar.style.width = `${length / umPerPx}px`;
}
