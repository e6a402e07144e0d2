// Puts the page together: messages of the server change the state, and the views draw what has changed.

import { Actions } from "./actions.js";
import { controlsView } from "./controls.js";
import { curvesView } from "./curves.js";
import { confirmLoss, openHelp, wireDialogs } from "./dialogs.js";
import { hooksView } from "./hooks.js";
import { listenForKeys } from "./keys.js";
import { announcer, noticesView, toast } from "./notices.js";
import { panesView } from "./panes.js";
import { placingView } from "./place.js";
import { parseBinary } from "./protocol.js";
import { Connection } from "./socket.js";
import { initialState, takeFrame, takeSession } from "./state.js";
import { Store } from "./store.js";
import { Uploader, uploadView } from "./upload.js";

const store = new Store(initialState());
const connection = new Connection(socketUrl(), { status: takeStatus, message: takeMessage, binary: takeBinary });
const actions = new Actions(store, connection, confirmLoss);
const uploader = new Uploader(store, (video) => {
  store.change(["session"], (state) => {
    state.videos.push(video);
    state.shapes.set(`video ${video.id}`, video);
  });
  actions.setSource({ kind: "video", video: video.id });
});

function socketUrl() {
  const url = new URL("session", document.baseURI);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url;
}

function takeStatus(status, hello) {
  store.change(["connection", "session", "upload"], (state) => {
    state.connection = status;
    state.aim = null;
    if (status.phase === "open") greet(state, hello);
    if (status.phase !== "reconnecting" || !state.session?.training) return;
    state.session.training = null;
    state.range = "frames";
    toast(store, "What was learned here is lost with the connection.");
  });
  if (status.phase === "open") actions.begin();
}

function greet(state, hello) {
  state.hello = hello;
  state.refused.clear();
  state.history.clear();
}

function takeMessage(message) {
  if (message.type === "session") store.change(["session"], (state) => takeSession(state, message));
  // A reply to no request: something has failed by itself.
  else if (message.type === "reply" && message.error) toast(store, message.error, "error");
}

function takeBinary(buffer) {
  let message;
  try {
    message = parseBinary(buffer);
  } catch (error) {
    toast(store, `A message of the server cannot be read: ${error.message}.`, "error");
    return;
  }
  if (message.header.type === "clip") actions.takeFilm(message);
  else store.change(["frame"], (state) => takeFrame(state, message, performance.now()));
}

store.state.chosen.playing = !window.matchMedia("(prefers-reduced-motion: reduce)").matches;
wireDialogs();
store.addView(panesView(actions));
store.addView(controlsView(actions));
store.addView(curvesView(store));
store.addView(placingView(store, actions));
store.addView(uploadView(store, uploader));
store.addView(noticesView(store, () => connection.retryNow()));
store.addView(announcer());
store.addView(hooksView());
listenForKeys(actions, store, {
  upload: () => document.getElementById("upload").click(),
  train: () => document.getElementById(document.getElementById("train").hidden ? "stop" : "train").click(),
  help: openHelp,
});
connection.start();
