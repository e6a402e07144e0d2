// Turns arrays of the server into pixels of an ImageData, one pixel for each place.

const NO_WINNER = 65535;

/** Draw a frame: grey for one channel, in colour for three. */
export function drawFrame(pixels, { shape: [channels, height, width], data }) {
  const size = height * width;
  const [green, blue] = channels === 3 ? [size, 2 * size] : [0, 0];
  for (let i = 0, o = 0; i < size; i += 1, o += 4) {
    pixels[o] = data[i];
    pixels[o + 1] = data[green + i];
    pixels[o + 2] = data[blue + i];
    pixels[o + 3] = 255;
  }
}

/** Draw what a model is shown of a frame; hatched where that is nothing. */
export function drawShown(pixels, shown, hidden) {
  drawFrame(pixels, shown);
  const [, height, width] = shown.shape;
  for (let y = 0, i = 0, o = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, i += 1, o += 4) {
      if (hidden.data[i] === 0) continue;
      const level = (x + y) % 4 < 2 ? 62 : 38;
      [pixels[o], pixels[o + 1], pixels[o + 2]] = [level, level + 6, level + 18];
    }
  }
}

/** Draw two frames over each other: red where only the prediction has something, blue where only the truth, magenta both. */
export function drawOverlay(pixels, truth, prediction) {
  const [channels, height, width] = truth.shape;
  const size = height * width;
  for (let i = 0, o = 0; i < size; i += 1, o += 4) {
    const red = channelMean(prediction.data, channels, size, i);
    const blue = channelMean(truth.data, channels, size, i);
    pixels[o] = red;
    pixels[o + 1] = 0.4 * Math.max(blue - red, 0);
    pixels[o + 2] = blue;
    pixels[o + 3] = 255;
  }
}

function channelMean(data, channels, size, i) {
  return channels === 1 ? data[i] : (data[i] + data[size + i] + data[2 * size + i]) / 3;
}

/**
 * Draw the strongest winner at each place: its number is the hue; bright where it is another than in `before`, the same
 * map of the frame before (null: all are bright); black where there is none.
 */
export function drawWinners(pixels, { shape: [height, width, winners], data }, before) {
  const size = height * width;
  const comparable = before !== null && before.data.length === data.length;
  for (let i = 0, o = 0; i < size; i += 1, o += 4) {
    const winner = data[i * winners];
    const stayed = comparable && before.data[i * winners] === winner;
    const share = winner === NO_WINNER ? 0 : stayed ? 0.45 : 1;
    const colour = winnerColour(winner);
    pixels[o] = share * (colour >> 16);
    pixels[o + 1] = share * ((colour >> 8) & 255);
    pixels[o + 2] = share * (colour & 255);
    pixels[o + 3] = 255;
  }
}

const colours = new Map();

/** Return the colour of a winner, 0xrrggbb: hues far apart for numbers that are near. */
function winnerColour(winner) {
  let colour = colours.get(winner);
  if (colour === undefined) {
    const hash = Math.imul(winner + 1, 2654435769) >>> 0;
    colour = fromHsl(hash / 2 ** 32, 0.75, 0.52 + 0.16 * ((winner % 3) / 2));
    colours.set(winner, colour);
  }
  return colour;
}

function fromHsl(hue, saturation, lightness) {
  const range = saturation * Math.min(lightness, 1 - lightness);
  const level = (n) => {
    const k = (n + 12 * hue) % 12;
    return Math.round(255 * (lightness - range * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return (level(0) << 16) | (level(8) << 8) | level(4);
}
