// What people can do, as requests to the server. The server is the truth: the state changes with its messages alone.

import { RequestError } from "./socket.js";
import { choosable, sourceKey, trainingPhase } from "./state.js";
import { announce, toast } from "./notices.js";
import { saveFile } from "./save.js";

const SPEEDS = [1, 2, 5, 10, 15, 20, 30, 45, 60];
const MAX_TRIES = 8;
const DISTURBANCES = ["none", "noise", "flicker", "bar", "blank"];

export class Actions {
  #store;
  #connection;
  #confirm;
  #speedTimer = 0;
  #film = null; // of the clip that was asked for
  #configuring = 0;

  /** confirm(text): a promise of whether people want it. */
  constructor(store, connection, confirm) {
    this.#store = store;
    this.#connection = connection;
    this.#confirm = confirm;
  }

  get #state() {
    return this.#store.state;
  }

  get #ready() {
    return this.#state.connection.phase === "open" && this.#state.session !== null;
  }

  togglePlay() {
    if (!this.#ready) return;
    const play = !this.#state.session.playing;
    this.#state.chosen.playing = play;
    this.#ask(play ? "play" : "pause");
  }

  step() {
    if (!this.#ready) return;
    this.#state.chosen.playing = false; // the server pauses then
    this.#ask("step");
  }

  toggleDream() {
    if (this.#ready) this.#ask(this.#state.session.mode === "dream" ? "wake" : "dream");
  }

  /** Dream another of the futures that may come, from the same past. */
  redraw() {
    const { session } = this.#state;
    if (this.#ready && session.draws && session.mode === "dream") this.#ask("redraw");
  }

  /** Disturb what the models see; see `Disturb` in messages.py. */
  disturb(by) {
    if (!this.#ready) return;
    this.#state.chosen.disturbed = by;
    this.#ask("disturb", { by });
  }

  /** Disturb it in the next way, after the last not at all. */
  disturbNext() {
    if (!this.#ready) return;
    const next = DISTURBANCES[(DISTURBANCES.indexOf(this.#state.session.disturbed) + 1) % DISTURBANCES.length];
    this.disturb(next);
    announce(`The models are shown ${document.querySelector(`#disturb option[value=${next}]`).textContent}.`);
  }

  /** Set the speed; what comes within a moment is sent as one. */
  setSpeed(framesPerSecond) {
    if (!this.#ready) return;
    this.#store.change(["session"], (state) => {
      state.chosen.framesPerSecond = framesPerSecond;
      state.pending.add("speed");
    });
    clearTimeout(this.#speedTimer);
    this.#speedTimer = setTimeout(() => this.#ask("speed", { frames_per_second: framesPerSecond }, true), 120);
  }

  /** Go to the next higher (1) or lower (-1) usual speed. */
  changeSpeed(direction) {
    if (!this.#ready) return;
    const now = this.#state.chosen.framesPerSecond ?? this.#state.session.frames_per_second;
    const most = this.#state.hello.max_rate;
    const usual = SPEEDS.filter((speed) => speed <= most);
    const next = direction > 0 ? usual.find((speed) => speed > now) : usual.findLast((speed) => speed < now);
    if (next === undefined) return;
    this.setSpeed(next);
    announce(`${next} frames a second`);
  }

  /** Watch another source, with the models that can. */
  async setSource(source) {
    await this.#choose({ ...this.#state.chosen, source, models: this.#state.preferred });
  }

  async setBalls(balls) {
    const { hello, chosen } = this.#state;
    if (!this.#ready || chosen.source.kind !== "balls" || balls < 1 || balls > hello.max_balls) return;
    await this.#choose({ ...chosen, source: { kind: "balls", balls } });
  }

  async setModel(pane, name) {
    const models = [...this.#state.chosen.models];
    models[pane] = name;
    await this.#chooseModels(models);
  }

  async addModel() {
    const { hello, chosen } = this.#state;
    if (!this.#ready || chosen.models.length !== 1) return;
    const can = hello.models.filter((model) => choosable(this.#state, model, chosen.source));
    const other = can.find((model) => model.name !== chosen.models[0]) ?? can[0];
    if (other === undefined) toast(this.#store, "No other model reads these frames.");
    else await this.#chooseModels([chosen.models[0], other.name]);
  }

  async removeModel() {
    const { chosen } = this.#state;
    if (chosen.models.length > 1) await this.#chooseModels(chosen.models.slice(0, 1));
  }

  async #chooseModels(models) {
    if (await this.#choose({ ...this.#state.chosen, models })) this.#state.preferred = this.#state.chosen.models;
  }

  train(minutes) {
    const phase = trainingPhase(this.#state);
    if (!this.#ready || (phase !== "" && phase !== "ended")) return;
    this.#state.chosen.playing = true; // as the server does
    this.#ask("train", { minutes });
  }

  stop() {
    if (this.#ready && ["queued", "running"].includes(trainingPhase(this.#state))) this.#ask("stop");
  }

  /** Put the nearest ball somewhere. */
  place({ x, y, vx = 0, vy = 0 }) {
    if (!this.#ready) return;
    this.#connection.request("place", { x, y, vx, vy }).catch((error) => this.#report(error));
  }

  /** Ask for a film of the last frames and save it. */
  async clip() {
    if (!this.#ready || this.#state.pending.has("clip")) return;
    const film = new Promise((resolve) => (this.#film = resolve));
    if (!(await this.#ask("clip"))) return;
    const message = await Promise.race([film, new Promise((resolve) => setTimeout(resolve, 5000, null))]);
    const data = message?.arrays.get("film")?.data;
    if (!(data?.length > 0)) {
      toast(this.#store, "The server has sent no film.", "error");
      return;
    }
    saveFile(new Blob([data], { type: "video/mp4" }), `torchrsm-${message.header.step}.mp4`);
    announce("The clip is saved.");
  }

  /** Take in the film that the server has made. */
  takeFilm(message) {
    this.#film?.(message);
    this.#film = null;
  }

  /** Begin, or go on after the connection was lost, with what was chosen. */
  async begin() {
    const { hello, chosen } = this.#state;
    if (hello.models.length === 0) return;
    const names = new Set(hello.models.map((model) => model.name));
    const models = chosen.models.filter((name) => names.has(name));
    const first = hello.models.find((model) => choosable(this.#state, model, chosen.source)) ?? hello.models[0];
    const { playing, framesPerSecond, disturbed } = chosen;
    if (!(await this.#configure({ ...chosen, models: models.length > 0 ? models : [first.name] }, false))) return;
    if (this.#state.preferred.length === 0) this.#state.preferred = this.#state.chosen.models;
    if (framesPerSecond !== null) await this.#ask("speed", { frames_per_second: framesPerSecond });
    if (disturbed !== "none") await this.#ask("disturb", { by: disturbed });
    await this.#ask(playing ? "play" : "step");
  }

  /** Configure as people want, who may lose what was learned by it; return whether it was done. */
  async #choose(wanted) {
    if (!this.#ready) return false;
    const learned = this.#state.session.training;
    const question = learned?.running
      ? "This ends the training and forgets what was learned."
      : "This forgets the model that was learned here.";
    if (learned && !(await this.#confirm(question))) {
      this.#store.change(["session"], () => {}); // the selects show again what is
      return false;
    }
    return this.#configure(wanted, true);
  }

  /** Configure; where the server refuses, try what is nearest to it. Return whether something is watched. */
  async #configure(wanted, show) {
    const turn = ++this.#configuring;
    const tries = this.#tries(wanted);
    let refusal = null;
    for (const attempt of tries.slice(0, MAX_TRIES)) {
      const { source, models } = attempt;
      try {
        await this.#pend("configure", { source, models });
      } catch (error) {
        refusal ??= error;
        if (error.reason !== "refused" || turn !== this.#configuring) break;
        if (models.length === 1) this.#state.refused.add(`${sourceKey(source)} ${models[0]}`);
        continue;
      }
      this.#store.change(["session"], (state) => {
        state.chosen = { ...state.chosen, source, models };
        if (source !== wanted.source) state.videos = state.videos.filter(({ id }) => id !== wanted.source.video);
      });
      if (turn === this.#configuring) this.#explain(wanted, attempt, refusal);
      if (show && !this.#state.session?.playing && turn === this.#configuring) await this.#ask("step");
      return true;
    }
    this.#report(refusal);
    this.#store.change(["session"], () => {});
    return false;
  }

  /** What to try, one after another: as wanted, with other models, and of a video that has gone, balls instead. */
  #tries(wanted) {
    const { hello } = this.#state;
    const known = new Map(hello.models.map((model) => [model.name, model]));
    const fitting = wanted.models.filter((name) => known.has(name) && choosable(this.#state, known.get(name), wanted.source));
    const others = (source) => hello.models.filter((model) => choosable(this.#state, model, source)).map(({ name }) => [name]);
    const alone = fitting.length === 1 ? fitting[0] : null;
    const lists = fitting.length > 0 ? [fitting] : [];
    const gone = wanted.source.kind === "video" && !this.#state.videos.some(({ id }) => id === wanted.source.video);
    const rest = others(wanted.source).filter(([name]) => name !== alone);
    const tries = [...lists, ...rest].map((models) => ({ source: wanted.source, models }));
    if (wanted.source.kind !== "video") return tries.length > 0 ? tries : [wanted];
    const balls = { kind: "balls", balls: 3 };
    const instead = [wanted.models, ...others(balls)].map((models) => ({ source: balls, models }));
    return gone ? instead : [...tries.slice(0, 3), ...instead];
  }

  #explain(wanted, { source, models }, refusal) {
    const why = refusal === null ? "" : ` (${refusal.message})`;
    if (source !== wanted.source) toast(this.#store, `The video cannot be watched${why}. Here are bouncing balls instead.`, "error");
    else if (models.join() !== wanted.models.join()) {
      const titles = models.map((name) => this.#state.hello.models.find((model) => model.name === name).title);
      toast(this.#store, `The model that was chosen does not read these frames; shown is: ${titles.join(", ")}. “Train” learns one that does.`);
    }
  }

  /** Ask for something once at a time, and report a refusal; return whether it was done. */
  async #ask(type, fields = {}, again = false) {
    if (this.#state.pending.has(type) && !again) return false;
    try {
      await this.#pend(type, fields);
      return true;
    } catch (error) {
      this.#report(error);
      return false;
    }
  }

  async #pend(type, fields) {
    this.#store.change(["session"], (state) => state.pending.add(type));
    try {
      await this.#connection.request(type, fields);
    } finally {
      this.#store.change(["session"], (state) => state.pending.delete(type));
    }
  }

  #report(error) {
    if (!(error instanceof RequestError)) throw error;
    if (error.reason !== "lost") toast(this.#store, sentence(error.message), "error");
  }
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);
