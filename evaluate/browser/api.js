// What the server tells. Addresses are relative to the page, whose own address holds the session's key.

async function ask(path, signal) {
  let answer;
  try {
    answer = await fetch(path, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The program does not answer any more; start simtriplet view again.");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Error(said.error || `The program answered ${answer.status}.`);
}

const json = async (path, signal) => (await ask(path, signal)).json();

export const listSlides = () => json("api/slides");
export const describeSlide = (slide) => json(`api/slides/${slide}`);
export const tileDetails = (slide, tile, signal) => json(`api/slides/${slide}/tiles/${tile}`, signal);
export const tilePicture = (slide, tile) => `api/slides/${slide}/tiles/${tile}/picture`;
export const squarePicture = (slide, level, col, row) => `api/slides/${slide}/squares/${level}/${col}/${row}`;

export async function positions(slide) {
  return new Int32Array(await (await ask(`api/slides/${slide}/tiles`)).arrayBuffer());
}

export async function layerValues(slide, layer, kind) {
  const content = await (await ask(`api/slides/${slide}/layers/${layer}`)).arrayBuffer();
  return kind === "classes" ? new Int32Array(content) : new Float32Array(content);
}

export function neighbours(slide, tile, index, signal) {
  return json(`api/slides/${slide}/tiles/${tile}/neighbours?${new URLSearchParams({ index })}`, signal);
}

export function nearest(slide, tile, { features, k, among }, signal) {
  return json(`api/slides/${slide}/tiles/${tile}/nearest?${new URLSearchParams({ features, k, among })}`, signal);
}
