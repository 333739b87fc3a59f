import { createHash } from 'node:crypto';
import { AutoModelForCausalLM, FormatError, type CausalLM, type State } from '../../lib';
import { inUse, open, randomIds, rowsOf, take, tinyConfig } from './checkpoints';

let model: CausalLM;
beforeAll(async () => {
  model = await open('mamba-tiny');
});
afterAll(() => model.dispose());

const feed = async (state: State, ids: readonly (readonly number[] | Int32Array)[]) =>
  take((await model.forward({ inputIds: ids, state })).logits);

/** A state that has read `rows` prompts of unequal lengths. */
async function readers(rows = 2): Promise<State> {
  const state = model.createState(rows);
  await feed(
    state,
    Array.from({ length: rows }, (_, i) => randomIds(9 + 3 * i, 256, i + 1)),
  );
  return state;
}

describe('fork', () => {
  it('gives what the original gives, and leaves it alone', async () => {
    const state = await readers();
    const copy = state.fork();
    expect(copy.lengths).toEqual([9, 12]);
    const a = await feed(copy, [[1, 2], [3]]);
    const b = await feed(state, [[1, 2], [3]]);
    expect(a).toEqual(b);
    expect([copy.lengths, state.lengths]).toEqual([
      [11, 13],
      [11, 13],
    ]);
    copy.dispose();
    expect(await feed(state, [[7], [7]])).toHaveLength(2 * 256);
    state.dispose();
  });

  it('chooses, repeats and reorders rows', async () => {
    const state = await readers(3);
    const copy = state.fork([2, 0, 2]);
    expect([copy.rows, copy.lengths]).toEqual([3, [15, 9, 15]]);
    const original = rowsOf(await feed(state, [[5], [5], [5]]), 256);
    expect(rowsOf(await feed(copy, [[5], [5], [5]]), 256)).toEqual([original[2], original[0], original[2]]);
    for (const made of [state, copy]) made.dispose();
  });

  it('refuses rows that are not there', async () => {
    const state = await readers();
    expect(() => state.fork([2])).toThrow(/fork: rows holds 2, expected numbers from 0 to 1/);
    expect(() => state.fork([-1])).toThrow(RangeError);
    expect(() => state.fork([0.5])).toThrow(RangeError);
    expect(() => state.fork([])).toThrow(/fork: rows is empty/);
    state.dispose();
  });
});

describe('snapshot and restoreState', () => {
  it('continue bit for bit, as often as wanted', async () => {
    const before = inUse();
    const state = await readers();
    const bytes = await state.snapshot();
    expect(await state.snapshot()).toEqual(bytes);
    const wanted = await feed(state, [[4, 5], [6]]);
    for (let i = 0; i < 2; i++) {
      const restored = model.restoreState(bytes);
      expect(restored.lengths).toEqual([9, 12]);
      expect(await feed(restored, [[4, 5], [6]])).toEqual(wanted);
      restored.dispose();
    }
    state.dispose();
    expect(inUse()).toEqual(before);
  });

  it('is a few KiB for this model, however long the sequence', async () => {
    const state = model.createState();
    const short = await state.snapshot();
    await feed(state, [randomIds(3000)]);
    const long = await state.snapshot();
    expect(Math.abs(long.length - short.length)).toBeLessThan(8); // digits of the length
    expect(long.length).toBeLessThan(64 * 1024);
    state.dispose();
  });

  it('works at another address than that of the buffer it lies in', async () => {
    const state = await readers();
    const bytes = await state.snapshot();
    const larger = new Uint8Array(bytes.length + 3);
    larger.set(bytes, 3);
    const restored = model.restoreState(larger.subarray(3));
    expect(await feed(restored, [[4], [6]])).toEqual(await feed(state, [[4], [6]]));
    for (const made of [state, restored]) made.dispose();
  });
});

describe('restoreState refuses', () => {
  let bytes: Uint8Array;
  beforeAll(async () => {
    const state = await readers();
    bytes = await state.snapshot();
    state.dispose();
  });

  /** Restoring must fail with a FormatError, and leave nothing behind. */
  function refused(altered: Uint8Array, message = /^restore: /): void {
    const before = inUse();
    let error: unknown;
    try {
      model.restoreState(altered);
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(FormatError);
    expect((error as Error).message).toMatch(message);
    expect(inUse()).toEqual(before);
  }

  it('bytes that are cut off anywhere', () => {
    for (let length = 0; length < bytes.length; length += length < 600 ? 1 : 1009)
      refused(bytes.subarray(0, length));
    refused(bytes.subarray(0, -1));
    refused(bytes.subarray(1));
  });

  it('bytes with more behind them', () => {
    refused(Uint8Array.of(...bytes, 0));
  });

  it('bytes of which one bit is another', () => {
    const altered = Uint8Array.from(bytes);
    for (let at = 0; at < bytes.length; at += at < 600 ? 3 : 811) {
      altered[at]! ^= 1 << (at % 8);
      refused(altered);
      altered[at]! ^= 1 << (at % 8);
    }
    model.restoreState(altered).dispose();
  });

  it('random bytes', () => {
    refused(Uint8Array.from(randomIds(5000)));
    refused(new Uint8Array(5000));
  });

  it('what is no Uint8Array', () => {
    expect(() => model.restoreState('state' as unknown as Uint8Array)).toThrow(TypeError);
    expect(() => model.restoreState([...bytes] as unknown as Uint8Array)).toThrow(/bytes is no Uint8Array/);
  });

  /** The same bytes with another header, sealed again: whoever wrote them knew the format. */
  function sealed(edit: (header: Record<string, unknown>) => unknown, version = 1): Uint8Array {
    const buffer = Buffer.from(bytes);
    const length = buffer.readUInt32LE(12);
    const header =
      JSON.stringify(edit(JSON.parse(buffer.toString('utf8', 16, 16 + length)) as Record<string, unknown>)) ??
      'nothing';
    const front = Buffer.from(buffer.subarray(0, 16));
    front.writeUInt32LE(version, 8);
    front.writeUInt32LE(Buffer.byteLength(header), 12);
    const body = Buffer.concat([front, Buffer.from(header), buffer.subarray(16 + length, -32)]);
    return Buffer.concat([body, createHash('sha256').update(body).digest()]);
  }

  it('another version', () =>
    refused(
      sealed((header) => header, 2),
      /snapshot of version 2, expected 1/,
    ));

  it.each<[string, (header: Record<string, unknown>) => unknown]>([
    ['no JSON', () => undefined],
    ['null', () => null],
    ['a list', () => []],
    ['no rows', (header) => ({ ...header, rows: 0, lengths: [] })],
    ['negative rows', (header) => ({ ...header, rows: -1 })],
    ['more rows than bytes', (header) => ({ ...header, rows: 3, lengths: [1, 2, 3] })],
    ['fewer rows than bytes', (header) => ({ ...header, rows: 1, lengths: [1] })],
    ['more rows than any machine holds', (header) => ({ ...header, rows: 2 ** 40 })],
    ['lengths of another count', (header) => ({ ...header, lengths: [1] })],
    ['negative lengths', (header) => ({ ...header, lengths: [1, -1] })],
    ['no layout', (header) => ({ ...header, layout: undefined })],
    ['a layout without parts', (header) => ({ ...header, layout: { modelType: 'mamba', vocabSize: 256 } })],
    [
      'parts of null',
      (header) => ({ ...header, layout: { modelType: 'mamba', vocabSize: 256, parts: [null] } }),
    ],
    ['no parts', (header) => ({ ...header, layout: { modelType: 'mamba', vocabSize: 256, parts: [] } })],
  ])('a sealed header with %s', (_, edit) => refused(sealed(edit)));

  it('the state of another model, and says how it differs', async () => {
    const others: [object, RegExp][] = [
      [{ vocab_size: 128 }, /another model; its vocabulary is 128, here 256/],
      [
        { state_size: 8 },
        /it has layers\.0\.scan f32\[128,8\] where this one has layers\.0\.scan f32\[128,16\]/,
      ],
      [{ conv_kernel: 3 }, /it has layers\.0\.conv f32\[128,2\] where/],
      [{ num_hidden_layers: 1 }, /it has nothing where this one has layers\.1\.conv/],
      [{ num_hidden_layers: 5 }, /it has 10 parts, this one 8/],
    ];
    for (const [change, message] of others) {
      const other = await AutoModelForCausalLM.fromConfig({ ...tinyConfig, ...change });
      const state = other.createState(2);
      refused(await state.snapshot(), message);
      await expect(model.forward({ inputIds: [[1], [2]], state })).rejects.toThrow(
        /forward: state belongs to another model or device/,
      );
      state.dispose();
      other.dispose();
    }
  });
});

describe('a state', () => {
  it('is refused with another number of sequences', async () => {
    const state = await readers();
    await expect(model.forward({ inputIds: [1], state })).rejects.toThrow(
      /forward: state has 2 sequences, expected 1/,
    );
    await expect(model.generate([[1], [2], [3]], { state }).text()).rejects.toThrow(
      /generate: state has 2 sequences, expected 3/,
    );
    expect(state.lengths).toEqual([9, 12]);
    state.dispose();
  });

  it.each([0, -1, 1.5, NaN])('of %p sequences is refused', (rows) => {
    expect(() => model.createState(rows)).toThrow(
      /createState: rows is .*, expected a whole number, 1 or more/,
    );
    expect(() => model.createState('2' as never)).toThrow('createState: rows is string, expected');
  });

  it('holds the logits of the last token', async () => {
    const state = model.createState(2);
    const { logits } = await model.forward({ inputIds: [[1, 2, 3], [4]], state });
    const rows = rowsOf(await take(logits), 256);
    expect(rowsOf((await state.logits.data()) as Float32Array, 256)).toEqual([rows[2], rows[3]]);
    state.dispose();
  });
});
