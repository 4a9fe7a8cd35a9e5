// The slide itself: OpenSeadragon on the server's squares, and the way between its coordinates and level-0 pixels.

import { squarePicture } from "./api.js";

const OpenSeadragon = globalThis.OpenSeadragon;

export class Picture {
  constructor(element) {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.viewer = new OpenSeadragon.Viewer({
      element,
      drawer: "canvas",
      showNavigationControl: false,
      animationTime: calm ? 0 : 0.4,
      springStiffness: 9,
      visibilityRatio: 0.4,
      minZoomImageRatio: 0.6,
      maxZoomPixelRatio: 8,
      zoomPerScroll: 1.25,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsPen: { clickToZoom: false, dblClickToZoom: true },
      tabIndex: "", // the page has the keys to itself, and one place for the focus
      maxImageCacheCount: 400,
    });
    this.unit = 1;
  }

  // show another slide; resolves when it is there
  open(slide, about) {
    const levels = about.pyramid;
    this.unit = 1 / (levels.width * levels.finest);
    const tileSource = {
      width: levels.width,
      height: levels.height,
      tileSize: levels.square,
      tileOverlap: 0,
      minLevel: levels.min,
      maxLevel: levels.max,
      getTileUrl: (level, col, row) => squarePicture(slide, level, col, row),
    };
    return new Promise((resolve, reject) => {
      const viewer = this.viewer;
      const done = (settle) => (event) => {
        viewer.removeHandler("open", opened);
        viewer.removeHandler("open-failed", failed);
        settle(event);
      };
      const opened = done(() => resolve());
      const failed = done(() => reject(new Error("The slide's picture cannot be opened.")));
      viewer.addHandler("open", opened);
      viewer.addHandler("open-failed", failed);
      viewer.open(tileSource);
    });
  }

  // what is seen now: level-0 pixels at the left and top, and screen pixels per level-0 pixel
  view() {
    const bounds = this.viewer.viewport.getBoundsNoRotate(true);
    const box = this.viewer.viewport.getContainerSize();
    return { left: bounds.x / this.unit, top: bounds.y / this.unit, scale: (box.x / bounds.width) * this.unit, width: box.x, height: box.y };
  }

  // level-0 pixels under a place of the element
  baseAt(x, y) {
    const { left, top, scale } = this.view();
    return [left + x / scale, top + y / scale];
  }

  zoomBy(factor) {
    this.viewer.viewport.zoomBy(factor);
    this.viewer.viewport.applyConstraints();
  }

  panBy(dx, dy) {
    const viewport = this.viewer.viewport;
    viewport.panBy(viewport.deltaPointsFromPixels(new OpenSeadragon.Point(dx, dy)));
    viewport.applyConstraints();
  }

  home() {
    this.viewer.viewport.goHome();
  }

  // bring a tile into view; zoom in where it would be too small to see
  show(centre, side, { closer = false } = {}) {
    const viewport = this.viewer.viewport;
    const bounds = viewport.getBoundsNoRotate(false);
    const [x, y] = centre.map((value) => value * this.unit);
    const margin = side * this.unit;
    const inside = x > bounds.x + margin && x < bounds.x + bounds.width - margin && y > bounds.y + margin && y < bounds.y + bounds.height - margin;
    const wanted = margin * 7;
    if (closer && Math.min(bounds.width, bounds.height) > wanted * 1.5) {
      viewport.fitBounds(new OpenSeadragon.Rect(x - wanted / 2, y - wanted / 2, wanted, wanted));
    } else if (!inside) {
      viewport.panTo(new OpenSeadragon.Point(x, y));
    }
    viewport.applyConstraints();
  }
}
