// The panes: for each model its frames and winner maps, drawn when a frame has come.

import { drawFrame, drawOverlay, drawShown, drawWinners } from "./draw.js";
import { isFrame, isWinners } from "./protocol.js";
import { choosable, dreamName, dreamStep } from "./state.js";

export const PANES = 2;
const LEARNING = "learning";
const numbers = new Intl.NumberFormat("en-GB");

/** A canvas with one pixel for each place, enlarged by the style sheet. */
class PixelCanvas {
  #canvas;
  #context;
  #image = null;

  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
  }

  /** Draw with a function that fills the pixels of an image of this size. */
  draw(height, width, fill) {
    if (this.#image === null || this.#image.height !== height || this.#image.width !== width) {
      [this.#canvas.height, this.#canvas.width] = [height, width];
      this.#canvas.parentElement.style.aspectRatio = `${width} / ${height}`;
      this.#image = this.#context.createImageData(width, height);
    }
    fill(this.#image.data);
    this.#context.putImageData(this.#image, 0, 0);
    this.#canvas.parentElement.dataset.drawn = "";
  }
}

class Pane {
  #number;
  #element;
  #canvases;
  #select;
  #caption;
  #seen;
  #winners = []; // {canvas, before}
  #layers = "";
  #stages = []; // {canvas}

  constructor(number, actions) {
    this.#number = number;
    this.#element = document.getElementById("pane-template").content.firstElementChild.cloneNode(true);
    const find = (selector) => this.#element.querySelector(selector);
    this.#element.dataset.pane = number;
    this.#element.hidden = number > 0;
    this.#element.setAttribute("aria-label", number === 0 ? "First model" : "Second model");
    this.#canvases = {};
    for (const name of ["truth", "prediction", "overlay"]) {
      const canvas = find(`.${name} canvas`);
      canvas.id = `${name}-${number}`;
      this.#canvases[name] = new PixelCanvas(canvas);
    }
    this.#caption = find(".prediction figcaption");
    this.#seen = find(".truth .name");
    this.#select = find(".model");
    this.#select.id = `model-${number}`;
    this.#select.setAttribute("aria-label", number === 0 ? "Model" : "Second model");
    this.#select.disabled = true;
    this.#select.addEventListener("change", () => actions.setModel(number, this.#select.value));
    const [add, remove] = [find(".add"), find(".remove")];
    [add.id, remove.id] = ["add-model", "remove-model"];
    add.addEventListener("click", () => actions.addModel());
    remove.addEventListener("click", () => actions.removeModel());
    (number === 0 ? remove : add).remove();
  }

  get element() {
    return this.#element;
  }

  /** Show which model it is. */
  showSession(state) {
    const { session, hello, connection } = state;
    const pane = session?.panes[this.#number];
    this.#element.hidden = this.#number > 0 && pane === undefined;
    if (hello === null || pane === undefined) return;
    this.#showModels(state, pane);
    this.#select.disabled = connection.phase !== "open";
    this.#select.setAttribute("aria-busy", String(state.pending.has("configure")));
    this.#element.querySelector(".weights").textContent = pane.weights > 0 ? `${numbers.format(pane.weights)} weights` : "";
    const note = this.#element.querySelector(".world-note");
    note.hidden = pane.unseen === null;
    note.textContent = pane.unseen ?? "";
    this.#makeWinners(pane.layers);
    this.#makeStages(pane.stages, session);
  }

  #showModels(state, pane) {
    const options = state.hello.models.map((model) => {
      const can = choosable(state, model, state.session.source);
      return { value: model.name, text: can ? model.title : `${model.title} (other frames)`, disabled: !can && model.name !== pane.model };
    });
    if (pane.model === LEARNING) options.unshift({ value: LEARNING, text: "learned here", disabled: false });
    setOptions(this.#select, options, state.pending.has("configure") && this.#select.value ? this.#select.value : pane.model);
  }

  #makeWinners(layers) {
    const description = JSON.stringify(layers);
    if (description === this.#layers) return;
    this.#layers = description;
    const group = this.#element.querySelector(".winners");
    group.hidden = layers.length === 0;
    group.style.setProperty("--maps", layers.length);
    this.#winners = layers.map((layer, number) => {
      const title = `${layer.height} × ${layer.width} places, ${layer.cells} cells at each, ${layer.winners} of them win`;
      const label = `Winner cells of layer ${number + 1}: ${title}`;
      return { ...mapFigure(`winners-${this.#number}-${number}`, `layer ${number + 1}`, title, label, layer), before: null };
    });
    group.replaceChildren(...this.#winners.map(({ figure }) => figure));
  }

  #makeStages(count, { height, width }) {
    const shown = Math.max(count - 1, 0); // the last makes the prediction
    if (shown === this.#stages.length) return;
    const group = this.#element.querySelector(".stages");
    group.hidden = shown === 0;
    group.style.setProperty("--maps", shown);
    this.#stages = Array.from({ length: shown }, (_, number) => {
      const name = `stage ${number + 1} of ${count}`;
      return mapFigure(`stage-${this.#number}-${number}`, `stage ${number + 1}`, name, `What ${name} makes`, { height, width });
    });
    group.replaceChildren(...this.#stages.map(({ figure }) => figure));
  }

  /** Draw the frame that has come last. */
  showFrame(state, steady) {
    const { header, arrays } = state.frame;
    const [truth, prediction] = [arrays.get("truth"), arrays.get(`prediction:${this.#number}`)];
    if (!isFrame(truth)) return;
    const [, height, width] = truth.shape;
    const [shown, hidden] = [arrays.get("shown"), arrays.get("hidden")];
    const disturbed = isFrame(shown) && isFrame(hidden) && shown.shape.join() === truth.shape.join();
    this.#canvases.truth.draw(height, width, (pixels) =>
      disturbed ? drawShown(pixels, shown, hidden) : drawFrame(pixels, truth),
    );
    this.#seen.textContent = disturbed ? "what it sees" : "truth";
    if (!isFrame(prediction) || prediction.shape.join() !== truth.shape.join()) return;
    this.#canvases.prediction.draw(height, width, (pixels) => drawFrame(pixels, prediction));
    this.#canvases.overlay.draw(height, width, (pixels) => drawOverlay(pixels, truth, prediction));
    this.#winners.forEach((shown, layer) => {
      const winners = arrays.get(`winners:${this.#number}:${layer}`);
      if (!isWinners(winners)) return;
      shown.canvas.draw(winners.shape[0], winners.shape[1], (pixels) => drawWinners(pixels, winners, steady ? null : shown.before));
      shown.before = winners;
    });
    this.#stages.forEach(({ canvas }, stage) => {
      const made = arrays.get(`stage:${this.#number}:${stage}`);
      if (isFrame(made)) canvas.draw(made.shape[1], made.shape[2], (pixels) => drawFrame(pixels, made));
    });
    this.#element.toggleAttribute("data-dreaming", header.dreaming);
    this.#caption.textContent = header.dreaming ? `${dreamName(state)}, step ${dreamStep(state)}` : "prediction";
  }
}

/** Make a small picture with a caption; return its figure and its canvas. */
function mapFigure(id, text, title, label, { height, width }) {
  const figure = document.createElement("figure");
  figure.className = "frame";
  const caption = document.createElement("figcaption");
  caption.textContent = text;
  caption.title = title;
  const screen = document.createElement("div");
  screen.className = "screen";
  const canvas = document.createElement("canvas");
  canvas.id = id;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  canvas.title = title;
  screen.append(canvas);
  screen.style.aspectRatio = `${width} / ${height}`;
  figure.append(caption, screen);
  return { figure, canvas: new PixelCanvas(canvas) };
}

/** Give a select these options, touching it only where they differ. */
export function setOptions(select, options, value) {
  const description = JSON.stringify(options);
  if (select.dataset.options !== description) {
    select.dataset.options = description;
    select.replaceChildren(
      ...options.map(({ value: name, text, disabled = false }) => {
        const option = new Option(text, name);
        option.disabled = disabled;
        return option;
      }),
    );
  }
  if (select.value !== value) select.value = value;
}

/** Make the panes and return their view. */
export function panesView(actions) {
  const panes = Array.from({ length: PANES }, (_, number) => new Pane(number, actions));
  const box = document.getElementById("panes");
  box.append(...panes.map((pane) => pane.element));
  const motion = window.matchMedia("(prefers-reduced-motion: reduce)");
  return (state, changed) => {
    if (changed.has("session") || changed.has("connection")) {
      for (const pane of panes) pane.showSession(state);
      box.dataset.count = state.session?.panes.length ?? 1;
      box.toggleAttribute("data-away", state.connection.phase !== "open" && state.frame !== null);
      document.getElementById("empty").hidden = state.hello?.models.length !== 0;
      box.hidden = state.hello?.models.length === 0;
    }
    if (changed.has("frame") && state.frame !== null) {
      for (const pane of panes) if (!pane.element.hidden) pane.showFrame(state, motion.matches);
    }
  };
}
