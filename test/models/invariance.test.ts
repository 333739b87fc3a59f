import { setThreads, threads, type CausalLM, type State } from '../../lib';
import { expectSame } from '../same';
import { bits, logitsOf, open, randomIds, rowsOf, take } from './checkpoints';

let model: CausalLM;
beforeAll(async () => {
  model = await open('mamba-tiny');
});
afterAll(() => model.dispose());

const vocab = 256;
const next = async (state: State, ids: Int32Array) =>
  take((await model.forward({ inputIds: ids, state })).logits);

/** Feeds `ids` in pieces of these lengths and returns all logits. */
async function inPieces(ids: Int32Array, lengths: readonly number[]): Promise<Float32Array> {
  const state = model.createState();
  const logits = new Float32Array(ids.length * vocab);
  let at = 0;
  for (const length of lengths) {
    const begin = at * vocab;
    logits.set(await next(state, ids.subarray(at, (at += length))), begin);
  }
  expect(state.lengths).toEqual([at]);
  state.dispose();
  return logits;
}

describe('a sequence gives the same logits', () => {
  const ids = randomIds(90);

  it('step by step, in chunks, and at once', async () => {
    const whole = await logitsOf(model, ids);
    expectSame(await inPieces(ids, Array<number>(90).fill(1)), whole);
    for (const lengths of [
      [1, 89],
      [89, 1],
      [2, 3, 85],
      [33, 57],
      [64, 26],
      [16, 1, 1, 72],
    ]) {
      expectSame(await inPieces(ids, lengths), whole);
    }
  });

  it('beside others of any length, and alone', async () => {
    const sequences = [1, 2, 3, 5, 64, 65, 90].map((length, i) => randomIds(length, vocab, i + 1));
    const { logits } = await model.forward({ inputIds: sequences });
    expect(logits.shape).toEqual([7, 90, vocab]);
    const rows = rowsOf(await take(logits), 90 * vocab);
    for (const [i, sequence] of sequences.entries()) {
      const end = sequence.length * vocab;
      expectSame(rows[i]!.subarray(0, end), await logitsOf(model, sequence));
      expect(rows[i]!.subarray(end).every((value) => value === 0)).toBe(true);
    }
  });

  it('with padding on the left, on the right, on both sides, and without', async () => {
    const alone = rowsOf(await logitsOf(model, ids.subarray(0, 5)), vocab);
    const masks = ['00011111', '11111000', '01111100'];
    for (const attentionMask of masks.map((mask) => [...mask].map(Number))) {
      const columns = attentionMask.flatMap((bit, j) => (bit ? [j] : []));
      const inputIds = attentionMask.map((_, j) => (columns.includes(j) ? ids[columns.indexOf(j)]! : 99));
      const got = rowsOf(await take((await model.forward({ inputIds, attentionMask })).logits), vocab);
      columns.forEach((j, i) => expectSame(got[j]!, alone[i]!));
    }
  });

  it('with 1 thread and with more', async () => {
    const before = threads();
    const batch = { inputIds: [ids, randomIds(300), randomIds(7)] };
    const results: string[] = [];
    for (const count of [1, 2, 3]) {
      setThreads(count);
      results.push(
        bits(await take((await model.forward(batch)).logits)),
        bits(await inPieces(ids, [40, 50])),
      );
    }
    setThreads(before);
    expect(results[2]).toEqual(results[0]);
    expect(results[4]).toEqual(results[0]);
    expect(results[3]).toEqual(results[1]);
    expect(results[5]).toEqual(results[1]);
  });

  it('the second time', async () => {
    expect(await logitsOf(model, ids)).toEqual(await logitsOf(model, ids));
  });
});

describe('long prompts', () => {
  const ids = randomIds(20000);

  it('are cut where nobody can tell', async () => {
    const kept = 4;
    for (const length of [2047, 2048, 2049, 4097]) {
      const prompt = ids.subarray(0, length);
      const { logits } = await model.forward({ inputIds: prompt, logitsToKeep: kept });
      const state = model.createState();
      const cut = length - 1000;
      (await model.forward({ inputIds: prompt.subarray(0, cut), logitsToKeep: 1, state })).logits.dispose();
      const rest = await model.forward({ inputIds: prompt.subarray(cut), logitsToKeep: kept, state });
      expectSame(await take(rest.logits), await take(logits));
      state.dispose();
    }
  });

  it('share chunks with others without a trace', async () => {
    const sequences = [ids.subarray(0, 2040), ids.subarray(5, 25), ids.subarray(9, 2500), ids.subarray(3, 4)];
    const { logits } = await model.forward({ inputIds: sequences });
    const rows = rowsOf(await take(logits), 2491 * vocab);
    for (const [i, sequence] of sequences.entries()) {
      expectSame(rows[i]!.subarray(0, sequence.length * vocab), await logitsOf(model, sequence));
    }
  });

  it('of one token and of 20,000 tokens run', async () => {
    const one = await logitsOf(model, ids.subarray(0, 1));
    const all = await logitsOf(model, ids);
    expectSame(one, all.subarray(0, vocab));
    expect(all.every(Number.isFinite)).toBe(true);
    const { logits } = await model.forward({ inputIds: ids, logitsToKeep: 1 });
    expectSame(await take(logits), all.subarray(-vocab));
  });
});

describe('a prompt of 100,000 tokens', () => {
  it('runs, and gives in three pieces what it gives in one', async () => {
    const ids = randomIds(100_000);
    const whole = await take((await model.forward({ inputIds: ids, logitsToKeep: 1 })).logits);
    const state = model.createState();
    let last: Float32Array | undefined;
    for (const [begin, end] of [
      [0, 30_001],
      [30_001, 99_999],
      [99_999, 100_000],
    ]) {
      const { logits } = await model.forward({ inputIds: ids.subarray(begin, end), state, logitsToKeep: 1 });
      last = await take(logits);
    }
    expectSame(last!, whole);
    expect(whole.every(Number.isFinite)).toBe(true);
    state.dispose();
  });
});

describe('logitsToKeep', () => {
  it.each([1, 3, 8, 100])('keeps the last %i columns', async (logitsToKeep) => {
    const inputIds = [randomIds(8), randomIds(5, vocab, 2)];
    const all = await model.forward({ inputIds });
    const some = await model.forward({ inputIds, logitsToKeep });
    const kept = Math.min(8, logitsToKeep);
    expect(some.logits.shape).toEqual([2, kept, vocab]);
    const got = rowsOf(await take(some.logits), kept * vocab);
    rowsOf(await take(all.logits), 8 * vocab).forEach((row, i) =>
      expectSame(got[i]!, row.subarray((8 - kept) * vocab)),
    );
  });

  it('goes with hidden states of all columns', async () => {
    const { logits, hiddenStates } = await model.forward({
      inputIds: [1, 2, 3],
      logitsToKeep: 1,
      outputHiddenStates: true,
    });
    expect(logits.shape).toEqual([1, 1, vocab]);
    expect(hiddenStates!.map(({ shape }) => shape)).toEqual(Array(5).fill([1, 3, 64]));
    for (const tensor of [logits, ...hiddenStates!]) tensor.dispose();
  });
});
