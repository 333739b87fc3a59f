import { ByteTokenizer, device, type CausalLM, type GenerateOptions } from '../../lib';
import { bits, inUse, open } from '../models/checkpoints';
import { chain } from './chain';
import { noisy } from './drafters';

const onCpu = device().id === 'cpu';
const tiny = { model_type: 'mambabyte', hidden_size: 32, num_hidden_layers: 2, initializer_range: 0.4 };
let model: CausalLM;
let words: CausalLM;
beforeAll(async () => {
  model = await noisy(0, tiny);
  words = await open('mamba-text');
});
afterAll(() => [model, words].forEach((each) => each.dispose()));

const one = async (options: GenerateOptions, prompt: string | Uint8Array = 'Once upon a time', by = model) =>
  (await by.generate(prompt, { maxNewTokens: 60, ...options }).completions())[0]!;

describe('a drafter of words', () => {
  it.each([1, 2, 4, 9])('leaves the bytes as they are, in blocks of %d', async (draftTokens) => {
    for (const option of [{}, { temperature: 1.5, seed: 3 }, { topK: 5, seed: 9, repetitionPenalty: 1.2 }])
      for (const capture of [true, false]) {
        const wanted = await one(option);
        const got = await one({ ...option, drafter: words, draftTokens, capture });
        expect(got.tokens).toEqual(wanted.tokens);
        expect([got.text, got.bytes]).toEqual([wanted.text, wanted.bytes]);
        expect(got.speculation!.drafted).toBeGreaterThan(0);
      }
  });

  it('knows any prompt, also of bytes that are no text', async () => {
    const binary = Uint8Array.from({ length: 100 }, (_, i) => 255 - i);
    for (const prompt of [binary, 'x', ' ', '日本', Buffer.from('half \xf0\x9f', 'latin1')])
      expect((await one({ drafter: words }, prompt)).tokens).toEqual((await one({}, prompt)).tokens);
  });

  it('serves several prompts', async () => {
    const prompts = ['Once', 'a longer prompt, with words', 'é'];
    const options = { maxNewTokens: [20, 31, 9] };
    const wanted = await model.generate(prompts, options).completions();
    const got = await model.generate(prompts, { ...options, drafter: words }).completions();
    expect(got.map(({ tokens }) => tokens)).toEqual(wanted.map(({ tokens }) => tokens));
  });

  it('stops where the text does', async () => {
    const stop = (await one({})).bytes!.subarray(20, 23);
    const [wanted, got] = [await one({ stop }), await one({ stop, drafter: words })];
    expect([got.text, got.finishReason]).toEqual([wanted.text, 'stop']);
  });

  it('of beta 256 writes what it likes', async () => {
    const { text, speculation } = await one({ drafter: words, beta: 256, draftTokens: 5 });
    const greedy = await words.generate('Once upon a time', { maxNewTokens: 5 }).text();
    // Up to where its own text is no text, or it has nothing more to say.
    const whole = greedy.split('\ufffd')[0]!;
    expect(text.startsWith(whole)).toBe(true);
    expect(speculation!.accepted).toBe(speculation!.drafted);
  });

  it('leaves a state as a fresh one, and remembers', async () => {
    const state = model.createState();
    const drafterState = words.createState();
    const first = await one({ state, drafterState, drafter: words, maxNewTokens: 33 });
    expect(drafterState.lengths[0]).toBeGreaterThan(5);
    const fresh = model.createState();
    const inputIds = [...Buffer.from('Once upon a time'), ...first.tokens];
    (await model.forward({ inputIds, state: fresh })).logits.dispose();
    const data = async (all: typeof state) =>
      Promise.all(
        [...all.pools, all.logits].map(async (tensor) => bits((await tensor.data()) as Float32Array)),
      );
    if (onCpu) expect(await data(state)).toEqual(await data(fresh));
    expect([state.lengths, state.marks]).toEqual([fresh.lengths, fresh.marks]);
    const rest = await one({ state, drafterState, drafter: words, maxNewTokens: 27 }, new Uint8Array());
    expect([...first.tokens, ...rest.tokens]).toEqual((await one({})).tokens);
    for (const each of [state, drafterState, fresh]) each.dispose();
  });

  it('begins with what the model says, where nobody has said anything to it', async () => {
    const state = model.createState();
    await one({ state, maxNewTokens: 3 });
    const rest = await one({ state, drafter: words, maxNewTokens: 57 }, new Uint8Array());
    expect(rest.tokens).toEqual((await one({})).tokens.slice(3));
    state.dispose();
  });

  it('leaves nothing behind', async () => {
    await one({ drafter: words });
    const before = inUse();
    await one({ drafter: words, temperature: 1, seed: 1 });
    expect(inUse()).toEqual(before);
  });

  it('must have a tokenizer, and is no match for rejection sampling', async () => {
    const mute = await open('mamba-tiny');
    await expect(one({ drafter: mute })).rejects.toThrow(
      'generate: drafter has no tokenizer, so its tokens cannot be turned into bytes',
    );
    mute.dispose();
    await expect(one({ drafter: words, acceptance: 'rejection', seed: 1 })).rejects.toThrow(
      'generate: acceptance is rejection, which needs a drafter with the same tokens',
    );
    await expect(one({ drafter: model }, undefined as never, words)).rejects.toThrow();
  });
});

describe('a drafter that knows the text', () => {
  /** The bytes of `text`, whose first the prompt is, and a drafter that says its tokens, or `ids`. */
  async function pair(text: string, ids = (tokens: number[]) => tokens) {
    const bytes = [...Buffer.from(text)];
    const byteModel = await chain(bytes, { tokenizer: new ByteTokenizer(), eos: [] });
    const tokens = ids(words.tokenizer!.encode(text));
    const drafter = await chain(tokens, { tokenizer: words.tokenizer, eos: [] });
    const prompt = words.tokenizer!.decode([tokens[0]!]);
    const run = async (options: GenerateOptions) => {
      const left = bytes.length - Buffer.byteLength(prompt);
      const done = await one({ drafter, maxNewTokens: left, ...options }, prompt, byteModel);
      expect(prompt + done.text).toBe(text);
      return done.speculation!;
    };
    return {
      run,
      count: tokens.length - 1,
      left: bytes.length - Buffer.byteLength(prompt),
      dispose: () => [byteModel, drafter].forEach((each) => each.dispose()),
    };
  }

  it('is believed in everything: one call a block, and no byte of the model alone', async () => {
    const text = 'Once upXy-kdfg!';
    const { run, left, count, dispose } = await pair(text);
    for (const draftTokens of [1, 2, 3, 20]) {
      const { drafted, accepted, calls } = await run({ draftTokens });
      expect([drafted, accepted]).toEqual([left, left]);
      expect(calls).toBe(Math.ceil(count / draftTokens));
    }
    dispose();
  });

  it('may have tokens that are no bytes, or parts of characters', async () => {
    const parts = words.tokenizer!.encode('a é😀z');
    expect(parts.some((id) => words.tokenizer!.decode([id]).includes('\ufffd'))).toBe(true);
    const { run, left, dispose } = await pair('a é😀z');
    for (const draftTokens of [1, 2, 3, 4, 5, 9]) {
      const { drafted, accepted } = await run({ draftTokens });
      expect(accepted).toBeLessThanOrEqual(drafted);
      if (draftTokens === 9) expect([drafted, accepted]).toEqual([left, left]);
    }
    dispose();
    // A special token, an id that has no token, then the text.
    const strange = await pair('Once', (tokens) => [tokens[0]!, 1, 511, ...tokens.slice(1)]);
    for (const draftTokens of [1, 2, 3, 6]) await strange.run({ draftTokens });
    strange.dispose();
  });

  it('begins again after a word that it did not know', async () => {
    const text = 'Once upXy-kdfg!';
    // It says something else after its second token.
    const { run, dispose } = await pair(text, (tokens) => [...tokens.slice(0, 2), 400, 401]);
    const { accepted, drafted, calls } = await run({ draftTokens: 3 });
    expect(drafted).toBeGreaterThan(accepted);
    expect(calls).toBeLessThan(text.length);
    dispose();
  });
});
