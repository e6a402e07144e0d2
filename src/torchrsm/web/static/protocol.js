// Reads the server's binary messages; see messages.py for what they hold.

const MAX_HEADER_BYTES = 1 << 20;
const BYTES = { uint8: 1, uint16: 2 };

/** Return {header, arrays: Map of name to {shape, data}}; throw an Error where the message is not what it must be. */
export function parseBinary(buffer) {
  if (buffer.byteLength < 4) throw new Error("the message has no header");
  const length = new DataView(buffer).getUint32(0, true);
  if (length > MAX_HEADER_BYTES || length > buffer.byteLength - 4) throw new Error("the header does not fit");
  const header = checkHeader(JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(buffer, 4, length))));
  const arrays = new Map();
  let offset = 4 + length;
  for (const { name, dtype, shape } of header.arrays) {
    const size = shape.reduce((product, n) => product * n, 1);
    const end = offset + size * BYTES[dtype];
    if (end > buffer.byteLength) throw new Error(`array ${name} is cut off`);
    const bytes = buffer.slice(offset, end); // a copy, so that 16-bit numbers are aligned
    arrays.set(name, { shape, data: dtype === "uint16" ? new Uint16Array(bytes) : new Uint8Array(bytes) });
    offset = end;
  }
  if (offset !== buffer.byteLength) throw new Error("the message is longer than its arrays");
  return { header, arrays };
}

function checkHeader(header) {
  if (header === null || typeof header !== "object" || !["frame", "clip"].includes(header.type)) {
    throw new Error("the header is of no known type");
  }
  if (!Number.isSafeInteger(header.step) || !Array.isArray(header.arrays)) throw new Error("the header lacks something");
  for (const entry of header.arrays) {
    const known = typeof entry?.name === "string" && Object.hasOwn(BYTES, entry.dtype) && Array.isArray(entry.shape);
    if (!known || !entry.shape.every((n) => Number.isSafeInteger(n) && n >= 0)) throw new Error("an array is not described");
  }
  return {
    ...header,
    dreaming: header.mode === "dream",
    errors: numbers(header.errors),
    energies: numbers(header.energies),
    copy_error: number(header.copy_error),
    progress: number(header.progress),
  };
}

const numbers = (values) => (Array.isArray(values) ? values.map(number) : []);
const number = (value) => (Number.isFinite(value) ? value : null);

/** Return whether an array is a frame that can be drawn: one or three channels, height, width. */
export function isFrame(array) {
  if (array === undefined || array.shape.length !== 3) return false;
  const [channels, height, width] = array.shape;
  return (channels === 1 || channels === 3) && height > 0 && width > 0 && array.data instanceof Uint8Array;
}

/** Return whether an array is a winner map: height, width, winners. */
export function isWinners(array) {
  return array !== undefined && array.shape.length === 3 && array.shape.every((n) => n > 0) && array.data instanceof Uint16Array;
}
