import type { Device, Reserve } from '../device';
import type { Model } from '../models/model';
import type { State } from '../models/state';
import { Decoder, type DecoderKind } from './decoder';
import { PromptGraphs } from './prompt-graphs';

/** A state, and what moves it on. */
export interface Pair {
  readonly state: State;
  readonly decoder: Decoder;
}
interface Spare extends Pair {
  readonly kind: string;
  readonly prompts: PromptGraphs;
  /** What it holds. */
  tensors: number;
  used: number;
}

type Prompt = (state: State, prompts: PromptGraphs) => void;

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
  begin(model: Model, kind: DecoderKind, prompt: Prompt): Pair {
    const before = this.#device.memoryUsage(); // without what is kept
    const spare = this.#taken(model, kind, prompt) ?? made(model, kind, prompt);
    const after = this.#device.memoryUsage();
    spare.tensors = after.tensors - before.tensors;
    spare.used = after.used - before.used;
    return spare;
  }

  #taken(model: Model, kind: DecoderKind, prompt: Prompt): Spare | undefined {
    const name = JSON.stringify(kind);
    const found = this.#spares.findLastIndex((spare) => spare.kind === name);
    if (found < 0) return undefined;
    const [spare] = this.#spares.splice(found, 1);
    try {
      spare!.state.clear();
      prompt(spare!.state, spare!.prompts);
      return spare;
    } catch (error) {
      dispose(spare!);
      throw error;
    }
  }

  /** Takes a pair back. `sound`: nothing has failed on the device. */
  end(pair: Pair, sound: boolean): void {
    pair.decoder.finish();
    if (sound && !this.#disposed) this.#spares.push(pair as Spare);
    else dispose(pair as Spare);
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

function made(model: Model, kind: DecoderKind, prompt: Prompt): Spare {
  const state = model.createState(kind.rows);
  const prompts = new PromptGraphs(model, state, kind.capture);
  try {
    prompt(state, prompts);
    const decoder = new Decoder(model, state, kind);
    return { kind: JSON.stringify(kind), state, decoder, prompts, tensors: 0, used: 0 };
  } catch (error) {
    prompts.free();
    state.dispose();
    throw error;
  }
}

function dispose({ state, decoder, prompts }: Spare): void {
  prompts.free();
  decoder.dispose();
  state.dispose();
}
