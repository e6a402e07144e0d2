// The curves of error and energy.

import { trainingPhase } from "./state.js";

const LEAST_ERROR = 1e-3;
const MARGIN = { left: 44, right: 10, top: 8, bottom: 20 };
const LEGEND_MILLISECONDS = 250;

/** An axis: from where to where, its ticks, and where a value lies between (0..1). */
function linearAxis(from, to, count) {
  const raw = (to - from) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((n) => n * power >= raw) * power;
  const ticks = [];
  for (let i = Math.ceil(from / step - 1e-9); i * step <= to + step * 1e-9; i += 1) ticks.push(i === 0 ? 0 : i * step); // no -0
  return { from, to, ticks, step, at: (value) => (value - from) / (to - from || 1) };
}

function logAxis(from, to) {
  const [low, high] = [Math.log10(from), Math.log10(to)];
  const multiples = high - low > 2.5 ? [1] : high - low > 1.2 ? [1, 3] : [1, 2, 5];
  const ticks = [];
  for (let power = Math.floor(low); power <= high; power += 1) {
    for (const n of multiples) {
      const tick = n * 10 ** power;
      if (tick >= from * 0.999 && tick <= to * 1.001) ticks.push(tick);
    }
  }
  return { from, to, ticks, at: (value) => (Math.log10(Math.max(value, LEAST_ERROR)) - low) / (high - low) };
}

/** A range of a logarithmic axis that holds the values and moves in steps, so that the axis is calm. */
function logRange(values) {
  let [low, high] = [Infinity, 0];
  for (const value of values) {
    if (value === null || value === undefined) continue;
    low = Math.min(low, Math.max(value, LEAST_ERROR));
    high = Math.max(high, value);
  }
  if (low === Infinity) return [0.1, 10];
  const from = 10 ** (Math.floor(2 * Math.log10(low)) / 2);
  const to = 10 ** (Math.ceil(2 * Math.log10(Math.max(high, LEAST_ERROR)) + 1e-9) / 2);
  return [from, Math.max(to, from * 10)];
}

/** A round number that most values are below; a ball that is thrown is a spike, which must not flatten the rest. */
function niceMaximum(values) {
  const sorted = values.filter((value) => value !== null && value !== undefined).sort((a, b) => a - b);
  const quantile = (share) => sorted[Math.floor(share * (sorted.length - 1))] ?? 0;
  const high = Math.max(1, Math.min(quantile(1), Math.max(4 * quantile(0.5), 1.2 * quantile(0.95))));
  const power = 10 ** Math.floor(Math.log10(high));
  return [1, 1.5, 2, 3, 5, 7, 10].find((n) => n * power >= high) * power;
}

/** A canvas as sharp as the screen, on which a plot is drawn. */
class Plot {
  #canvas;
  #context;
  #size = { width: 0, height: 0 };

  constructor(canvas, resized) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    new ResizeObserver(() => {
      this.#size = { width: canvas.clientWidth, height: canvas.clientHeight };
      resized();
    }).observe(canvas);
  }

  /** plot: {x, y: axes, formatX, formatY, spans: [from, to][], marks: x[], lines: {points: [x, y][], colour, width, dash, alpha}[], note}. */
  draw(plot, colours) {
    const { width, height } = this.#size;
    if (width === 0) return;
    const scale = window.devicePixelRatio || 1;
    const [across, down] = [Math.round(width * scale), Math.round(height * scale)];
    if (this.#canvas.width !== across || this.#canvas.height !== down) {
      [this.#canvas.width, this.#canvas.height] = [across, down];
    }
    const context = this.#context;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = colours.font;
    const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
    const toX = (value) => MARGIN.left + plot.x.at(value) * inner.width;
    const toY = (value) => MARGIN.top + (1 - plot.y.at(value)) * inner.height;
    if (plot.note) {
      context.fillStyle = colours.muted;
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.fillText(plot.note, width / 2, height / 2);
      return;
    }
    this.#drawGrid(plot, colours, toX, toY, inner);
    context.save();
    context.beginPath();
    context.rect(MARGIN.left, MARGIN.top - 2, inner.width, inner.height + 4);
    context.clip();
    context.fillStyle = colours.dreamShade;
    for (const [from, to] of plot.spans ?? []) context.fillRect(toX(from), MARGIN.top, toX(to) - toX(from), inner.height);
    context.strokeStyle = colours.dream;
    context.lineWidth = 1;
    for (const mark of plot.marks ?? []) {
      const x = Math.round(toX(mark)) + 0.5;
      line(context, [[x, MARGIN.top], [x, MARGIN.top + inner.height]]);
    }
    for (const { points, colour, width: lineWidth = 1.5, dash = [], alpha = 1 } of plot.lines) {
      context.strokeStyle = colour;
      context.lineWidth = lineWidth;
      context.globalAlpha = alpha;
      context.lineJoin = "round";
      context.setLineDash(dash);
      line(context, points.map(([x, y]) => (y === null || y === undefined ? null : [toX(x), toY(y)])));
    }
    context.restore();
  }

  #drawGrid({ x, y, formatX, formatY }, colours, toX, toY, inner) {
    const context = this.#context;
    context.strokeStyle = colours.grid;
    context.fillStyle = colours.muted;
    context.lineWidth = 1;
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const tick of y.ticks) {
      const at = Math.round(toY(tick)) + 0.5;
      line(context, [[MARGIN.left, at], [MARGIN.left + inner.width, at]]);
      context.fillText(formatY(tick), MARGIN.left - 6, at);
    }
    context.textAlign = "center";
    context.textBaseline = "top";
    for (const tick of x.ticks) {
      const at = toX(tick);
      const half = context.measureText(formatX(tick)).width / 2;
      if (at + half > MARGIN.left + inner.width + MARGIN.right || at - half < 0) continue;
      context.fillText(formatX(tick), at, MARGIN.top + inner.height + 6);
    }
  }
}

/** Stroke a line; a null between its points is a gap. */
function line(context, points) {
  context.beginPath();
  let down = false;
  for (const point of points) {
    if (point === null) down = false;
    else if (down) context.lineTo(point[0], point[1]);
    else {
      context.moveTo(point[0], point[1]);
      down = true;
    }
  }
  context.stroke();
}

/** Return where the frames were dreamt, [from, to][], and where that changed. */
function dreamSpans(frames) {
  const [spans, marks] = [[], []];
  frames.forEach(({ step, dreaming }, i) => {
    const before = frames[i - 1];
    if (before !== undefined && before.dreaming !== dreaming) marks.push(before.step + 0.5);
    if (!dreaming) return;
    if (before?.dreaming) spans.at(-1)[1] = step + 0.5;
    else spans.push([step - 0.5, step + 0.5]);
  });
  return { spans, marks };
}

const short = (value) => String(Number(value.toPrecision(3)));
const grouped = new Intl.NumberFormat("en-GB");
const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.round(seconds % 60)).padStart(2, "0")}`;
const plain = (value) => (value === null || value === undefined ? "–" : value >= 100 ? value.toFixed(0) : value.toFixed(2));

function stepsAxis(frames) {
  const last = frames.at(-1)?.step ?? 0;
  const first = frames[0]?.step ?? 0;
  return linearAxis(first, Math.max(last, first + 60), 5);
}

/** Whether a pane is the frame before itself, so that it needs no line of its own. */
const showsCopy = (session) => session?.panes.some((pane) => pane.model === "copy-last") ?? false;

/** The error of the last frames. */
function errorOfFrames({ history, session }, colours) {
  const { frames } = history;
  const panes = frames.at(-1)?.errors.length ?? 0;
  const values = frames.flatMap((frame) => [frame.copy, ...frame.errors]);
  const lines = showsCopy(session) ? [] : [{ points: frames.map((f) => [f.step, f.copy]), colour: colours.copy, width: 1 }];
  for (let pane = 0; pane < panes; pane += 1) {
    lines.push({ points: frames.map((f) => [f.step, f.errors[pane]]), colour: colours.panes[pane] });
  }
  return {
    x: stepsAxis(frames),
    y: logAxis(...logRange(values)),
    formatX: (step) => grouped.format(step),
    formatY: short,
    ...dreamSpans(frames),
    lines,
    note: frames.length === 0 ? "no frames yet" : null,
  };
}

/** The error of a training, from its beginning. */
function errorOfTraining({ training, session }, colours) {
  const { points } = training;
  const last = points.at(-1)?.seconds ?? 0;
  const end = session?.training?.running ? Math.max(10, last) : Math.max(1, last);
  const copy = training.copy.value;
  return {
    x: linearAxis(0, end, 5),
    y: logAxis(...logRange([copy, ...points.map((point) => point.error)])),
    formatX: clock,
    formatY: short,
    lines: [
      { points: copy === null ? [] : [[0, copy], [end, copy]], colour: colours.copy, width: 1 },
      { points: points.map((p) => [p.seconds, p.error]), colour: colours.panes[0], width: 1, alpha: 0.35 },
      { points: points.map((p) => [p.seconds, p.smooth]), colour: colours.panes[0], width: 2.5 },
    ],
    note: points.length === 0 ? "nothing learned yet" : null,
  };
}

/** The energies of the last frames; none of what are no balls. */
function energyOfFrames({ history, session }, colours) {
  const { frames } = history;
  const lines = [];
  const many = Math.max(0, ...frames.slice(-1).map((frame) => frame.energies.length));
  for (let i = 1; i < many; i += 1) lines.push({ points: frames.map((f) => [f.step, f.energies[i]]), colour: colours.panes[i - 1] });
  if (many > 0) lines.push({ points: frames.map((f) => [f.step, f.energies[0]]), colour: colours.text, dash: [5, 4] });
  const note = frames.length === 0 ? "no frames yet" : many === 0 && session?.source.kind !== "balls" ? "for bouncing balls only" : null;
  return {
    x: stepsAxis(frames),
    y: linearAxis(0, niceMaximum(frames.flatMap((frame) => frame.energies)), 4),
    formatX: (step) => grouped.format(step),
    formatY: short,
    ...dreamSpans(frames),
    lines,
    note,
  };
}

/** A legend: what each line is, with its last value. */
class Legend {
  #list;
  #names = "";

  constructor(list) {
    this.#list = list;
  }

  show(entries) {
    const names = JSON.stringify(entries.map(({ name, style }) => [name, style]));
    if (names !== this.#names) {
      this.#names = names;
      this.#list.replaceChildren(
        ...entries.map(({ name, style }) => {
          const item = document.createElement("li");
          const key = document.createElement("i");
          key.className = `line ${style}`;
          const value = document.createElement("b");
          item.append(key, document.createTextNode(`${name} `), value);
          return item;
        }),
      );
    }
    entries.forEach(({ value }, i) => {
      this.#list.children[i].querySelector("b").textContent = value;
    });
  }
}

const titleOf = ({ hello }, name) => (name === "learning" ? "learned here" : (hello?.models.find((model) => model.name === name)?.title ?? name));

function errorEntries(state) {
  const { session, history, range, training } = state;
  if (range === "training" && training !== null) {
    return [
      { name: "learned here, smoothed", style: "pane-0", value: plain(training.last) },
      { name: "the frame before", style: "copy", value: plain(training.copy.value) },
    ];
  }
  const entries = (session?.panes ?? []).map((pane, i) => ({
    name: titleOf(state, pane.model),
    style: `pane-${i}`,
    value: plain(history.smoothed[i]?.value),
  }));
  return showsCopy(session) ? entries : [...entries, { name: "the frame before", style: "copy", value: plain(history.smoothedCopy.value) }];
}

function energyEntries(state) {
  const { session, history } = state;
  if (session !== null && session.source.kind !== "balls") return [];
  const energies = history.last?.energies ?? [];
  const entries = (session?.panes ?? []).map((pane, i) => ({
    name: titleOf(state, pane.model),
    style: `pane-${i}`,
    value: plain(energies[i + 1]),
  }));
  return [{ name: "truth", style: "true", value: plain(energies[0]) }, ...entries];
}

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(name).trim();
  return {
    text: get("--text"),
    muted: get("--muted"),
    grid: get("--grid"),
    copy: get("--copy"),
    dream: get("--dream"),
    dreamShade: get("--dream-shade"),
    panes: [get("--pane-0"), get("--pane-1")],
    font: `11px ${getComputedStyle(document.body).fontFamily}`,
  };
}

/** Return the view of both curves. */
export function curvesView(store) {
  const byId = (id) => document.getElementById(id);
  const redraw = () => store.change(["curves"], () => {});
  const [error, energy] = [new Plot(byId("error-curve"), redraw), new Plot(byId("energy-curve"), redraw)];
  const [errorLegend, energyLegend] = [new Legend(byId("error-legend")), new Legend(byId("energy-legend"))];
  let colours = readColours();
  let legendsAt = 0;
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    colours = readColours();
    redraw();
  });
  for (const range of ["frames", "training"]) {
    byId(`range-${range}`).addEventListener("click", () => store.change(["curves", "session"], (state) => (state.range = range)));
  }

  function showRange(state) {
    byId("range").hidden = trainingPhase(state) === "";
    for (const range of ["frames", "training"]) byId(`range-${range}`).setAttribute("aria-pressed", String(state.range === range));
    byId("error-unit").textContent = state.range === "training" ? "squared, by time of training" : "squared, per frame";
  }

  return (state, changed) => {
    if (changed.has("session")) showRange(state);
    if (!changed.has("frame") && !changed.has("curves") && !changed.has("session")) return;
    const ofTraining = state.range === "training" && state.training !== null;
    error.draw((ofTraining ? errorOfTraining : errorOfFrames)(state, colours), colours);
    energy.draw(energyOfFrames(state, colours), colours);
    const now = performance.now();
    if (now - legendsAt < LEGEND_MILLISECONDS && !changed.has("session")) return;
    legendsAt = now;
    errorLegend.show(errorEntries(state));
    energyLegend.show(energyEntries(state));
  };
}
