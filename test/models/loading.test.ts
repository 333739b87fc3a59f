import { cpSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { AutoModelForCausalLM, device, DeviceError, FormatError, type PretrainedOptions } from '../../lib';
import { writeSafetensors, type SafetensorsDType } from '../../lib/io/safetensors';
import { answers, FIXTURES, inUse, logitsOf, open, relativeError, temporaryFolder } from './checkpoints';

const folder = temporaryFolder();
const load = (options: PretrainedOptions = {}) => AutoModelForCausalLM.fromPretrained(folder.path, options);

interface Stored {
  dtype: SafetensorsDType;
  shape: readonly number[];
  bytes: Uint8Array;
}

/** mamba-tiny in the temporary folder, with tensors and configuration changed. */
async function edited(edit: (tensors: Map<string, Stored>) => void, config: object = {}): Promise<void> {
  const source = join(FIXTURES, 'mamba-tiny');
  cpSync(source, folder.path, { recursive: true });
  const json = JSON.parse(readFileSync(join(source, 'config.json'), 'utf8')) as object;
  writeFileSync(folder.at('config.json'), JSON.stringify({ ...json, ...config }));
  const file = readFileSync(join(source, 'model.safetensors'));
  const { __metadata__: _, ...header } = JSON.parse(
    file.toString('utf8', 8, 8 + Number(file.readBigUInt64LE())),
  ) as Record<string, object>;
  const get = answers('mamba-tiny', 'model.safetensors');
  const tensors = new Map(
    Object.keys(header).map((name): [string, Stored] => {
      const { shape, values } = get(name);
      return [name, { dtype: 'F32', shape, bytes: new Uint8Array(values.buffer) }];
    }),
  );
  edit(tensors);
  const sources = [...tensors].map(([name, { dtype, shape, bytes }]) => ({
    name,
    dtype,
    shape,
    read: async () => bytes,
  }));
  await writeSafetensors(folder.at('model.safetensors'), sources);
}

const D = 'backbone.layers.1.mixer.D';
const zeros = (dtype: SafetensorsDType, shape: readonly number[], itemBytes: number): Stored => ({
  dtype,
  shape,
  bytes: new Uint8Array(shape.reduce((a, b) => a * b, itemBytes)),
});

describe('parameters', () => {
  const refused: [string, (tensors: Map<string, Stored>) => void, object, RegExp][] = [
    ['missing', (t) => t.delete(D), {}, /parameter backbone\.layers\.1\.mixer\.D is missing/],
    [
      'missing for an untied head',
      () => {},
      { tie_word_embeddings: false },
      /parameter lm_head\.weight is missing/,
    ],
    [
      'missing for a bias',
      () => {},
      { use_bias: true },
      /parameter backbone\.layers\.0\.mixer\.in_proj\.bias is missing/,
    ],
    [
      'left over',
      (t) => t.set('backbone.layers.9.norm.weight', zeros('F32', [64], 4)),
      {},
      /no layer uses backbone\.layers\.9\.norm\.weight/,
    ],
    [
      'left over for fewer layers',
      () => {},
      { num_hidden_layers: 3 },
      /no layer uses backbone\.layers\.3\..* and \d+ more/,
    ],
    [
      'of another size',
      (t) => t.set(D, zeros('F32', [127], 4)),
      {},
      /parameter backbone\.layers\.1\.mixer\.D is F32\[127\], expected \[128\]/,
    ],
    [
      'of another rank',
      (t) => t.set(D, zeros('F32', [128, 1], 4)),
      {},
      /mixer\.D is F32\[128,1\], expected \[128\]/,
    ],
    [
      'of doubles',
      (t) => t.set(D, zeros('F64', [128], 8)),
      {},
      /mixer\.D is F64\[128\], expected F32, BF16 or F16/,
    ],
    [
      'of integers',
      (t) => t.set(D, zeros('I32', [128], 4)),
      {},
      /mixer\.D is I32\[128\], expected F32, BF16 or F16/,
    ],
    [
      'of another vocabulary',
      () => {},
      { vocab_size: 257 },
      /embeddings\.weight is F32\[256,64\], expected \[257,64\]/,
    ],
  ];
  it.each(refused)('%s are refused by name', async (_, edit, config, message) => {
    await edited(edit, config);
    const before = inUse();
    const failure = load();
    await expect(failure).rejects.toThrow(message);
    await expect(failure).rejects.toBeInstanceOf(FormatError);
    expect(inUse()).toEqual(before);
  });

  it('may repeat a tied head', async () => {
    await edited((tensors) => tensors.set('lm_head.weight', tensors.get('backbone.embeddings.weight')!));
    const [model, original] = [await load(), await open('mamba-tiny')];
    expect(await logitsOf(model, [1, 2, 3])).toEqual(await logitsOf(original, [1, 2, 3]));
    for (const made of [model, original]) made.dispose();
  });

  it('may be of several dtypes', async () => {
    await edited((tensors) =>
      tensors.set(D, {
        dtype: 'BF16',
        shape: [128],
        bytes: new Uint8Array(Uint16Array.from({ length: 128 }, () => 0x4000).buffer),
      }),
    );
    const model = await load();
    expect(await model.parameters.get(D)!.data()).toEqual(new Float32Array(128).fill(2));
    model.dispose();
  });

  it.each(['f32', 'bf16', 'f16'] as const)('are converted to %s', async (dtype) => {
    await edited(() => {});
    const [model, original] = [await load({ dtype }), await open('mamba-tiny')];
    expect(model.parameters.get('backbone.embeddings.weight')!.dtype).toBe(dtype);
    expect(model.parameters.get(D)!.dtype).toBe('f32');
    const error = relativeError(await logitsOf(model, [1, 2, 3]), await logitsOf(original, [1, 2, 3]));
    expect(error).toBeLessThan({ f32: 1e-6, bf16: 0.05, f16: 0.01 }[dtype]);
    for (const made of [model, original]) made.dispose();
  });

  it('of an unknown dtype are refused', async () => {
    await edited(() => {});
    await expect(load({ dtype: 'int8' as 'f32' })).rejects.toThrow(
      /dtype is int8, expected auto, f32, bf16 or f16/,
    );
  });

  it('that are not finite are warned of, on request', async () => {
    await edited((tensors) => {
      new Float32Array(tensors.get(D)!.bytes.buffer)[77] = NaN;
      new Float32Array(tensors.get('backbone.norm_f.weight')!.bytes.buffer)[0] = -Infinity;
      tensors.set('backbone.layers.0.norm.weight', {
        dtype: 'F16',
        shape: [64],
        bytes: new Uint8Array(Uint16Array.from({ length: 64 }, () => 0x7c00).buffer),
      });
    });
    const warnings: string[] = [];
    const onWarning = (message: string) => warnings.push(message);
    (await load({ onWarning })).dispose();
    expect(warnings).toEqual([]);
    (await load({ onWarning, checkFinite: true })).dispose();
    expect(warnings.sort()).toEqual(
      ['backbone.layers.0.norm.weight', D, 'backbone.norm_f.weight'].map(
        (name) => `parameter ${name} holds values that are not finite`,
      ),
    );
  });
});

describe('loading', () => {
  it('reports its progress to the end', async () => {
    cpSync(join(FIXTURES, 'mamba-sharded-bf16'), folder.path, { recursive: true });
    const seen: { name: string; loaded: number; total: number }[] = [];
    const model = await load({ onProgress: (progress) => seen.push(progress) });
    expect(seen.map(({ name }) => name).sort()).toEqual([...model.parameters.keys()].sort());
    seen.forEach(({ loaded, total }, i) => {
      expect(loaded).toBeGreaterThan(seen[i - 1]?.loaded ?? 0);
      expect(total).toBe(seen[0]!.total);
    });
    expect(seen.at(-1)!.loaded).toBe(seen[0]!.total);
    expect(seen[0]!.total).toBe(model.numParameters * 2);
    model.dispose();
  });

  it('stops when it is aborted', async () => {
    await edited(() => {});
    const before = inUse();
    const reason = new Error('no longer wanted');
    await expect(load({ signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    const controller = new AbortController();
    const onProgress = jest.fn(({ loaded, total }) => loaded > total / 2 && controller.abort(reason));
    await expect(load({ signal: controller.signal, onProgress })).rejects.toBe(reason);
    expect(onProgress.mock.calls.length).toBeGreaterThan(1);
    expect(onProgress.mock.lastCall![0].loaded).toBeLessThan(onProgress.mock.lastCall![0].total);
    expect(inUse()).toEqual(before);
  });

  it('passes on what a callback throws', async () => {
    await edited(() => {});
    const before = inUse();
    const onProgress = () => {
      throw new Error('mine');
    };
    await expect(load({ onProgress })).rejects.toThrow('mine');
    expect(inUse()).toEqual(before);
  });

  it('runs out of memory at any point, and the process goes on', async () => {
    await edited(() => {});
    device().trim();
    const before = inUse();
    const step = 61 * 1024;
    let refused = 0;
    try {
      for (let limit = before.used + step; ; limit += step) {
        device().setMemoryLimit(limit);
        const outcome = await load().catch((error: unknown) => error);
        if (!(outcome instanceof Error)) {
          (outcome as { dispose(): void }).dispose();
          break;
        }
        expect(outcome).toBeInstanceOf(DeviceError);
        expect(outcome.message).toMatch(/out of memory/);
        expect(inUse()).toEqual(before);
        refused++;
      }
    } finally {
      device().setMemoryLimit(0);
    }
    expect(refused).toBeGreaterThan(5);
    expect(inUse()).toEqual(before);
  });

  it('names the file that is missing', async () => {
    await edited(() => {});
    rmSync(folder.at('model.safetensors'));
    await expect(load()).rejects.toThrow(
      /holds no weights, expected one of model\.safetensors, .*pytorch_model\.bin/,
    );
    rmSync(folder.at('config.json'));
    await expect(load()).rejects.toThrow(/config\.json: file does not exist/);
  });
});

it('a weight that f16 has no number for is refused by name; infinities of the file stay', async () => {
  const name = 'backbone.layers.1.mixer.in_proj.weight';
  const values = (bytes: Uint8Array) => new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  await edited((tensors) => values(tensors.get(name)!.bytes).set([65504, -Infinity, -65519], 7));
  (await load({ dtype: 'f16' })).dispose();
  const before = inUse();
  await edited((tensors) => values(tensors.get(name)!.bytes).set([Infinity, -65520], 7));
  const failure = load({ dtype: 'f16' });
  await expect(failure).rejects.toBeInstanceOf(FormatError);
  await expect(failure).rejects.toThrow(
    `parameter ${name} holds -65520, expected at most 65504 in size, as f16 has it; bf16 or f32 can hold it`,
  );
  expect(inUse()).toEqual(before);
  for (const dtype of ['bf16', 'f32'] as const) (await load({ dtype })).dispose();
});
