// Tells people things: a toast, the banner of a lost connection, and words for screen readers.

import { trainingPhase } from "./state.js";

const SECONDS = { notice: 6, error: 10 };

/** Show a short text for a while; kind is "notice" or "error". */
export function toast(store, text, kind = "notice") {
  store.change(["toast"], (state) => (state.toast = { text, kind }));
}

/** Say something to screen readers alone. */
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}

/** Return the view that says to screen readers what has become of the session. */
export function announcer() {
  let before = {};
  return ({ connection, session, ...state }, changed) => {
    if (!changed.has("session") && !changed.has("connection")) return;
    const now = {
      connection: { open: "Connected.", reconnecting: "The connection is lost." }[connection.phase],
      playing: session && (session.playing ? "Playing." : "Paused."),
      mode: session && (session.mode === "dream" ? "Dreaming." : "Predicting."),
      training: { queued: "The training waits.", running: "Training.", ended: "The training has ended." }[
        trainingPhase({ session, ...state })
      ],
    };
    const news = Object.keys(now).filter((key) => now[key] && now[key] !== before[key]);
    if (news.length > 0) announce(news.map((key) => now[key]).join(" "));
    before = now;
  };
}

/** Return the view of toast and banner. */
export function noticesView(store, retryNow) {
  const byId = (id) => document.getElementById(id);
  const box = byId("toast");
  let timer = 0;
  let shown = null;
  let ticking = 0;

  const hide = () => store.change(["toast"], (state) => (state.toast = null));
  const hideLater = () => {
    clearTimeout(timer);
    if (shown !== null) timer = setTimeout(hide, SECONDS[shown.kind] * 1000);
  };
  byId("toast-close").addEventListener("click", hide);
  for (const begin of ["pointerenter", "focusin"]) box.addEventListener(begin, () => clearTimeout(timer));
  for (const end of ["pointerleave", "focusout"]) box.addEventListener(end, hideLater);
  byId("retry").addEventListener("click", retryNow);

  function showToast({ toast: next }) {
    if (next === shown) return;
    shown = next;
    box.hidden = next === null;
    if (next === null) return;
    box.dataset.kind = next.kind;
    byId("toast-text").textContent = next.text;
    hideLater();
  }

  function showBanner({ connection }) {
    const lost = connection.phase === "reconnecting";
    byId("banner").hidden = !lost;
    clearTimeout(ticking);
    if (!lost) return;
    const seconds = Math.max(0, (connection.retryAt - performance.now()) / 1000);
    const what = connection.busy ? "All places at the server are taken." : "The connection to the server is lost.";
    const when = seconds > 0.05 ? `Next try in ${Math.ceil(seconds)} s.` : "Trying again.";
    byId("banner-text").textContent = `${what} ${when}`;
    if (seconds > 0.05) ticking = setTimeout(() => showBanner({ connection }), Math.min(250, seconds * 1000));
  }

  return (state, changed) => {
    if (changed.has("toast")) showToast(state);
    if (changed.has("connection")) showBanner(state);
  };
}
