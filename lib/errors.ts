/** What failed below the API on a device: out of memory, a CUDA error, a lost device. */
export class DeviceError extends Error {
  override readonly name = 'DeviceError';
}

/** A tensor, model or state was used after `dispose`. */
export class DisposedError extends Error {
  override readonly name = 'DisposedError';
}

/** The native addon, or a device module, could not be loaded; the message lists what was tried. */
export class LoadError extends Error {
  override readonly name = 'LoadError';
}

/** A file is not what it should be: truncated, overlapping, of a wrong type or shape. */
export class FormatError extends Error {
  override readonly name = 'FormatError';
}

/** A training cannot go on: its loss is not finite, or its disk is full. */
export class TrainingError extends Error {
  override readonly name = 'TrainingError';
}
