// The one state of the page, and what each message does to it. Nothing here draws or sends.

import { FrameHistory, TrainingCurve } from "./history.js";

/** Make the state of a page that has heard nothing yet. */
export function initialState() {
  return {
    connection: { phase: "connecting", busy: false, retryAt: null },
    hello: null,
    session: null,
    frame: null, // the last one: {header, arrays}
    chosen: { source: { kind: "balls", balls: 3 }, models: [], playing: true, framesPerSecond: null, disturbed: "none" },
    preferred: [], // models that people chose; `chosen.models` are others where these do not read the source
    videos: [], // {id, name, frames, channels, height, width}
    shapes: new Map(), // what is known of a source's frames, by sourceKey
    refused: new Set(), // "source model" that the server would not have
    pending: new Set(), // types of requests without a reply yet
    history: new FrameHistory(),
    dreamFrom: null, // the first step of the last dream
    rate: null, // frames that come a second
    arrived: [],
    training: null, // a TrainingCurve
    range: "frames", // what the error curve shows, or "training"
    aim: null, // a ball about to be placed: {pane, which, x, y, vx, vy, kind}
    upload: { phase: "idle", share: 0, error: null },
    toast: null, // {text, kind}
  };
}

/** A name of a source that tells two apart whose frames may differ. */
export const sourceKey = (source) => (source.kind === "video" ? `video ${source.video}` : source.kind);

/** "", "queued", "running" or "ended". */
export function trainingPhase({ session }) {
  const training = session?.training;
  if (!training) return "";
  if (!training.running) return "ended";
  return training.queued > 0 ? "queued" : "running";
}

export const isDreaming = ({ session }) => session?.mode === "dream";

/** Whether a model reads frames of this shape, as far as is known. */
export function fits(model, shape) {
  if (shape === undefined) return true;
  const channels = model.kind === "baseline" || model.channels === shape.channels;
  return channels && (model.height ?? shape.height) === shape.height && (model.width ?? shape.width) === shape.width;
}

/** Whether a model can be chosen for a source, as far as is known. A video is shown in grey to models that see no colour. */
export function choosable(state, model, source) {
  const key = sourceKey(source);
  const shape = state.shapes.get(key);
  const grey = source.kind === "video" && model.channels === 1 && shape !== undefined;
  return fits(model, grey ? { ...shape, channels: 1 } : shape) && !state.refused.has(`${key} ${model.name}`);
}

/** Take in what the server has said of the session. */
export function takeSession(state, session) {
  const before = state.session;
  const began = session.training !== null && (before?.training ?? null) === null;
  const again = session.training?.running === true && before?.training?.running === false;
  if (began || again) {
    state.training = new TrainingCurve(60 * session.training.minutes);
    state.history.restart();
    state.range = "training";
  }
  if (session.training === null) {
    state.training = null;
    state.range = "frames";
  }
  state.dreamFrom = session.dream_from ?? state.dreamFrom;
  if (session.step === 0) state.history.clear();
  const key = sourceKey(session.source);
  const sent = session.source.kind === "video" ? (state.shapes.get(key)?.channels ?? 1) : 1; // it may be shown in grey
  state.shapes.set(key, {
    channels: Math.max(sent, session.channels),
    height: session.height,
    width: session.width,
  });
  if (!state.pending.has("speed") && state.chosen.framesPerSecond !== null) {
    state.chosen.framesPerSecond = session.frames_per_second;
  }
  state.session = session;
}

/** Take in a frame. */
export function takeFrame(state, message, now) {
  const { header } = message;
  if (header.step <= (state.history.last?.step ?? 0)) state.history.clear();
  state.history.add(header);
  state.frame = message;
  state.arrived = [...state.arrived.slice(-29), now];
  state.rate = frequency(state.arrived);
  if (state.aim?.kind === "placed") state.aim = null;
  const training = state.session?.training;
  if (training?.running && header.progress !== null) {
    training.progress = header.progress;
    if (header.mode === "predict") {
      state.training?.add(60 * training.minutes * header.progress, header.errors[0] ?? null, header.copy_error);
    }
  }
}

function frequency(times) {
  const recent = times.filter((time) => time > times.at(-1) - 2000);
  const span = recent.at(-1) - recent[0];
  return recent.length > 2 && span > 0 ? (1000 * (recent.length - 1)) / span : null;
}

/** What a dream is called: which of the futures that may come, where a model draws them. */
export const dreamName = ({ session }) => (session?.future ? `future ${session.future}` : "dreaming");

/** How many steps the frame that is shown lies in its dream, from 1; null where it was not dreamt. */
export function dreamStep({ frame, dreamFrom }) {
  if (!frame?.header.dreaming) return null;
  return Math.max(1, frame.header.step - (dreamFrom ?? frame.header.step) + 1);
}
