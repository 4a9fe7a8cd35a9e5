// From a layer's values to colours: a palette, and for each tile its place in it (-1 for none).

const VIRIDIS = ["#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const STEPS = 128;

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

function ramp() {
  const stops = VIRIDIS.map(channels);
  return Array.from({ length: STEPS }, (_, step) => {
    const place = (step / (STEPS - 1)) * (stops.length - 1);
    const below = Math.min(Math.floor(place), stops.length - 2);
    return stops[below].map((low, channel) => Math.round(low + (place - below) * (stops[below + 1][channel] - low)));
  });
}

const RAMP = ramp();

// (0..1) to a colour of the scale, for the legend
export const scaleColour = (share) => `rgb(${RAMP[Math.round(share * (STEPS - 1))].join(",")})`;

// hidden: the codes of classes that are switched off
export function colourTiles(layer, values, hidden) {
  const codes = new Int32Array(values.length).fill(-1);
  if (layer.kind === "classes") {
    values.forEach((value, tile) => { if (value >= 0 && !hidden.has(value)) codes[tile] = value; });
    return { codes, palette: layer.classes.map((one) => channels(one.colour)) };
  }
  const span = layer.high - layer.low;
  values.forEach((value, tile) => {
    if (Number.isNaN(value)) return;
    const share = span > 0 ? (value - layer.low) / span : 0.5;
    codes[tile] = Math.round(Math.min(1, Math.max(0, share)) * (STEPS - 1));
  });
  return { codes, palette: RAMP };
}
