import type { Device } from '../device';
import { CausalLM } from '../generation/causal-lm';
import { convert, type FloatFormat } from '../io/convert';
import type { JsonObject } from '../io/json';
import { familyOf } from '../models';
import { seeded, type Init, type Random } from '../nn/init';
import { Weights, type Place, type Source } from '../nn/weights';
import { copySlots } from '../ops/elementwise';
import { scope, Tensor } from '../tensor';

type Parameters = NonNullable<ConstructorParameters<typeof Weights>[2]>;

/** Values that are drawn for one parameter; a larger one repeats them. Odd, so that no two rows are equal. */
const drawnValues = 2 ** 20 - 1;

/**
 * Fresh parameters in a moment, for measuring: the first layer is drawn by its own initialisation,
 * and the others of the same names and shapes are copies of it, made on the device.
 */
class RepeatedWeights extends Weights {
  readonly #all: Parameters;
  readonly #device: Device;

  constructor(source: Source, all: Parameters = new Map()) {
    super(source, '', all);
    this.#all = all;
    this.#device = source.device;
  }

  override async load(): Promise<void> {
    const random = seeded(0);
    const firsts = new Map<string, Tensor>();
    for (const [name, { tensor, shape, init }] of this.#all) {
      const kind = `${name.replace(/(?<=\.)\d+(?=\.)/g, '*')} ${shape.join()}`;
      const first = firsts.get(kind);
      if (first) copyTensor(this.#device, first, tensor);
      else {
        firsts.set(kind, tensor);
        await tensor.write(repeated(tensor, init, random));
      }
    }
  }
}

/** The bytes of a parameter of which at most `drawnValues` are drawn. */
function repeated({ size, dtype }: Tensor, init: Init, random: Random): Uint8Array {
  const values = new Float32Array(Math.min(size, drawnValues));
  init(values, random);
  const block = convert(new Uint8Array(values.buffer), 'f32', dtype as FloatFormat);
  if (values.length === size) return block;
  const bytes = Buffer.allocUnsafe((size / values.length) * block.byteLength);
  return bytes.fill(block);
}

function copyTensor(device: Device, from: Tensor, to: Tensor): void {
  scope(() => {
    const rows = from.shape[0]!;
    const numbers = Int32Array.from({ length: rows }, (_, i) => i);
    const slots = Tensor.from(numbers, [rows], { device });
    const matrix = (tensor: Tensor) => tensor.reshape([rows, tensor.stride]);
    copySlots({ from: matrix(from), fromSlots: slots, to: matrix(to), toSlots: slots });
  });
}

/** A model of random weights, ready at once. `json` is what config.json would hold; `place` as in `Source`. */
export async function modelOfRandomWeights(
  json: JsonObject,
  device: Device,
  dtype: FloatFormat,
  stateDtype?: FloatFormat,
  place?: Place,
): Promise<CausalLM> {
  const { config } = familyOf(json);
  const weights = new RepeatedWeights({ device, dtype, ...(place && { place }) });
  let model: CausalLM | undefined;
  try {
    model = new CausalLM(config, { device, dtype, stateDtype, weights });
    await model.load();
    return model;
  } catch (error) {
    model?.dispose();
    weights.dispose();
    throw error;
  }
}
