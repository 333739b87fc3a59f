import type { Device, Reserve } from '../device';
import type { Model } from '../models/model';
import type { State } from '../models/state';
import { Decoder, type DecoderKind } from './decoder';

/** A state of one's own, and what moves it on. */
export interface Pair {
  readonly state: State;
  readonly decoder: Decoder;
}
interface Spare extends Pair {
  readonly kind: string;
  readonly tensors: number;
  readonly used: number;
}

/** Of so many kinds, or for so many generations at once. */
const most = 4;

/**
 * States and decoders of generations that have ended. The next one of the same kind needs neither
 * memory nor a recording. Their memory counts as kept for reuse, and goes when memory runs out.
 */
export class Spares implements Reserve {
  readonly #device: Device;
  readonly #spares: Spare[] = []; // the longest unused first
  #disposed = false;

  constructor(device: Device) {
    this.#device = device;
    device.addReserve(this);
  }

  /** A pair for one generation, until `end`. `prompt` queues what the device does while a step is recorded. */
  begin(model: Model, kind: DecoderKind, prompt: (state: State) => void): Pair {
    const name = JSON.stringify(kind);
    const found = this.#spares.findLastIndex((spare) => spare.kind === name);
    if (found >= 0) {
      const [spare] = this.#spares.splice(found, 1);
      try {
        spare!.state.clear();
        prompt(spare!.state);
        return spare!;
      } catch (error) {
        dispose(spare!);
        throw error;
      }
    }
    const before = this.#device.held();
    const state = model.createState(kind.rows);
    try {
      prompt(state);
      const decoder = new Decoder(model, state, kind);
      const after = this.#device.held();
      const tensors = after.tensors - before.tensors;
      return { kind: name, state, decoder, tensors, used: after.used - before.used } as Spare;
    } catch (error) {
      state.dispose();
      throw error;
    }
  }

  /** Takes a pair back. `sound`: nothing has failed on the device. */
  end(pair: Pair, sound: boolean): void {
    pair.decoder.finish();
    if (sound && !this.#disposed) this.#spares.push(pair as Spare);
    else dispose(pair);
    if (this.#spares.length > most) dispose(this.#spares.shift()!);
  }

  get tensors(): number {
    return this.#spares.reduce((sum, { tensors }) => sum + tensors, 0);
  }
  get used(): number {
    return this.#spares.reduce((sum, { used }) => sum + used, 0);
  }

  /** Frees what is kept now. */
  free(): void {
    for (const spare of this.#spares.splice(0)) dispose(spare);
  }

  /** Keeps nothing any more. */
  dispose(): void {
    this.#disposed = true;
    this.free();
  }
}

function dispose({ state, decoder }: Pair): void {
  decoder.dispose();
  state.dispose();
}
