import {
  capture,
  device,
  DisposedError,
  FormatError,
  type CausalLM,
  type GenerateOptions,
  type State,
} from '../../lib';
import { inUse, open, take } from './checkpoints';
import { chunkTokens } from '../../lib/models/pieces';

let model: CausalLM;
beforeAll(async () => {
  model = await open('mamba-tiny');
});
afterAll(() => model.dispose());

const start = (model: CausalLM, prompt: readonly number[], options: GenerateOptions) =>
  model.generate(prompt, { eosTokenId: [], ...options })[Symbol.asyncIterator]();

/** Every public call that takes a model or a state. What they make is returned, to be disposed. */
const ofModel: Record<string, (model: CausalLM) => unknown> = {
  forward: async (model) => (await model.forward({ inputIds: [1, 2] })).logits,
  generate: async (model) => void (await model.generate([1, 2], { maxNewTokens: 2 }).completions()),
  createState: (model) => model.createState(),
  restoreState: (model) => model.restoreState(new Uint8Array(9)),
  savePretrained: (model) => model.savePretrained('/nonexistent/\0'),
};
const ofState: Record<string, (state: State) => unknown> = {
  forward: async (state) => (await model.forward({ inputIds: [1], state })).logits,
  generate: async (state) => void (await model.generate([1], { state, maxNewTokens: 1 }).completions()),
  fork: (state) => state.fork(),
  snapshot: (state) => state.snapshot(),
};

/** Calls, waits for the result if there is one to wait for, and disposes it; returns the error. */
async function outcome(call: () => unknown): Promise<unknown> {
  try {
    const made = await call();
    if (made && typeof made === 'object' && 'dispose' in made) (made as { dispose(): void }).dispose();
    return undefined;
  } catch (error) {
    return error;
  }
}

describe('a disposed model', () => {
  it.each(Object.entries(ofModel))('refuses %s', async (name, call) => {
    const other = await open('mamba-tiny');
    other.dispose();
    const before = inUse();
    const error = await outcome(() => call(other));
    expect(error).toBeInstanceOf(DisposedError);
    expect((error as Error).message).toBe(`${name}: model is disposed`);
    expect(other.disposed).toBe(true);
    expect(inUse()).toEqual(before);
  });

  it('ends generations and long inputs that are under way', async () => {
    for (const graph of [true, false]) {
      const before = inUse();
      const other = await open('mamba-tiny');
      const tokensOfFive = 4.5 * chunkTokens(other.device.id);
      const tokens = start(other, [1, 2, 3], { capture: graph });
      await tokens.next();
      // A device may be quicker than the event loop: the first of five chunks has just been queued.
      const queued = new Promise<void>((resolve) => {
        const step = other.step.bind(other);
        jest.spyOn(other, 'step').mockImplementationOnce((...args) => {
          resolve();
          return step(...args);
        });
      });
      const long = other.forward({ inputIds: new Int32Array(tokensOfFive), logitsToKeep: 1 });
      const ended = expect(long).rejects.toBeInstanceOf(DisposedError);
      await queued;
      other.dispose();
      await expect(tokens.next().then(() => tokens.next())).rejects.toBeInstanceOf(DisposedError);
      await ended;
      expect(inUse()).toEqual(before);
    }
  });

  it('leaves states and results that it made alone', async () => {
    const other = await open('mamba-tiny');
    const state = other.createState();
    const { logits } = await other.forward({ inputIds: [1, 2], state });
    other.dispose();
    expect(await logits.data()).toHaveLength(512);
    const [fork, restored] = [state.fork(), model.restoreState(await state.snapshot())];
    const next = async (state: State) => take((await model.forward({ inputIds: [3], state })).logits);
    expect(await next(fork)).toEqual(await next(restored));
    for (const made of [logits, state, fork, restored]) made.dispose();
  });
});

describe('a disposed state', () => {
  it.each(Object.entries(ofState))('refuses %s', async (name, call) => {
    const state = model.createState();
    state.dispose();
    state.dispose();
    const before = inUse();
    const error = await outcome(() => call(state));
    expect(error).toBeInstanceOf(DisposedError);
    expect((error as Error).message).toBe(`${name}: state is disposed`);
    expect(state.disposed).toBe(true);
    expect(inUse()).toEqual(before);
  });

  it.each([true, false])('ends the generation that uses it (capture: %p)', async (graph) => {
    const before = inUse();
    const state = model.createState();
    const tokens = start(model, [1, 2, 3], { state, capture: graph });
    await tokens.next();
    state.dispose();
    await expect(tokens.next().then(() => tokens.next())).rejects.toBeInstanceOf(DisposedError);
    expect(inUse()).toEqual(before);
  });
});

describe('while a generation runs', () => {
  it.each(Object.entries(ofModel))('its model can %s', async (name, call) => {
    const running = start(model, [1, 2, 3], { maxNewTokens: 4 });
    await running.next();
    const error = await outcome(() => call(model));
    if (name === 'restoreState') expect(error).toBeInstanceOf(FormatError);
    else if (name === 'savePretrained') expect(error).toHaveProperty('code');
    else expect(error).toBeUndefined();
    const rest: unknown[] = [];
    for await (const token of running) rest.push(token);
    expect(rest).toHaveLength(3);
  });

  it.each(Object.entries(ofState))('its state cannot %s', async (name, call) => {
    const state = model.createState();
    const running = start(model, [1, 2, 3], { state, maxNewTokens: 4 });
    await running.next();
    const error = await outcome(() => call(state));
    expect((error as Error).message).toBe(
      `${name}: state is in use by generate; wait for its end, or continue a fork made before`,
    );
    for await (const _ of running);
    expect(state.lengths).toEqual([7]);
    expect(await outcome(() => call(state))).toBeUndefined();
    state.dispose();
  });

  it('a state in use by forward or snapshot is refused too', async () => {
    const state = model.createState();
    const long = model.forward({ inputIds: new Int32Array(5000), logitsToKeep: 1, state });
    const second = model.forward({ inputIds: [1], state });
    await expect(second).rejects.toThrow(/forward: state is in use by forward/);
    (await long).logits.dispose();
    const bytes = state.snapshot();
    expect(() => state.fork()).toThrow(/fork: state is in use by snapshot/);
    await bytes;
    state.fork().dispose();
    state.dispose();
  });
});

describe('while a graph is captured', () => {
  /** What a call does when it is made inside of `capture`, and how the device is afterwards. */
  async function inside(call: () => unknown): Promise<unknown> {
    let made: Promise<unknown> | undefined;
    const graph = capture(device(), () => {
      made = outcome(call);
      return [];
    });
    const error = await made;
    graph.dispose();
    expect(await outcome(async () => (await model.forward({ inputIds: [1] })).logits)).toBeUndefined();
    return error;
  }

  it.each(['createState', 'restoreState', 'fork', 'snapshot'])(
    '%s says that nothing can be read or written',
    async (name) => {
      const state = model.createState();
      const bytes = await state.snapshot();
      const before = inUse();
      const calls: Record<string, () => unknown> = {
        createState: () => model.createState(),
        restoreState: () => model.restoreState(bytes),
        fork: () => state.fork(),
        snapshot: () => state.snapshot(),
      };
      const error = await inside(calls[name]!);
      expect((error as Error).message).toMatch(
        /nothing can be (read|written|read or written) while a graph is captured/,
      );
      expect(inUse()).toEqual(before);
      state.dispose();
    },
  );

  // Both start with a promise: by the time that they work, the capture is over.
  it.each(['forward', 'generate'])('%s works as ever', async (name) => {
    const before = inUse();
    expect(await inside(() => ofModel[name]!(model))).toBeUndefined();
    expect(inUse()).toEqual(before);
  });
});
