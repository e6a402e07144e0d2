// Takes a ball with mouse, finger, pen or keys, and lets it go.

import { announce } from "./notices.js";
import { PANES } from "./panes.js";

const BOX = 10;
const RADIUS = 1.2; // of the balls, as the server draws them
const FASTEST = 2; // units a frame, each way
const LOOK_AHEAD = 4; // frames that the arrow shows
const FLICK_MILLISECONDS = 80; // of the pointer's way that count as its velocity
const STILL_MILLISECONDS = 120; // after which a pointer that has not moved is at rest
const TRAIL = 16; // positions that are remembered
const MOVE_MILLISECONDS = 90; // between two places while a ball is held
const CURSOR_STEP = 0.5;
const VELOCITY_STEP = 0.2;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const rounded = (value) => Math.round(value * 1000) / 1000;

/** Make a velocity no faster than the server takes, in the same direction. */
function limited(vx, vy) {
  const share = Math.min(1, FASTEST / Math.max(Math.abs(vx), Math.abs(vy), 1e-9));
  return { vx: rounded(vx * share), vy: rounded(vy * share) };
}

/** Where a pointer is, in the coordinates of the box. */
function whereIs(event, canvas) {
  const { left, top, width, height } = canvas.getBoundingClientRect();
  return {
    x: rounded(clamp(((event.clientX - left) / width) * BOX, 0, BOX)),
    y: rounded(clamp(((event.clientY - top) / height) * BOX, 0, BOX)),
  };
}

class Placing {
  #store;
  #actions;
  #pane;
  #which;
  #canvas;
  #pointer = null;
  #trail = []; // {x, y, time}
  #sentAt = 0;

  constructor(store, actions, pane, which) {
    this.#store = store;
    this.#actions = actions;
    [this.#pane, this.#which] = [pane, which];
    this.#canvas = document.getElementById(`${which}-${pane}`);
    this.#canvas.addEventListener("pointerdown", (event) => this.#press(event));
    this.#canvas.addEventListener("pointermove", (event) => this.#move(event));
    this.#canvas.addEventListener("pointerup", (event) => this.#release(event));
    this.#canvas.addEventListener("pointercancel", () => this.#drop());
    this.#canvas.addEventListener("keydown", (event) => this.#key(event));
    this.#canvas.addEventListener("blur", () => this.#aim(null, "keys"));
  }

  get #possible() {
    const { session, connection } = this.#store.state;
    return connection.phase === "open" && session?.source.kind === "balls";
  }

  /** Show a ball about to be placed; null takes away one of this kind. */
  #aim(aim, kind) {
    const before = this.#store.state.aim;
    if (aim === null && (before === null || before.kind !== kind || before.pane !== this.#pane || before.which !== this.#which)) return;
    this.#store.change(["aim"], (state) => {
      state.aim = aim === null ? null : { vx: 0, vy: 0, ...aim, kind, pane: this.#pane, which: this.#which };
    });
  }

  #press(event) {
    if (!this.#possible || this.#pointer !== null || event.button !== 0) return;
    this.#pointer = event.pointerId;
    this.#canvas.setPointerCapture(event.pointerId);
    const at = whereIs(event, this.#canvas);
    this.#trail = [{ ...at, time: event.timeStamp }];
    this.#hold(at, event.timeStamp);
    this.#aim(at, "pointer");
  }

  #move(event) {
    if (event.pointerId !== this.#pointer) return;
    const at = whereIs(event, this.#canvas);
    this.#trail = [...this.#trail.slice(1 - TRAIL), { ...at, time: event.timeStamp }];
    if (event.timeStamp - this.#sentAt >= MOVE_MILLISECONDS) this.#hold(at, event.timeStamp);
    this.#aim({ ...at, ...this.#velocity(event.timeStamp) }, "pointer");
  }

  /** Let the ball follow the pointer, at rest. */
  #hold(at, time) {
    this.#sentAt = time;
    this.#actions.place(at);
  }

  #release(event) {
    if (event.pointerId !== this.#pointer) return;
    this.#pointer = null;
    const at = whereIs(event, this.#canvas);
    this.#put({ ...at, ...this.#velocity(event.timeStamp) });
  }

  #drop() {
    this.#pointer = null;
    this.#aim(null, "pointer");
  }

  /** The velocity of the pointer, as one of a ball: what it has gone in the last moment, per frame. */
  #velocity(now) {
    const last = this.#trail.at(-1);
    if (this.#trail.length < 2 || now - last.time > STILL_MILLISECONDS) return { vx: 0, vy: 0 };
    // Where few events come, the two last ones count, however far apart.
    const first = this.#trail.slice(0, -1).find(({ time }) => time > last.time - FLICK_MILLISECONDS) ?? this.#trail.at(-2);
    const frames = ((last.time - first.time) / 1000) * this.#store.state.session.frames_per_second;
    return frames > 0 ? limited((last.x - first.x) / frames, (last.y - first.y) / frames) : { vx: 0, vy: 0 };
  }

  #put(ball) {
    this.#actions.place(ball);
    // While paused nothing moves: the ring stays until a frame shows the ball.
    if (this.#store.state.session.playing) this.#store.change(["aim"], (state) => (state.aim = null));
    else this.#aim(ball, "placed");
  }

  #key(event) {
    if (!this.#possible || event.ctrlKey || event.metaKey || event.altKey) return;
    const { aim } = this.#store.state;
    const mine = aim?.kind === "keys" && aim.pane === this.#pane && aim.which === this.#which;
    const now = mine ? aim : { x: BOX / 2, y: BOX / 2, vx: 0, vy: 0 };
    const arrow = ARROWS[event.key];
    if (arrow !== undefined) {
      const moved = event.shiftKey
        ? { ...now, ...limited(now.vx + arrow[0] * VELOCITY_STEP, now.vy + arrow[1] * VELOCITY_STEP) }
        : { ...now, x: clamp(now.x + arrow[0] * CURSOR_STEP, 0, BOX), y: clamp(now.y + arrow[1] * CURSOR_STEP, 0, BOX) };
      this.#aim(moved, "keys");
      announce(event.shiftKey ? `velocity ${moved.vx.toFixed(1)}, ${moved.vy.toFixed(1)}` : `${moved.x}, ${moved.y}`);
    } else if (event.key === "Enter") {
      this.#actions.place({ x: now.x, y: now.y, vx: now.vx, vy: now.vy });
      this.#aim(now, "keys");
      announce(this.#store.state.session.playing ? "The ball is placed." : "The ball is placed; the next frame shows it.");
    } else if (event.key === "Escape" && mine) this.#aim(null, "keys");
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

/** Draw the ring of a ball and the arrow of its velocity. */
function drawAim(canvas, aim, colour) {
  const { width, height } = canvas.getBoundingClientRect();
  const scale = window.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
  const context = canvas.getContext("2d");
  if (aim === null) return;
  context.scale(canvas.width / BOX, canvas.height / BOX);
  const unit = BOX / width; // a pixel of the screen
  const tip = [aim.x + aim.vx * LOOK_AHEAD, aim.y + aim.vy * LOOK_AHEAD];
  const length = Math.hypot(tip[0] - aim.x, tip[1] - aim.y);
  for (const [lineWidth, style] of [[4 * unit, "#000"], [2 * unit, colour]]) {
    context.lineWidth = lineWidth;
    context.strokeStyle = style;
    context.lineCap = "round";
    context.beginPath();
    context.arc(aim.x, aim.y, RADIUS, 0, 2 * Math.PI);
    context.moveTo(aim.x - 4 * unit, aim.y);
    context.lineTo(aim.x + 4 * unit, aim.y);
    context.moveTo(aim.x, aim.y - 4 * unit);
    context.lineTo(aim.x, aim.y + 4 * unit);
    if (length > 6 * unit) {
      const angle = Math.atan2(tip[1] - aim.y, tip[0] - aim.x);
      context.moveTo(aim.x, aim.y);
      context.lineTo(tip[0], tip[1]);
      for (const side of [-0.5, 0.5]) {
        context.moveTo(tip[0], tip[1]);
        context.lineTo(tip[0] - 10 * unit * Math.cos(angle + side), tip[1] - 10 * unit * Math.sin(angle + side));
      }
    }
    context.stroke();
  }
}

/** Let people place balls on truth and prediction of each pane, and return the view of what they are about to do. */
export function placingView(store, actions) {
  const aims = [];
  for (let pane = 0; pane < PANES; pane += 1) {
    for (const which of ["truth", "prediction"]) {
      new Placing(store, actions, pane, which);
      const canvas = document.getElementById(`${which}-${pane}`);
      aims.push({ pane, which, canvas, layer: canvas.parentElement.querySelector(".aim"), drawn: false });
    }
  }
  return (state, changed) => {
    if (changed.has("session") || changed.has("connection")) {
      const possible = state.connection.phase === "open" && state.session?.source.kind === "balls";
      for (const { canvas, which } of aims) describe(canvas, which, possible);
    }
    if (!changed.has("aim") && !(changed.has("frame") && aims.some(({ drawn }) => drawn))) return;
    for (const shown of aims) {
      const mine = state.aim?.pane === shown.pane && state.aim.which === shown.which;
      if (mine || shown.drawn) drawAim(shown.layer, mine ? state.aim : null, "#ffd84d");
      shown.drawn = mine;
    }
  };
}

function describe(canvas, which, possible) {
  canvas.parentElement.classList.toggle("placeable", possible);
  canvas.setAttribute("role", possible ? "application" : "img");
  const name = which === "truth" ? "Truth" : "Prediction";
  const keys = possible ? ". Arrow keys move a cursor, Shift and arrows set a velocity, Enter places the nearest ball." : "";
  canvas.setAttribute("aria-label", name + keys);
  if (possible) canvas.tabIndex = 0;
  else canvas.removeAttribute("tabindex");
}
