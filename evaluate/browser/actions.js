// What can be done on the page: look at a slide, point at a tile, select one, find its like, colour the tiles.

import * as api from "./api.js";
import { colourTiles } from "./colours.js";
import { TileGrid } from "./grid.js";
import { byId, complain, fillSelect, note, number, revealNearest, showLegend, showNearest, showScale, showTile, tell, whole } from "./panel.js";

const MOST_KEPT = 2000;

export class Session {
  constructor(picture, overlay) {
    this.picture = picture;
    this.overlay = overlay;
    this.slide = this.asked = -1;
    this.tile = -1;
    this.links = new Map();
    this.hidden = new Set();
    this.turn = 0;
  }

  async start() {
    this.slides = await api.listSlides();
    fillSelect(byId("slide"), this.slides.map((slide, place) => [place, `${slide.id} (${whole(slide.tiles)} tiles)`]), 0);
    document.querySelector(".chooser").classList.toggle("single", this.slides.length === 1);
    await this.follow();
  }

  // go where the address says: #slide=2&tile=145
  async follow() {
    const told = new URLSearchParams(location.hash.slice(1));
    const slide = Number(told.get("slide") ?? 0), tile = Number(told.get("tile") ?? -1);
    const known = Number.isInteger(slide) && slide >= 0 && slide < this.slides.length ? slide : 0;
    if (known !== this.slide) await this.openSlide(known);
    if (Number.isInteger(tile) && tile >= 0 && tile < this.about.tiles && tile !== this.tile) await this.goTo(known, tile);
  }

  #remember(how = "replaceState") {
    const tile = this.tile >= 0 ? `&tile=${this.tile}` : "";
    history[how](null, "", `#slide=${this.slide}${tile}`);
  }

  async openSlide(slide, { remember = "replaceState" } = {}) {
    const turn = ++this.turn;
    this.asked = slide; // where the next step starts from, also when this one cannot be opened
    byId("slide").value = slide;
    byId("busy").hidden = false;
    try {
      const [about, xy] = await Promise.all([api.describeSlide(slide), api.positions(slide)]);
      if (turn !== this.turn) return;
      await this.picture.open(slide, about);
      if (turn !== this.turn) return;
      Object.assign(this, { slide, about, tile: -1 });
      this.grid = new TileGrid(xy, about.base_size, about.base_stride);
      this.links.clear();
      this.overlay.setSlide(this.grid, about.tissue);
      this.#fillPanel();
      complain(about.notes.join(" "));
      this.#remember(remember);
      await this.colourBy(this.#sameLayer());
      tell(`${about.id}, ${whole(about.tiles)} tiles`);
    } finally {
      if (turn === this.turn) byId("busy").hidden = true;
    }
  }

  #fillPanel() {
    const about = this.about;
    byId("slide").value = this.slide;
    document.title = `${about.id} · SimTriplet`;
    const source = about.from_slide ? "" : " · pictures from the store";
    byId("facts").textContent = `${whole(about.width)} × ${whole(about.height)} px at ${number(about.base_mpp)} µm · ${whole(about.tiles)} tiles of ${about.size_px} px at ${number(about.mpp)} µm${source}`;
    fillSelect(byId("index"), about.indices.map((name) => [name, name]), byId("index").value);
    byId("index-row").hidden = about.indices.length < 2;
    byId("show-links").disabled = !about.indices.length;
    fillSelect(byId("features"), about.features.map((name) => [name, name]), byId("features").value);
    byId("nearest-fields").hidden = !about.features.length;
    fillSelect(byId("layer"), [[-1, "nothing"], ...about.layers.map((layer, place) => [place, layer.name])], -1);
    showTile(this.slide, -1);
    this.#forgetNearest();
  }

  // the layer of the name that the last slide was coloured by; at first the first of classes
  #sameLayer() {
    const layers = this.about.layers;
    if (this.layerName === undefined) return layers.findIndex((layer) => layer.kind === "classes");
    return layers.findIndex((layer) => layer.name === this.layerName);
  }

  async colourBy(place) {
    const { slide, about } = this, layer = about.layers[place] ?? null;
    byId("layer").value = layer ? place : -1;
    byId("opacity").disabled = !layer;
    this.layer = layer;
    this.hidden.clear();
    this.values = null;
    const values = layer ? await api.layerValues(slide, place, layer.kind) : null;
    if (this.slide !== slide || this.layer !== layer) return;
    this.values = values;
    showLegend(layer, this.hidden, (code, shown) => {
      this.hidden[shown ? "delete" : "add"](code);
      this.#paint();
    });
    this.#paint();
  }

  #paint() {
    this.overlay.setColours(this.values ? colourTiles(this.layer, this.values, this.hidden) : null);
  }

  // the neighbours of a tile; the same question is asked once
  async neighboursOf(tile) {
    const index = byId("index").value;
    if (!index || tile < 0) return { tiles: [], distances_um: [] };
    const key = `${index}/${tile}`;
    if (!this.links.has(key)) {
      if (this.links.size > MOST_KEPT) this.links.clear();
      const links = this.links;
      links.set(key, api.neighbours(this.slide, tile, index).catch((error) => { links.delete(key); throw error; }));
    }
    return this.links.get(key);
  }

  async hover(tile) {
    if (tile === this.overlay.hovered.tile) return;
    this.overlay.hovered = { tile, neighbours: [] };
    this.overlay.redraw();
    if (tile < 0) return;
    const slide = this.slide, { tiles } = await this.neighboursOf(tile);
    if (slide !== this.slide || this.overlay.hovered.tile !== tile) return;
    this.overlay.hovered = { tile, neighbours: tiles };
    this.overlay.redraw();
  }

  async select(tile, { remember = "replaceState" } = {}) {
    const slide = this.slide;
    this.tile = tile;
    this.overlay.selected = { tile, neighbours: [] };
    this.#forgetNearest();
    this.#remember(remember);
    this.overlay.redraw();
    if (tile < 0) return showTile(slide, -1);
    const [details, links] = await Promise.all([
      api.tileDetails(slide, tile),
      this.neighboursOf(tile).catch((error) => { complain(error.message); return null; }),
    ]);
    if (slide !== this.slide || tile !== this.tile) return;
    this.overlay.selected = { tile, neighbours: links ? links.tiles : [] };
    this.overlay.redraw();
    const text = !links || !this.about.indices.length ? "no index" : describeLinks(links);
    showTile(slide, tile, details, text);
    const classes = details.values.filter(([, value]) => typeof value === "string").map(([name, value]) => `${name} ${value}`);
    tell([`Tile ${details.id}`, ...classes, `neighbours: ${text}`].join(", "));
  }

  #forgetNearest() {
    this.search?.abort();
    this.overlay.near = [];
    showNearest(null);
    const ready = this.tile >= 0 ? "Press Enter or click the tile to find them." : "Select a tile to find them.";
    note(this.about.features.length ? ready : "No features; run simtriplet embed on the stores.");
  }

  async findNearest() {
    const { slide, tile } = this, features = byId("features").value;
    if (tile < 0 || !features) return;
    this.search?.abort();
    const search = (this.search = new AbortController());
    note("Searching…");
    try {
      const asked = { features, k: byId("count").value, among: byId("among").value };
      const found = await api.nearest(slide, tile, asked, search.signal);
      if (search.signal.aborted) return;
      showNearest(found, this.slides, (otherSlide, other) => this.goTo(otherSlide, other, { remember: "pushState" }));
      this.overlay.near = found.tiles.filter((near) => near.slide === slide).map((near) => near.tile);
      this.overlay.redraw();
      const out = found.left_out.length ? ` Left out: ${found.left_out.slice(0, 3).join("; ")}${found.left_out.length > 3 ? "; …" : ""}` : "";
      note((found.tiles.length ? "Cosine distance; click one to go there." : "There are none.") + out);
      revealNearest();
      tell(`${found.tiles.length} nearest tiles found`);
    } catch (error) {
      if (error.name === "AbortError") return;
      note("");
      throw error;
    }
  }

  // to a tile of any slide
  async goTo(slide, tile, { remember } = {}) {
    const elsewhere = slide !== this.slide;
    if (elsewhere) await this.openSlide(slide, { remember });
    if (slide !== this.slide) return;
    this.picture.show(this.grid.centre(tile), this.grid.side, { closer: true });
    await this.select(tile, { remember: elsewhere ? "replaceState" : remember });
    await this.findNearest();
  }

  async step(dx, dy) {
    if (!this.grid.count) return;
    const { left, top, scale, width, height } = this.picture.view();
    const start = this.grid.nearest(left + width / scale / 2, top + height / scale / 2);
    const tile = this.tile < 0 ? start : this.grid.towards(this.tile, dx, dy);
    if (tile < 0) return tell("No tile further that way");
    this.picture.show(this.grid.centre(tile), this.grid.side);
    await this.select(tile);
  }

  async changeSlide(by) {
    const slide = this.asked + by;
    if (slide >= 0 && slide < this.slides.length) await this.openSlide(slide);
  }

  moved() {
    if (this.about) showScale(this.about.base_mpp / this.picture.view().scale);
  }
}

function describeLinks({ tiles, distances_um: distances }) {
  if (!tiles.length) return "none";
  const near = Math.min(...distances), far = Math.max(...distances);
  return `${tiles.length}, ${number(near)}${far > near ? `–${number(far)}` : ""} µm`;
}
