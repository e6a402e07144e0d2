// Buttons and fields: they show the session and ask for what people choose.

import { PANES, setOptions } from "./panes.js";
import { isDreaming, sourceKey, trainingPhase } from "./state.js";

const PLAY = "M4 2.5v11l9-5.5z";
const PAUSE = "M3.5 2.5h3v11h-3zM9.5 2.5h3v11h-3z";
const MINUTES = [0.5, 1, 2, 5, 10, 20, 30];
const byId = (id) => document.getElementById(id);
const grouped = new Intl.NumberFormat("en-GB");
const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
const plain = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(2));

/** Wire the controls and return their view. */
export function controlsView(actions) {
  const on = (id, type, act) => byId(id).addEventListener(type, act);
  on("play", "click", () => actions.togglePlay());
  on("step", "click", () => actions.step());
  on("dream", "click", () => actions.toggleDream());
  on("redraw", "click", () => actions.redraw());
  on("speed", "input", () => actions.setSpeed(byId("speed").valueAsNumber));
  on("source", "change", () => actions.setSource(chosenSource()));
  on("balls", "change", () => actions.setBalls(Number(byId("balls").value)));
  on("disturb", "change", () => actions.disturb(byId("disturb").value));
  on("train", "click", () => actions.train(Number(byId("minutes").value)));
  on("stop", "click", () => actions.stop());
  on("clip", "click", () => actions.clip());

  return (state, changed) => {
    if (changed.has("session") || changed.has("connection")) {
      showAvailable(state);
      if (state.session !== null) showSession(state);
    }
    if (changed.has("session") || changed.has("connection") || changed.has("frame")) {
      showPosition(state);
      showTraining(state);
    }
  };
}

function chosenSource() {
  const { value } = byId("source");
  if (value.startsWith("video ")) return { kind: "video", video: value.slice("video ".length) };
  return value === "balls" ? { kind: "balls", balls: Number(byId("balls").value) || 3 } : { kind: value };
}

function showAvailable({ connection, session, pending, hello }) {
  const ready = connection.phase === "open" && session !== null;
  for (const id of ["play", "step", "dream", "redraw", "speed", "source", "balls", "disturb", "minutes", "add-model", "remove-model"]) byId(id).disabled = !ready;
  const waits = {
    play: ["play", "pause"],
    step: ["step"],
    dream: ["dream", "wake"],
    redraw: ["redraw"],
    train: ["train"],
    stop: ["stop"],
    clip: ["clip"],
    "add-model": ["configure"],
    source: ["configure"],
    balls: ["configure"],
    disturb: ["disturb"],
  };
  for (const [id, types] of Object.entries(waits)) {
    byId(id).setAttribute("aria-busy", String(types.some((type) => pending.has(type))));
  }
  byId("connection").textContent = { connecting: "connecting", open: "live", reconnecting: "offline" }[connection.phase];
  byId("version").textContent = hello === null ? "" : `torchrsm ${hello.version}`;
  byId("last-ball").textContent = hello?.max_balls ?? 6;
}

function showSession(state) {
  const { session, hello, chosen, pending } = state;
  byId("play-icon").setAttribute("d", session.playing ? PAUSE : PLAY);
  byId("play-text").textContent = session.playing ? "Pause" : "Play";
  byId("play").title = `${session.playing ? "Pause" : "Play"} (space)`;
  byId("dream-text").textContent = isDreaming(state) ? "Wake" : "Dream";
  byId("dream").setAttribute("aria-pressed", String(isDreaming(state)));
  byId("dream").title = isDreaming(state)
    ? "From now on the models see the true frames again (d)"
    : "From now on the models see their own predictions alone (d)";
  if (!pending.has("disturb")) byId("disturb").value = session.disturbed;
  const redraw = byId("redraw");
  const several = session.draws && isDreaming(state);
  if (!several && document.activeElement === redraw) byId("dream").focus();
  redraw.hidden = !several;

  const rate = pending.has("speed") ? chosen.framesPerSecond : session.frames_per_second;
  byId("speed").max = hello.max_rate;
  if (byId("speed").valueAsNumber !== Math.round(rate)) byId("speed").value = rate;
  byId("speed-text").textContent = `${Math.round(rate)} frames/s`;

  const sources = [{ value: "balls", text: "Bouncing balls" }];
  if (hello.sources.includes("digits")) sources.push({ value: "digits", text: "Moving digits" });
  for (const { id, name } of state.videos) sources.push({ value: `video ${id}`, text: name });
  const changing = pending.has("configure"); // the fields keep what was chosen meanwhile
  setOptions(byId("source"), sources, changing ? byId("source").value : sourceKey(session.source));
  byId("balls-field").hidden = session.source.kind !== "balls";
  const counts = Array.from({ length: hello.max_balls }, (_, i) => ({ value: String(i + 1), text: String(i + 1) }));
  if (session.source.kind === "balls") setOptions(byId("balls"), counts, changing ? byId("balls").value : String(session.source.balls));
  const add = byId("add-model");
  const full = session.panes.length >= PANES;
  const remove = byId("remove-model");
  if (full && document.activeElement === add) remove.focus();
  if (!full && document.activeElement === remove) setTimeout(() => add.focus());
  add.hidden = full;

  const minutes = MINUTES.filter((n) => n <= hello.max_minutes).map((n) => ({ value: String(n), text: n < 1 ? `${60 * n} s` : `${n} min` }));
  const select = byId("minutes");
  setOptions(select, minutes, select.dataset.options ? select.value : "2");
}

function showPosition({ session, frame, history, rate, connection, pending }) {
  if (session === null) return;
  byId("clip").disabled = connection.phase !== "open" || history.last === null;
  const parts = [`step ${grouped.format(frame?.header.step ?? session.step)}`];
  if (session.playing && rate !== null && connection.phase === "open") parts.push(`${rate.toFixed(rate < 10 ? 1 : 0)} frames/s`);
  if (pending.has("configure")) parts.splice(0, 2, "preparing");
  byId("position").textContent = parts.join(" · ");
}

function showTraining(state) {
  const phase = trainingPhase(state);
  const running = phase === "running" || phase === "queued";
  const ready = state.connection.phase === "open" && state.session !== null;
  const [train, stop] = [byId("train"), byId("stop")];
  const focused = document.activeElement;
  train.hidden = running;
  byId("minutes-field").hidden = running;
  stop.hidden = !running;
  if (running && focused === train) stop.focus();
  if (!running && focused === stop) train.focus();
  train.disabled = !ready;
  stop.disabled = !ready;
  train.textContent = phase === "ended" ? "Train again" : "Train";
  stop.textContent = phase === "queued" ? "Leave the queue" : "Stop";
  byId("train-row").hidden = phase === "";
  const bar = byId("train-progress");
  if (phase === "queued") bar.removeAttribute("value");
  else bar.value = state.session?.training?.progress ?? 0;
  byId("train-note").textContent = trainingText(state, phase);
}

function trainingText({ session, training: curve }, phase) {
  if (phase === "") return "Forgets the first model and learns a new one from what is watched.";
  const { minutes, progress, queued } = session.training;
  if (phase === "queued") return queued === 1 ? "Waits for one other training." : `Waits for ${queued} other trainings.`;
  const fall = curve?.first && curve.last !== null ? `\nError ${plain(curve.first)} → ${plain(curve.last)}.` : "";
  if (phase === "ended") return `Ended after ${clock(60 * minutes * progress)}.${fall}`;
  return `${Math.floor(100 * progress)} %, ${clock(60 * minutes * (1 - progress))} to go.${fall}`;
}
