// What the curves show: the last frames, and a whole training.

const FRAMES = 600;
const TRAINING_POINTS = 2000;
const EARLY_FRAMES = 10;
const SHARE = 0.1; // of the last frame in an average

/** An average that forgets: at first the plain mean, then each number has the least share, or the one given with it. */
export class Smoothed {
  #count = 0;
  #leastShare;
  value = null;

  constructor(leastShare) {
    this.#leastShare = leastShare;
  }

  add(number, ofItsOwn = 0) {
    this.#count += 1;
    const share = Math.max(this.#leastShare, ofItsOwn, 1 / this.#count);
    this.value = this.value === null ? number : this.value + share * (number - this.value);
    return this.value;
  }
}

/** The last frames' numbers: {step, dreaming, errors, copy, energies}. */
export class FrameHistory {
  frames = [];
  smoothed = [];
  smoothedCopy = new Smoothed(SHARE);

  clear() {
    this.frames = [];
    this.restart();
  }

  /** Begin the averages again, as what is shown is not what it was. */
  restart() {
    this.smoothed = [];
    this.smoothedCopy = new Smoothed(SHARE);
  }

  get last() {
    return this.frames.at(-1) ?? null;
  }

  add({ step, dreaming, errors, copy_error: copy, energies }) {
    if (this.last !== null && this.last.dreaming !== dreaming) this.restart();
    this.frames.push({ step, dreaming, errors, copy, energies });
    if (this.frames.length > FRAMES) this.frames.shift();
    errors.forEach((error, pane) => {
      this.smoothed[pane] ??= new Smoothed(SHARE);
      if (error !== null) this.smoothed[pane].add(error);
    });
    if (copy !== null) this.smoothedCopy.add(copy);
  }
}

/**
 * The error of a training from its beginning, with ever fewer points a second so that they stay few. It is smoothed as
 * it is drawn, by its logarithm, for it falls by powers of ten.
 */
export class TrainingCurve {
  points = []; // {seconds, error, smooth}
  copy = new Smoothed(0.01);
  #smooth = new Smoothed(0.04);
  #span;
  #before = 0;
  #early = new Smoothed(0);
  #count = 0;
  #stride = 1;
  #gathered = [];

  /** seconds: how long the training is to be. */
  constructor(seconds) {
    this.#span = Math.max(1.5, 0.03 * seconds);
  }

  /** The error at the beginning, and now; null where there is none yet. */
  get first() {
    return exponential(this.#early.value);
  }

  get last() {
    return exponential(this.#smooth.value);
  }

  add(seconds, error, copy) {
    if (copy !== null) this.copy.add(copy);
    if (error === null) return;
    const logarithm = Math.log(Math.max(error, 1e-6));
    this.#smooth.add(logarithm, Math.min(0.3, (seconds - this.#before) / this.#span)); // frames may be few
    this.#before = seconds;
    this.#count += 1;
    if (this.#count <= EARLY_FRAMES) this.#early.add(logarithm);
    this.#gathered.push(error);
    if (this.#gathered.length < this.#stride) return;
    this.points.push({ seconds, error: mean(this.#gathered), smooth: this.last });
    this.#gathered = [];
    if (this.points.length >= TRAINING_POINTS) this.#halve();
  }

  #halve() {
    const halved = [];
    for (let i = 1; i < this.points.length; i += 2) {
      const [a, b] = [this.points[i - 1], this.points[i]];
      halved.push({ seconds: b.seconds, error: (a.error + b.error) / 2, smooth: b.smooth });
    }
    this.points = halved;
    this.#stride *= 2;
  }
}

const exponential = (value) => (value === null ? null : Math.exp(value));
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
