import { device, DeviceError, type CausalLM, type State } from '../../lib';
import { inUse, logitsOf, open, randomIds } from '../models/checkpoints';

let model: CausalLM;
beforeAll(async () => {
  model = await open('mamba-tiny');
});
afterAll(() => model.dispose());

describe('memory', () => {
  it('is what it was after 1,000 generations', async () => {
    const run = async (i: number) => {
      const prompt = randomIds(1 + (i % 5), 256, i);
      const options = { maxNewTokens: 2, seed: i, capture: i % 2 === 0, padTokenId: null };
      if (i % 4 === 3) for await (const _ of model.generate([prompt, [i % 256]], options)) break;
      else await model.generate(prompt, options).completions();
    };
    const before = inUse();
    for (let i = 0; i < 1000; i++) await run(i);
    expect(inUse()).toEqual(before);
  });

  it('is what it was after inputs of every kind', async () => {
    const before = inUse();
    for (let i = 0; i < 50; i++) {
      const state = model.createState(2);
      const rows = [randomIds(3, 256, i), randomIds(9, 256, i)];
      const { logits, hiddenStates } = await model.forward({
        inputIds: rows,
        labels: rows,
        outputHiddenStates: true,
        state,
      });
      const fork = state.fork([1]);
      const restored = model.restoreState(await fork.snapshot());
      for (const made of [state, logits, ...hiddenStates!, fork, restored]) made.dispose();
    }
    expect(inUse()).toEqual(before);
  });
});

describe('out of memory', () => {
  const prompts = [randomIds(700), randomIds(9)];
  const calls: [string, () => Promise<unknown>][] = [
    ['generate', () => model.generate(prompts, { maxNewTokens: 2, eosTokenId: [] }).completions()],
    [
      'generate without graphs',
      () => model.generate(prompts, { maxNewTokens: 2, eosTokenId: [], capture: false }).completions(),
    ],
    [
      'forward',
      async () => {
        const { logits, hiddenStates } = await model.forward({
          inputIds: prompts,
          labels: prompts,
          outputHiddenStates: true,
        });
        for (const tensor of [logits, ...hiddenStates!]) tensor.dispose();
      },
    ],
    [
      'a state’s life',
      async () => {
        const state = model.createState(60);
        try {
          const fork = state.fork();
          try {
            model.restoreState(await fork.snapshot()).dispose();
          } finally {
            fork.dispose();
          }
        } finally {
          state.dispose();
        }
      },
    ],
  ];

  /** Calls under a limit that rises until the call succeeds, so that it fails at one allocation after another. */
  async function refusals(
    call: () => Promise<unknown>,
    first: number,
    next: (room: number) => number,
  ): Promise<number> {
    device().trim();
    const before = inUse();
    let refused = 0;
    try {
      for (let room = first; ; room = next(room)) {
        device().setMemoryLimit(before.used + room);
        const error = await call().then(
          () => undefined,
          (error: unknown) => error,
        );
        expect(inUse()).toEqual(before);
        if (error === undefined) return refused;
        expect(error).toBeInstanceOf(DeviceError);
        expect((error as Error).message).toMatch(/out of memory: .* MiB were asked for, .* MiB are in use; /);
        refused++;
      }
    } finally {
      device().setMemoryLimit(0);
    }
  }

  it.each(calls)('%s fails with an error at any point, and the process goes on', async (_, call) => {
    const wanted = await logitsOf(model, [1, 2, 3]);
    expect(await refusals(call, 1, (room) => Math.ceil(room * 1.13) + 512)).toBeGreaterThan(10);
    expect(await logitsOf(model, [1, 2, 3])).toEqual(wanted);
  });

  it('a generation fails at its smallest allocations too, and leaves its state in order', async () => {
    const state = model.createState(2);
    (await model.forward({ inputIds: prompts, state, logitsToKeep: 1 })).logits.dispose();
    const bytes = await state.snapshot();
    const run = async (from: State) =>
      model.generate([[], []], { maxNewTokens: 2, eosTokenId: [], state: from }).completions();
    const fork = state.fork();
    const wanted = await run(fork);
    fork.dispose();
    for (const from of [state, model.restoreState(bytes)]) {
      let rows: unknown;
      const call = async () => (rows = await run(from));
      expect(await refusals(call, 1, (room) => room + 64)).toBeGreaterThan(20);
      expect(rows).toEqual(wanted);
      from.dispose();
    }
  });

  it('a fork and a restored state fail whole', async () => {
    const state = model.createState(60);
    const bytes = await state.snapshot();
    const size = inUse().used;
    const fork = state.fork();
    const room = inUse().used - size;
    fork.dispose();
    const step = (room: number) => room + 64;
    expect(await refusals(async () => state.fork().dispose(), room - 256, step)).toBeGreaterThan(2);
    expect(await refusals(async () => model.restoreState(bytes).dispose(), room - 256, step)).toBeGreaterThan(
      2,
    );
    state.dispose();
  });

  it('setMemoryLimit refuses what is no size', () => {
    for (const bytes of [-1, 0.5, NaN])
      expect(() => device().setMemoryLimit(bytes)).toThrow(
        /setMemoryLimit: bytes is .*, expected a whole number/,
      );
  });
});
