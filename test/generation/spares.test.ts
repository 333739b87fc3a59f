import { device, DeviceError, DisposedError, type CausalLM, type GenerateOptions } from '../../lib';
import { native } from '../../lib/native';
import { inUse, open, randomIds } from '../models/checkpoints';

let model: CausalLM;
beforeEach(async () => {
  model = await open('mamba-tiny');
});
afterEach(() => model.dispose());

const prompts = [randomIds(5), randomIds(3, 256, 7)];
const run = (options: GenerateOptions = {}, from = model, count = 2) =>
  from
    .generate(
      Array.from({ length: count }, (_, i) => prompts[i % 2]!),
      { maxNewTokens: 6, eosTokenId: [], ...options },
    )
    .completions();
/** What is held beyond what is in use: kept for the next generation. */
const kept = () => {
  const [held, used] = [device().held(), device().memoryUsage()];
  return { tensors: held.tensors - used.tensors, used: held.used - used.used };
};

describe('a second generation of the same kind', () => {
  it('neither allocates a state nor records', async () => {
    const record = jest.spyOn(native(), 'beginCapture');
    await run();
    const recorded = device().id === 'cpu' ? 1 : 2; // on a GPU the prompts, too
    expect(record).toHaveBeenCalledTimes(recorded);
    const after = kept();
    expect(after.tensors).toBeGreaterThan(10);
    await run({ temperature: 2, seed: 3, topK: 7 });
    await run({ maxNewTokens: 2 });
    expect(record).toHaveBeenCalledTimes(recorded);
    expect(kept()).toEqual(after);
    record.mockRestore();
  });

  it.each([true, false])('gives what it gives on a model of its own (capture: %p)', async (capture) => {
    const kinds: GenerateOptions[] = [
      {},
      { temperature: 0.7, topP: 0.9, seed: 5 },
      { seed: [1, 2], topK: [3, 0], minP: 0.01 },
      { repetitionPenalty: 1.7 },
      { seed: 9, repetitionPenalty: [1, 2], maxNewTokens: [2, 9] },
      { minNewTokens: [0, 4], eosTokenId: [prompts[0]![0]!, 3, 200], seed: 4 },
      { minNewTokens: 2, eosTokenId: [1, 2, 4], temperature: 3, seed: 4 },
      { eosTokenId: 2 },
    ];
    const wanted: unknown[] = [];
    for (const options of kinds) {
      const other = await open('mamba-tiny');
      wanted.push(await run({ ...options, capture }, other));
      other.dispose();
    }
    for (let round = 0; round < 2; round++)
      for (const [i, options] of kinds.entries())
        expect(await run({ ...options, capture })).toEqual(wanted[i]);
  });

  it('has a state of its own while the first one goes on', async () => {
    const wanted = [await run({ seed: 1 }), await run({ seed: 2 }), await run({ seed: 3 })];
    const seeds = [1, 2, 3];
    expect(await Promise.all(seeds.map((seed) => run({ seed })))).toEqual(wanted);
    expect(await Promise.all(seeds.map((seed) => run({ seed })))).toEqual(wanted);
  });

  it('may follow one that was left, aborted or ended by a failure', async () => {
    const wanted = await run();
    for await (const _ of model.generate(prompts)) break;
    expect(await run()).toEqual(wanted);
    const controller = new AbortController();
    const leaving = async () => {
      for await (const _ of model.generate(prompts, { signal: controller.signal, eosTokenId: [] }))
        controller.abort(new Error('mine'));
    };
    await expect(leaving()).rejects.toThrow('mine');
    expect(await run()).toEqual(wanted);

    const norm = model.parameters.get('backbone.norm_f.weight')!;
    const good = (await norm.data()) as Float32Array;
    norm.set(new Float32Array(good.length).fill(NaN));
    const failing = run();
    await expect(failing).rejects.toThrow(DeviceError);
    await expect(failing).rejects.toThrow('sample: the logits of row 0 are not finite');
    expect(kept()).toEqual({ tensors: 0, used: 0 });
    norm.set(good);
    expect(await run()).toEqual(wanted);
  });
});

describe('what is kept', () => {
  it('is bounded', async () => {
    const sizes: number[] = [];
    for (let count = 1; count <= 9; count++) {
      await run({ maxNewTokens: 1 }, model, count);
      sizes.push(kept().tensors);
    }
    expect(sizes[3]).toBe(4 * sizes[0]!);
    expect(sizes.at(-1)).toBe(sizes[3]);
  });

  it('counts as kept for reuse, and is given back by trim', async () => {
    device().trim();
    const before = device().memoryUsage();
    await run();
    const after = device().memoryUsage();
    expect([after.tensors, after.used]).toEqual([before.tensors, before.used]);
    expect(after.cached).toBeGreaterThan(before.cached);
    device().trim();
    expect(kept()).toEqual({ tensors: 0, used: 0 });
    expect(device().held().used).toBe(before.used);
  });

  it('goes when memory runs out', async () => {
    const wanted = await run();
    const size = kept().used;
    expect(size).toBeGreaterThan(0);
    device().setMemoryLimit(device().held().used + 1);
    try {
      // There is room for one of the two alone.
      const state = model.createState(2);
      expect(kept().used).toBe(0);
      state.dispose();
    } finally {
      device().setMemoryLimit(0);
    }
    expect(await run()).toEqual(wanted);
  });

  it('is freed where a generation that takes it finds no memory', async () => {
    const long = () => model.generate([randomIds(5000), prompts[1]!], { maxNewTokens: 6, eosTokenId: [] });
    const wanted = await run();
    const before = inUse();
    device().trim();
    await run();
    const { held, alloc } = { held: device().held(), alloc: native().alloc };
    const refuse = jest.spyOn(native(), 'alloc').mockImplementation(() => {
      throw Object.assign(new Error('out of memory: for this test'), { code: 'SELECTIVE_SCAN_DEVICE' });
    });
    try {
      await expect(long().completions()).rejects.toThrow(DeviceError);
    } finally {
      refuse.mockRestore();
    }
    expect(native().alloc).toBe(alloc);
    expect(device().held().used).toBeLessThan(held.used);
    expect([inUse(), kept()]).toEqual([before, { tensors: 0, used: 0 }]);
    expect(await run()).toEqual(wanted);
  });

  it('goes with the model, during a generation too', async () => {
    const before = inUse();
    const other = await open('mamba-tiny');
    await run({}, other);
    const tokens = other.generate(prompts, { eosTokenId: [] })[Symbol.asyncIterator]();
    await tokens.next();
    await run({}, other);
    other.dispose();
    await expect(
      tokens
        .next()
        .then(() => tokens.next())
        .then(() => tokens.next()),
    ).rejects.toBeInstanceOf(DisposedError);
    expect(inUse()).toEqual(before);
    expect(kept()).toEqual({ tensors: 0, used: 0 });
  });
});

it('leaves in a given state the logits of each row’s own end', async () => {
  const state = model.createState(2);
  const rows = await run({ state, maxNewTokens: [2, 5], seed: 3 });
  const logits = (await state.logits.data()) as Float32Array;
  for (const [i, { tokens }] of rows.entries()) {
    const alone = model.createState();
    await model.run([Int32Array.from([...prompts[i]!, ...tokens])], alone);
    const wanted = (await alone.logits.data()) as Float32Array;
    const largest = Math.max(...wanted.map(Math.abs));
    wanted.forEach((x, j) => expect(Math.abs(logits[i * 256 + j]! - x)).toBeLessThan(1e-4 * largest));
    alone.dispose();
  }
  state.dispose();
});
