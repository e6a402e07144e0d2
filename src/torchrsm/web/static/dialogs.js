// The help and the question before something is lost.

const byId = (id) => document.getElementById(id);

/** Show the help. */
export function openHelp() {
  byId("help-dialog").showModal();
}

/** Ask; the promise is of whether people want it. */
export function confirmLoss(text) {
  const dialog = byId("confirm-dialog");
  byId("confirm-text").textContent = text;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Wire the buttons of the dialogs. */
export function wireDialogs() {
  byId("help").addEventListener("click", openHelp);
  for (const dialog of document.querySelectorAll("dialog")) {
    for (const button of dialog.querySelectorAll("button")) button.addEventListener("click", () => dialog.close(button.value));
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close("no"); // beside it
    });
  }
}
