import { monitorEventLoopDelay, performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import { device, Graph, type CausalLM, type GenerateOptions } from '../../lib';
import { inUse, open, randomIds, take } from '../models/checkpoints';
import { expectSame } from '../same';

let model: CausalLM;
beforeAll(async () => {
  model = await open('mamba-tiny');
});
afterAll(() => model.dispose());

const ids = randomIds(20000).map((id) => id || 1); // 0 is the pad token, which generate mutes
const start = (options: GenerateOptions, prompt = ids.subarray(0, 5)) =>
  model.generate(prompt, { eosTokenId: [], ...options })[Symbol.asyncIterator]();

describe.each([true, false])('a signal (capture: %p)', (capture) => {
  const reason = new Error('no longer wanted');
  let before: ReturnType<typeof inUse>;
  let wanted: unknown;
  const short = () => model.generate([1, 2], { maxNewTokens: 3, capture }).completions();
  beforeEach(async () => {
    wanted = await short();
    before = inUse();
  });
  afterEach(async () => {
    expect(inUse()).toEqual(before);
    expect(await short()).toEqual(wanted);
  });

  it('that is set already stops before any work', async () => {
    const replay = jest.spyOn(Graph.prototype, 'replay');
    await expect(start({ signal: AbortSignal.abort(reason), capture }).next()).rejects.toBe(reason);
    expect(replay).not.toHaveBeenCalled();
    replay.mockRestore();
  });

  it('stops a prefill between chunks, and the state says how far it came', async () => {
    const state = model.createState();
    const controller = new AbortController();
    const tokens = start({ signal: controller.signal, capture, state }, ids);
    const first = expect(tokens.next()).rejects.toBe(reason);
    setImmediate(() => controller.abort(reason));
    await first;
    const [done] = state.lengths;
    expect(done! % 2048).toBe(0);
    expect(done).toBeLessThan(ids.length);
    // It can be taken up where it was left.
    const rest = await model.forward({ inputIds: ids.subarray(done, done! + 3000), state, logitsToKeep: 1 });
    const whole = await model.forward({ inputIds: ids.subarray(0, done! + 3000), logitsToKeep: 1 });
    expectSame(await take(rest.logits), await take(whole.logits));
    state.dispose();
  });

  it('stops between tokens', async () => {
    const controller = new AbortController();
    const tokens = start({ signal: controller.signal, capture });
    for (let i = 0; i < 3; i++) expect((await tokens.next()).done).toBe(false);
    controller.abort(reason);
    await expect(tokens.next()).rejects.toBe(reason);
    expect(await tokens.next()).toEqual({ done: true, value: undefined });
  });

  it('that is set after the last token changes nothing', async () => {
    const controller = new AbortController();
    const tokens: number[] = [];
    for await (const { token } of {
      [Symbol.asyncIterator]: () => start({ signal: controller.signal, maxNewTokens: 4, capture }),
    })
      tokens.push(token);
    controller.abort(reason);
    expect(tokens).toHaveLength(4);
  });
});

describe('a consumer', () => {
  it.each([true, false])(
    'may leave the loop at any token, and memory returns (capture: %p)',
    async (capture) => {
      const before = inUse();
      for (let leave = 1; leave <= 4; leave++) {
        let count = 0;
        for await (const _ of model.generate([[1, 2], [3]], { eosTokenId: [], capture }))
          if (++count === leave) break;
        expect(inUse()).toEqual(before);
      }
      const failing = async () => {
        for await (const _ of model.generate([1], { capture })) throw new Error('mine');
      };
      await expect(failing()).rejects.toThrow('mine');
      await start({}).return(undefined);
      expect(inUse()).toEqual(before);
    },
  );

  it('that is slow has at most one step done ahead', async () => {
    const replay = jest.spyOn(Graph.prototype, 'replay');
    const tokens = start({ maxNewTokens: 6 });
    expect(replay).toHaveBeenCalledTimes(0);
    const prompts = device().id === 'cpu' ? 0 : 1; // on a GPU they are a replay, too
    for (let taken = 1; taken <= 6; taken++) {
      await tokens.next();
      await sleep(5);
      // The last token need not be consumed.
      expect(replay).toHaveBeenCalledTimes(prompts + Math.min(taken, 5));
    }
    expect((await tokens.next()).done).toBe(true);
    replay.mockRestore();
  });

  it('does nothing by only asking for a generation', async () => {
    const before = inUse();
    model.generate(ids);
    await sleep(5);
    expect(inUse()).toEqual(before);
  });
});

describe('the event loop', () => {
  it('goes on during a long prefill', async () => {
    const delay = monitorEventLoopDelay({ resolution: 1 });
    const began = performance.now();
    delay.enable();
    const { logits } = await model.forward({ inputIds: ids, logitsToKeep: 1 });
    await logits.data();
    delay.disable();
    const took = performance.now() - began;
    logits.dispose();
    // Queueing a chunk takes the main thread a moment; computing it takes none of it.
    expect(delay.max / 1e6).toBeLessThan(took / 3);
    expect(delay.percentile(50) / 1e6).toBeLessThan(took / 20);
  });
});
