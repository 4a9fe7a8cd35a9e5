// What is drawn over the slide: colours, tile grid, tissue outlines, neighbour links, the selected tile and its like.
// Drawn anew with every picture, so only what is in view is; from far away a small picture of the colours stands for the tiles.

const GRID = "rgba(0, 64, 107, 0.55)", GRID_AREA = [0, 64, 107];
const TISSUE = "#d55e00", LINK = "#0072b2", SELECTED = "#f0e442", NEAR = "#009e73", DARK = "rgba(0, 0, 0, 0.75)", LIGHT = "#ffffff";
const SMALLEST_GRID_PX = 7;
const MOST_SINGLE_TILES = 6000;

export class Overlay {
  constructor(canvas, picture) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.picture = picture;
    this.grid = null;
    this.colours = null;
    this.show = { grid: true, tissue: true, links: true };
    this.opacity = 0.5;
    this.hovered = { tile: -1, neighbours: [] };
    this.selected = { tile: -1, neighbours: [] };
    this.near = [];
    this.asked = false;
    for (const name of ["update-viewport", "resize", "open"]) picture.viewer.addHandler(name, () => this.draw());
  }

  setSlide(grid, rings) {
    this.grid = grid;
    this.tissue = new Path2D();
    for (const ring of rings) {
      for (let at = 0; at < ring.length; at += 2) this.tissue[at ? "lineTo" : "moveTo"](ring[at], ring[at + 1]);
      this.tissue.closePath();
    }
    this.hovered = { tile: -1, neighbours: [] };
    this.selected = { tile: -1, neighbours: [] };
    this.near = [];
    this.setColours(null);
    this.footprint = this.#farPicture(() => GRID_AREA);
  }

  // colours: { codes, palette } or null
  setColours(colours) {
    this.colours = colours;
    this.styles = colours ? colours.palette.map((rgb) => `rgb(${rgb.join(",")})`) : [];
    this.far = colours ? this.#farPicture((tile) => colours.palette[colours.codes[tile]]) : null;
    this.redraw();
  }

  // one pixel a place of the lattice
  #farPicture(colourOf) {
    const grid = this.grid;
    const step = Math.max(grid.cell, (grid.right - grid.left) / 4095, (grid.bottom - grid.top) / 4095);
    const canvas = document.createElement("canvas");
    canvas.width = Math.round((grid.right - grid.left) / step) + 1;
    canvas.height = Math.round((grid.bottom - grid.top) / step) + 1;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(canvas.width, canvas.height);
    for (let tile = 0; tile < grid.count; tile++) {
      const rgb = colourOf(tile);
      if (!rgb) continue;
      const col = Math.round((grid.xy[2 * tile] - grid.left) / step), row = Math.round((grid.xy[2 * tile + 1] - grid.top) / step);
      pixels.data.set([...rgb, 255], 4 * (row * canvas.width + col));
    }
    context.putImageData(pixels, 0, 0);
    return { canvas, step };
  }

  redraw() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => { this.asked = false; this.draw(); });
  }

  draw() {
    const { width, height } = this.canvas.getBoundingClientRect();
    const ratio = globalThis.devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    const context = this.context;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    if (!this.grid || !this.picture.viewer.isOpen()) return;
    this.view = this.picture.view();
    const { left, top, scale } = this.view;
    const visible = this.grid.inBox(left, top, left + width / scale, top + height / scale, 2 * MOST_SINGLE_TILES);
    this.#drawColours(visible);
    this.#drawGrid(visible);
    this.#drawTissue();
    this.#drawTiles();
  }

  #place(x, y) {
    return [(x - this.view.left) * this.view.scale, (y - this.view.top) * this.view.scale];
  }

  // whole pixels: as the edges are rounded, not the size, squares that touch are drawn touching
  #pixelBox(x, y, side) {
    const [left, top] = this.#place(x, y).map(Math.round), [right, bottom] = this.#place(x + side, y + side).map(Math.round);
    return [left, top, Math.max(1, right - left), Math.max(1, bottom - top)];
  }

  #drawFar({ canvas, step }, opacity) {
    const context = this.context, grid = this.grid, inset = (grid.side - grid.cell) / 2 - (step - grid.cell) / 2;
    const [x, y] = this.#place(grid.left + inset, grid.top + inset);
    context.globalAlpha = opacity;
    context.imageSmoothingEnabled = false;
    context.drawImage(canvas, x, y, canvas.width * step * this.view.scale, canvas.height * step * this.view.scale);
    context.globalAlpha = 1;
  }

  #drawColours(visible) {
    if (!this.colours) return;
    if (visible.length > MOST_SINGLE_TILES) return this.#drawFar(this.far, this.opacity);
    const { context, grid, colours, styles } = this, inset = (grid.side - grid.cell) / 2;
    context.globalAlpha = this.opacity;
    let last = -1;
    for (const tile of visible) {
      const code = colours.codes[tile];
      if (code < 0) continue;
      if (code !== last) context.fillStyle = styles[(last = code)];
      context.fillRect(...this.#pixelBox(grid.xy[2 * tile] + inset, grid.xy[2 * tile + 1] + inset, grid.cell));
    }
    context.globalAlpha = 1;
  }

  #drawGrid(visible) {
    if (!this.show.grid) return;
    const side = this.grid.side * this.view.scale;
    if (side < SMALLEST_GRID_PX || visible.length > 2 * MOST_SINGLE_TILES) {
      if (!this.colours) this.#drawFar(this.footprint, 0.22);
      return;
    }
    const { context, grid } = this;
    context.fillStyle = GRID;
    for (const tile of visible) {
      const [x, y, width, height] = this.#pixelBox(grid.xy[2 * tile], grid.xy[2 * tile + 1], grid.side);
      context.fillRect(x, y, width, 1);
      context.fillRect(x, y + height - 1, width, 1);
      context.fillRect(x, y + 1, 1, height - 2);
      context.fillRect(x + width - 1, y + 1, 1, height - 2);
    }
  }

  #drawTissue() {
    if (!this.show.tissue) return;
    const context = this.context, { left, top, scale } = this.view;
    context.save();
    context.scale(scale, scale);
    context.translate(-left, -top);
    context.lineJoin = "round";
    context.strokeStyle = TISSUE;
    context.lineWidth = 1.8 / scale;
    context.stroke(this.tissue);
    context.restore();
  }

  #drawTiles() {
    if (this.show.links) {
      if (this.hovered.tile !== this.selected.tile) this.#drawLinks(this.hovered);
      this.#drawLinks(this.selected);
    }
    for (const tile of this.near) this.#outline(tile, NEAR, 2.5);
    if (this.hovered.tile >= 0) this.#outline(this.hovered.tile, LIGHT, 1.5);
    if (this.selected.tile >= 0) this.#outline(this.selected.tile, SELECTED, 3);
  }

  // on any ground: a coloured line on a dark one
  #outline(tile, colour, width) {
    const context = this.context, side = Math.max(5, this.grid.side * this.view.scale);
    const [cx, cy] = this.#place(...this.grid.centre(tile));
    for (const [style, line] of [[DARK, width + 2], [colour, width]]) {
      context.strokeStyle = style;
      context.lineWidth = line;
      context.strokeRect(cx - side / 2, cy - side / 2, side, side);
    }
  }

  #drawLinks({ tile, neighbours }) {
    if (tile < 0) return;
    const context = this.context, [x, y] = this.#place(...this.grid.centre(tile));
    const dot = Math.min(5, Math.max(2, this.grid.side * this.view.scale * 0.12));
    const ends = neighbours.map((other) => this.#place(...this.grid.centre(other)));
    context.lineCap = "round";
    for (const [style, line, more] of [[LIGHT, 4.5, 1.5], [LINK, 2.2, 0]]) {
      context.strokeStyle = context.fillStyle = style;
      context.lineWidth = line;
      context.beginPath();
      for (const [ex, ey] of ends) { context.moveTo(x, y); context.lineTo(ex, ey); }
      context.stroke();
      context.beginPath();
      for (const [ex, ey] of ends) { context.moveTo(ex + dot + more, ey); context.arc(ex, ey, dot + more, 0, 2 * Math.PI); }
      context.fill();
    }
  }
}
