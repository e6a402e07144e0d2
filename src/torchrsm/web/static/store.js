// Holds the state and draws what has changed of it, once in an animation frame.

export class Store {
  state;
  #views = [];
  #changed = new Set();
  #asked = false;

  constructor(state) {
    this.state = state;
  }

  /** A view is called as view(state, changed); changed has the names of the parts given to `change`. */
  addView(view) {
    this.#views.push(view);
  }

  /** Change the state and have the parts named drawn. */
  change(parts, edit) {
    edit(this.state);
    for (const part of parts) this.#changed.add(part);
    if (this.#asked) return;
    this.#asked = true;
    requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    const changed = this.#changed;
    this.#changed = new Set();
    this.#asked = false;
    for (const view of this.#views) view(this.state, changed);
  }
}
