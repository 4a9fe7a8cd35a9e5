// Where the tiles of a slide lie, in squares of a coarse lattice, so that finding some does not look at all of them.
// All positions are level-0 pixels.

const MOST_CELLS = 512;

export class TileGrid {
  // xy: x, y of each tile's top-left corner; side: of a tile; stride: between tiles
  constructor(xy, side, stride) {
    this.xy = xy;
    this.side = side;
    this.count = xy.length / 2;
    // overlapping tiles are coloured only as large as their stride, so that colours do not pile up
    this.cell = Math.min(side, stride);
    this.left = this.top = Infinity;
    let right = -Infinity, bottom = -Infinity;
    for (let tile = 0; tile < this.count; tile++) {
      this.left = Math.min(this.left, xy[2 * tile]);
      this.top = Math.min(this.top, xy[2 * tile + 1]);
      right = Math.max(right, xy[2 * tile]);
      bottom = Math.max(bottom, xy[2 * tile + 1]);
    }
    if (!this.count) [this.left, this.top, right, bottom] = [0, 0, 0, 0];
    this.right = right;
    this.bottom = bottom;
    this.step = Math.max(side * 2, (right - this.left) / MOST_CELLS, (bottom - this.top) / MOST_CELLS, 1);
    this.cols = Math.floor((right - this.left) / this.step) + 1;
    this.rows = Math.floor((bottom - this.top) / this.step) + 1;
    this.#fill();
  }

  #fill() {
    const cellOf = (tile) =>
      Math.floor((this.xy[2 * tile + 1] - this.top) / this.step) * this.cols + Math.floor((this.xy[2 * tile] - this.left) / this.step);
    this.starts = new Uint32Array(this.cols * this.rows + 1);
    for (let tile = 0; tile < this.count; tile++) this.starts[cellOf(tile) + 1]++;
    for (let cell = 0; cell < this.cols * this.rows; cell++) this.starts[cell + 1] += this.starts[cell];
    const next = this.starts.slice();
    this.members = new Uint32Array(this.count);
    for (let tile = 0; tile < this.count; tile++) this.members[next[cellOf(tile)]++] = tile;
  }

  // every tile that touches the box, and each only once; of more than `most` only some, but more than that many
  inBox(left, top, right, bottom, most = Infinity) {
    const found = [];
    const first = (value, start) => Math.max(0, Math.floor((value - this.side - start) / this.step));
    const last = (value, start, count) => Math.min(count - 1, Math.floor((value - start) / this.step));
    const lastCol = last(right, this.left, this.cols), lastRow = last(bottom, this.top, this.rows);
    for (let row = first(top, this.top); row <= lastRow; row++) {
      for (let col = first(left, this.left); col <= lastCol; col++) {
        const cell = row * this.cols + col;
        for (let at = this.starts[cell]; at < this.starts[cell + 1]; at++) {
          const tile = this.members[at], x = this.xy[2 * tile], y = this.xy[2 * tile + 1];
          if (x < right && x + this.side > left && y < bottom && y + this.side > top) found.push(tile);
        }
        if (found.length > most) return found;
      }
    }
    return found;
  }

  centre(tile) {
    return [this.xy[2 * tile] + this.side / 2, this.xy[2 * tile + 1] + this.side / 2];
  }

  #closest(tiles, x, y) {
    let best = -1, least = Infinity;
    for (const tile of tiles) {
      const [cx, cy] = this.centre(tile);
      const far = (cx - x) ** 2 + (cy - y) ** 2;
      if (far < least) [best, least] = [tile, far];
    }
    return best;
  }

  // the tile at a place, of overlapping ones the one whose centre is nearest; -1 for none
  at(x, y) {
    return this.#closest(this.inBox(x, y, x + 1e-6, y + 1e-6), x, y);
  }

  // the tile whose centre is nearest, however far
  nearest(x, y) {
    return this.#closest(Array(this.count).keys(), x, y);
  }

  // the next tile in a direction (one of dx, dy is -1 or 1, the other 0); -1 at the end of the tissue
  towards(tile, dx, dy) {
    const [x, y] = this.centre(tile);
    let best = -1, least = Infinity;
    for (let other = 0; other < this.count; other++) {
      const [ox, oy] = this.centre(other);
      const ahead = (ox - x) * dx + (oy - y) * dy;
      const aside = Math.abs((ox - x) * dy) + Math.abs((oy - y) * dx);
      if (ahead <= this.cell * 0.25 || aside > ahead) continue;
      const far = ahead + 2 * aside;
      if (far < least) [best, least] = [other, far];
    }
    return best;
  }
}
