/** Every public call × null, undefined, a number, a string: refused in words of our own, never in V8's. */
import * as library from '../lib/index';
import { temporaryFolder } from './io/folder';
import { open } from './models/checkpoints';

const { AutoModelForCausalLM, State, Tensor, Tokenizer } = library;

type Call = (wrong: unknown) => unknown;
type Wrong = 'undefined' | 'null' | 'number' | 'string';
const wrongs: Readonly<Record<Wrong, unknown>> = {
  undefined: undefined,
  null: null,
  number: 5,
  string: 'no such thing',
};

const folder = temporaryFolder();
const opened: { dispose(): void }[] = [];
let model: library.CausalLM;
let state: library.State;
let tensor: library.Tensor;
let trainer: library.Trainer;
let corpus: library.Corpus;

beforeAll(async () => {
  model = await open('mamba-text');
  opened.push(model);
  state = model.createState();
  tensor = Tensor.from([1, 2, 3, 4], [2, 2]);
  trainer = await library.Trainer.fromConfig(config, steps);
  opened.push(trainer);
  corpus = await library.Corpus.open([__filename]);
});
afterAll(() => opened.forEach((each) => each.dispose()));

const take = async (prompts: unknown, options?: unknown) =>
  await model.generate(prompts as string, options as object).completions();
const config = { model_type: 'mamba', vocab_size: 8, hidden_size: 8, num_hidden_layers: 1, state_size: 2 };
const size = { length: 8, rows: 1, epochs: 1 };
const steps = { steps: 1, learningRate: 1 };
const scan = { batch: 1, length: 1, dim: 1, dState: 1, u: [1], delta: [1], A: [1], B: [1], C: [1] };

/** The call with one argument to be wrong, and which of the four are not: null may stand for what is left out. */
const calls: Readonly<Record<string, readonly [call: Call, right?: readonly Wrong[]]>> = {
  'fromPretrained: pathOrId': [(x) => AutoModelForCausalLM.fromPretrained(x as string)],
  'fromPretrained: options': [
    (x) => AutoModelForCausalLM.fromPretrained(folder.path, x as object),
    ['undefined'],
  ],
  'fromConfig: json': [(x) => AutoModelForCausalLM.fromConfig(x as typeof config)],
  'fromConfig: options': [(x) => AutoModelForCausalLM.fromConfig(config, x as object), ['undefined']],
  'fromConfig: seed': [
    (x) => AutoModelForCausalLM.fromConfig(config, { seed: x as number }),
    ['undefined', 'number'],
  ],
  'fromConfig: device': [
    (x) => AutoModelForCausalLM.fromConfig(config, { device: x as string }),
    ['undefined'],
  ],
  'fromConfig: dtype': [(x) => AutoModelForCausalLM.fromConfig(config, { dtype: x as 'f32' }), ['undefined']],
  'fromConfig: tokenizer': [
    (x) => AutoModelForCausalLM.fromConfig(config, { tokenizer: x as library.Tokenizer }),
    ['undefined'],
  ],
  'generate: prompts': [(x) => take(x), ['string']],
  'generate: options': [(x) => take('a', x), ['undefined']],
  'generate: state': [(x) => take('a', { state: x }), ['undefined', 'null']],
  'generate: signal': [(x) => take('a', { signal: x }), ['undefined']],
  'generate: stop': [(x) => take('a', { maxNewTokens: 1, stop: x }), ['undefined', 'string']],
  'generate: eosTokenId': [
    (x) => take('a', { maxNewTokens: 1, eosTokenId: x }),
    ['undefined', 'null', 'number'],
  ],
  'generate: seed': [(x) => take('a', { maxNewTokens: 1, seed: x }), ['undefined', 'number']],
  'forward: input': [(x) => model.forward(x as { inputIds: [] })],
  'forward: inputIds': [(x) => model.forward({ inputIds: x as number[] })],
  'forward: attentionMask': [
    (x) => model.forward({ inputIds: [1], attentionMask: x as number[] }),
    ['undefined', 'null'],
  ],
  'forward: labels': [(x) => model.forward({ inputIds: [1], labels: x as number[] }), ['undefined', 'null']],
  'forward: state': [
    (x) => model.forward({ inputIds: [1], state: x as library.State }),
    ['undefined', 'null'],
  ],
  'forward: logitsToKeep': [
    (x) => model.forward({ inputIds: [1], logitsToKeep: x as number }),
    ['undefined', 'number'],
  ],
  'savePretrained: folder': [(x) => model.savePretrained(x as string), ['string']],
  'createState: rows': [(x) => model.createState(x as number), ['undefined', 'number']],
  'restoreState: bytes': [(x) => model.restoreState(x as Uint8Array)],
  'fork: rows': [(x) => state.fork(x as number[]), ['undefined']],
  'State.restore: bytes': [(x) => State.restore(x as Uint8Array, model.device, model.stateLayout)],
  'Tokenizer: definition': [(x) => new Tokenizer(x as object as never, {})],
  'encode: text': [(x) => model.tokenizer!.encode(x as string), ['string']],
  'encode: options': [(x) => model.tokenizer!.encode('a', x as object), ['undefined']],
  'decode: ids': [(x) => model.tokenizer!.decode(x as number[])],
  'decode: options': [(x) => model.tokenizer!.decode([1], x as object), ['undefined']],
  'decodeStream: options': [(x) => model.tokenizer!.decodeStream(x as object), ['undefined']],
  'device: name': [(x) => library.device(x as string), ['undefined']],
  'setThreads: count': [(x) => library.setThreads(x as number), ['number']],
  'setMemoryLimit: bytes': [(x) => library.device('cpu').setMemoryLimit(x as number), ['number']],
  'Tensor.empty: shape': [(x) => Tensor.empty(x as number[], 'f32')],
  'Tensor.empty: dtype': [(x) => Tensor.empty([1], x as 'f32')],
  'Tensor.empty: device': [(x) => Tensor.empty([1], 'f32', x as string), ['undefined']],
  'Tensor.from: data': [(x) => Tensor.from(x as number[])],
  'Tensor.from: shape': [(x) => Tensor.from([1], x as number[]), ['undefined']],
  'Tensor.from: options': [(x) => Tensor.from([1], [1], x as object), ['undefined']],
  'rows: begin': [(x) => tensor.rows(x as number, 1)],
  'columns: end': [(x) => tensor.columns(0, x as number)],
  'reshape: shape': [(x) => tensor.reshape(x as number[])],
  'set: values': [(x) => tensor.set(x as Float32Array)],
  'write: bytes': [(x) => tensor.write(x as Uint8Array)],
  'write: byteOffset': [(x) => tensor.write(new Uint8Array(4), x as number), ['undefined', 'number']],
  'scope: fn': [(x) => library.scope(x as () => void)],
  'keep: tensor': [(x) => library.keep(x as library.Tensor)],
  'capture: device': [(x) => library.capture(x as library.Device, () => undefined)],
  'capture: fn': [(x) => library.capture(library.device('cpu'), x as () => void)],
  'selectiveScan: input': [(x) => library.selectiveScan(x as typeof scan)],
  ...Object.fromEntries(
    Object.keys(scan).map((name): [string, readonly [call: Call]] => [
      `selectiveScan: ${name}`,
      [(x) => library.selectiveScan({ ...scan, [name]: x })],
    ]),
  ),
  'grad: fn': [(x) => library.grad(x as () => library.Tensor, [tensor])],
  'grad: parameters': [(x) => library.grad(() => tensor, x as library.Tensor[])],
  'grad: options': [(x) => library.grad(() => tensor, [], x as object), ['undefined']],
  'grad: into': [(x) => library.grad(() => tensor, [], { into: x as library.Tensor[] }), ['undefined']],
  'grad: seed': [(x) => library.grad(() => tensor, [], { seed: x as library.Tensor }), ['undefined']],
  'noGrad: fn': [(x) => library.noGrad(x as () => void)],
  'remat: fn': [(x) => library.remat(x as () => library.Tensor, tensor)],
  'remat: inputs': [(x) => library.remat((y) => y!, x as library.Tensor)],
  'evaluate: model': [(x) => library.evaluate(x as library.CausalLM, 'a')],
  'evaluate: source': [(x) => library.evaluate(model, x as string), ['string']],
  'evaluate: options': [(x) => library.evaluate(model, 'a', x as object), ['undefined']],
  'Trainer.fromConfig: config': [(x) => library.Trainer.fromConfig(x as object as never, steps)],
  'Trainer.fromConfig: options': [(x) => library.Trainer.fromConfig(config, x as typeof steps)],
  'Trainer.fromPretrained: pathOrId': [(x) => library.Trainer.fromPretrained(x as string, steps)],
  'Trainer.fromPretrained: options': [(x) => library.Trainer.fromPretrained(folder.path, x as typeof steps)],
  'train: trainer': [(x) => library.train(x as library.Trainer, { source: x as never })],
  ...Object.fromEntries(
    (['folder', 'title', 'best', 'resume', 'signal', 'validation', 'onStep', 'onWarning'] as const).map(
      (name): [string, readonly [call: Call, right: readonly Wrong[]]] => [
        `train: ${name}`,
        [
          (x) => library.train(trainer, { source: new library.Windows(corpus, size), [name]: x }),
          /^(folder|title|best)$/.test(name) ? ['undefined', 'string'] : ['undefined'],
        ],
      ],
    ),
  ),
  'evaluate: batches': [(x) => trainer.evaluate(x as [])],
  'diagnose: step': [(x) => trainer.diagnose(x as number, []), ['number']],
  'diagnose: batches': [(x) => trainer.diagnose(1, x as [])],
  'withAverages: fn': [(x) => trainer.withAverages(x as () => Promise<void>)],
  'split: heldOut': [(x) => corpus.split(x as { share: number })],
  'split: files': [(x) => corpus.split({ files: x as string[] })],
  'split: share': [(x) => corpus.split({ share: x as number })],
  'writeTokens: path': [(x) => library.writeTokens(x as string, model.tokenizer!, [__filename]), ['string']],
  'writeTokens: codec': [(x) => library.writeTokens(folder.at('x'), x as library.Codec, [__filename])],
  'writeTokens: files': [(x) => library.writeTokens(folder.at('x'), model.tokenizer!, x as string[])],
  'saveCheckpoint: folder': [(x) => library.saveCheckpoint(x as string, trainer), ['string']],
  'saveCheckpoint: trainer': [(x) => library.saveCheckpoint(folder.path, x as library.Trainer)],
  'saveCheckpoint: options': [
    (x) => library.saveCheckpoint(folder.path, trainer, x as object),
    ['undefined'],
  ],
  'loadCheckpoint: folder': [(x) => library.loadCheckpoint(x as string, trainer), ['string']],
  'loadCheckpoint: trainer': [(x) => library.loadCheckpoint(folder.path, x as library.Trainer)],
  'loadCheckpoint: onWarning': [
    (x) => library.loadCheckpoint(folder.path, trainer, x as () => void),
    ['undefined'],
  ],
  'Windows: corpus': [(x) => new library.Windows(x as library.Corpus, { length: 1, rows: 1 })],
  'Windows: options': [(x) => new library.Windows(corpus, x as { length: number; rows: number })],
  'rowsToBatch: rows': [(x) => library.rowsToBatch(x as number[][])],
  'rowsToBatch: row': [(x) => library.rowsToBatch([x as number[]])],
  'Corpus.open: files': [(x) => library.Corpus.open(x as string[])],
  'verify: device': [(x) => library.verify(x as string), ['undefined']],
  'verify: visit': [(x) => library.verify('cpu', x as () => void), ['undefined']],
};

const cases = Object.entries(calls).flatMap(([name, [call, right = []]]) =>
  Object.keys(wrongs)
    .filter((wrong) => !right.includes(wrong as Wrong))
    .map((wrong) => [name, wrong as Wrong, call] as const),
);

it.each(cases)('%s is %s', async (name, wrong, call) => {
  const error = await (async () => call(wrongs[wrong]))().catch((e: unknown) => e);
  expect(error).toBeInstanceOf(Error);
  const { name: kind, message } = error as Error;
  // `<call>: <argument> is <got>, ...`; a wrong kind is a TypeError, a number out of range a RangeError.
  expect(`${kind}: ${message}`).toMatch(/^(TypeError|RangeError): [A-Za-z]+(\.[A-Za-z]+)?: \S+ \w+/);
  expect(message).not.toMatch(/not (iterable|a function)|Cannot (read|destructure)/);
});

describe('names that are no options', () => {
  it.each([
    ['fromPretrained', () => AutoModelForCausalLM.fromPretrained(folder.path, { dType: 'f32' } as object)],
    ['fromConfig', () => AutoModelForCausalLM.fromConfig(config, { dType: 'f32' } as object)],
    ['selectiveScan', () => library.selectiveScan({ ...scan, dType: 'f32' } as typeof scan)],
    ['forward', () => model.forward({ inputIds: [1], dType: 'f32' } as { inputIds: number[] })],
    ['generate', () => take('a', { dType: 'f32' })],
  ])('%s refuses them', async (name, call) => {
    await expect(call()).rejects.toThrow(new TypeError(`${name}: there is no option dType`));
  });
});

it('an argument of another kind inside is refused by its name and place', async () => {
  const two = { ...scan, length: 2, delta: [1, 1] };
  const values: [unknown[], string][] = [
    [[1, 'x'], 'u[1] is string'],
    [[undefined, 1], 'u[0] is undefined'],
    [new Array<number>(2), 'u[0] is undefined'],
  ];
  for (const size of ['batch', 'length', 'dim', 'dState'])
    await expect(library.selectiveScan({ ...scan, [size]: 2 ** 40 })).rejects.toThrow(
      /^selectiveScan: [uA] has \d+ elements/,
    );
  const layer = await library.S4D.create({ dModel: 1, dState: 2 });
  for (const [u, message] of values) {
    await expect(library.selectiveScan({ ...two, u: u as number[] })).rejects.toThrow(
      `selectiveScan: ${message}, expected a number`,
    );
    await expect(layer.run({ batch: 1, length: 2, u: u as number[] })).rejects.toThrow(
      `S4D.run: ${message}, expected a number`,
    );
  }
  const run = (change: object) => layer.run({ batch: 1, length: 2, u: [1, 2], ...change });
  await expect(run({ mode: 'x' })).rejects.toThrow('S4D.run: mode is x, expected');
  await expect(run({ returnState: 'x' })).rejects.toThrow(
    'S4D.run: returnState is string, expected true or false',
  );
  await expect(library.S4D.create({ dModel: 1, seed: 1.5 })).rejects.toThrow(
    'S4D: seed is 1.5, expected a whole number',
  );
  layer.dispose();
  await expect(run({})).rejects.toThrow('S4D.run: layer is disposed');
  await expect(model.forward({ inputIds: [1], outputRouter: 'yes' as never })).rejects.toThrow(
    'forward: outputRouter is string, expected true or false',
  );
});
