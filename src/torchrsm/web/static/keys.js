// Keys of the whole page; not while something is typed or a dialog is open.

const FIELDS = "input, select, textarea, [contenteditable]";
const PRESSABLE = "button, a, summary";

/** Listen for the keys. */
export function listenForKeys(actions, { state }, { upload, train, help }) {
  const keys = {
    " ": () => actions.togglePlay(),
    ".": () => actions.step(),
    ArrowRight: () => actions.step(),
    d: () => actions.toggleDream(),
    n: () => actions.redraw(),
    h: () => actions.disturbNext(),
    "+": () => actions.changeSpeed(1),
    "=": () => actions.changeSpeed(1),
    "-": () => actions.changeSpeed(-1),
    t: train,
    s: () => actions.clip(),
    u: upload,
    "?": help,
  };
  const repeatable = new Set([".", "ArrowRight", "+", "=", "-"]);

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.target.closest(FIELDS) !== null || document.querySelector("dialog[open]") !== null) return;
    if (event.key === " " && event.target.closest(PRESSABLE) !== null) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const isCount = /^[1-9]$/.test(key) && Number(key) <= (state.hello?.max_balls ?? 0);
    const act = isCount ? () => actions.setBalls(Number(key)) : keys[key];
    if (act === undefined || (event.repeat && !repeatable.has(key))) return;
    event.preventDefault();
    act();
  });
}
