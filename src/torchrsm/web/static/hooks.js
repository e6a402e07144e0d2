// Says on the document what the page shows, for tests and for the style sheet.

import { trainingPhase } from "./state.js";

/** Return the view that writes the data attributes of the body. */
export function hooksView() {
  const data = document.body.dataset;
  return (state) => {
    const { connection, session, frame, history } = state;
    data.connection = connection.phase;
    data.step = String(frame?.header.step ?? 0);
    data.mode = session?.mode ?? "";
    data.playing = String(session?.playing ?? false);
    data.training = trainingPhase(state);
    const error = history.smoothed[0]?.value;
    data.error = error === null || error === undefined ? "" : error.toFixed(4);
  };
}
