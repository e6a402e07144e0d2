// Sends a video to the server, from the button or dropped on the page.

import { announce } from "./notices.js";

const MEBIBYTE = 2 ** 20;

export class Uploader {
  #store;
  #watch;
  #request = null;

  /** watch(video) is called with each video that has been sent. */
  constructor(store, watch) {
    this.#store = store;
    this.#watch = watch;
  }

  #set(upload) {
    this.#store.change(["upload"], (state) => (state.upload = { share: 0, error: null, ...upload }));
  }

  /** Send a file, if it is small enough and no other is on its way. */
  send(file) {
    const { hello, connection } = this.#store.state;
    if (this.#request !== null || connection.phase !== "open" || hello.models.length === 0) return;
    if (file.size === 0) return this.#set({ phase: "idle", error: `${file.name} is empty.` });
    if (file.size > hello.max_upload_bytes) {
      const [size, most] = [file.size / MEBIBYTE, hello.max_upload_bytes / MEBIBYTE].map((n) => n.toFixed(n < 10 ? 1 : 0));
      return this.#set({ phase: "idle", error: `${file.name} has ${size} MiB; ${most} MiB are allowed.` });
    }
    const request = new XMLHttpRequest();
    this.#request = request;
    this.#set({ phase: "sending" });
    request.upload.addEventListener("progress", ({ loaded, total }) => this.#set({ phase: "sending", share: loaded / total }));
    request.upload.addEventListener("load", () => this.#set({ phase: "reading", share: 1 }));
    request.addEventListener("load", () => this.#ended(request, file));
    request.addEventListener("error", () => this.#end("The upload was cut off."));
    request.addEventListener("timeout", () => this.#end("The server has not answered."));
    request.timeout = 120_000;
    request.open("POST", new URL("videos", document.baseURI));
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.setRequestHeader("X-File-Name", encodeURIComponent(file.name));
    request.send(file);
    return undefined;
  }

  cancel() {
    if (this.#request === null) return;
    this.#request.abort();
    this.#end(null);
    announce("The upload is cancelled.");
  }

  #end(error) {
    this.#request = null;
    this.#set({ phase: "idle", error });
  }

  #ended(request, file) {
    let answer = null;
    try {
      answer = JSON.parse(request.responseText);
    } catch {
      // what follows says that the answer is unusable
    }
    if (request.status !== 201 || typeof answer?.id !== "string") {
      this.#end(typeof answer?.error === "string" ? answer.error : `The server has refused ${file.name} (${request.status}).`);
      return;
    }
    this.#end(null);
    this.#watch(answer);
  }
}

/** Wire button, field and drop, and return the view of the upload. */
export function uploadView(store, uploader) {
  const byId = (id) => document.getElementById(id);
  const [button, field, drop] = [byId("upload"), byId("file"), byId("drop")];
  button.addEventListener("click", () => field.click());
  field.addEventListener("change", () => {
    if (field.files.length > 0) uploader.send(field.files[0]);
    field.value = "";
  });
  byId("upload-cancel").addEventListener("click", () => uploader.cancel());
  takeDrops(drop, (file) => uploader.send(file));

  return ({ upload, connection, hello }, changed) => {
    if (!changed.has("upload") && !changed.has("connection")) return;
    const busy = upload.phase !== "idle";
    const hadFocus = document.activeElement;
    button.disabled = busy || connection.phase !== "open" || hello.models.length === 0;
    byId("upload-row").hidden = !busy;
    if (busy && hadFocus === button) byId("upload-cancel").focus();
    if (!busy && hadFocus === byId("upload-cancel")) button.focus();
    const bar = byId("upload-progress");
    if (upload.phase === "reading") bar.removeAttribute("value");
    else bar.value = upload.share;
    const most = hello === null ? "" : `, up to ${Math.round(hello.max_upload_bytes / MEBIBYTE)} MiB`;
    const notes = {
      idle: `or drop one anywhere on the page${most}`,
      sending: `Sending, ${Math.round(100 * upload.share)} %`,
      reading: "The server reads it.",
    };
    byId("upload-note").textContent = notes[upload.phase];
    byId("upload-error").hidden = upload.error === null;
    byId("upload-error").textContent = upload.error ?? "";
  };
}

function takeDrops(overlay, take) {
  let depth = 0;
  const hasFile = (event) => event.dataTransfer?.types.includes("Files");
  const show = (shown) => (overlay.hidden = !shown);
  document.addEventListener("dragenter", (event) => {
    if (!hasFile(event)) return;
    depth += 1;
    show(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (!hasFile(event)) return;
    depth = Math.max(0, depth - 1);
    show(depth > 0);
  });
  document.addEventListener("dragover", (event) => {
    if (hasFile(event)) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    depth = 0;
    show(false);
    if (event.dataTransfer.files.length > 0) take(event.dataTransfer.files[0]);
  });
}
