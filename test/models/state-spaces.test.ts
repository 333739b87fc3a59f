import { execFileSync } from 'node:child_process';
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { AutoModelForCausalLM, FormatError } from '../../lib';
import { FIXTURES, inUse, logitsOf, open, temporaryFolder } from './checkpoints';

const folder = temporaryFolder();
const original = JSON.parse(readFileSync(join(FIXTURES, 'mamba-ssm-bin', 'config.json'), 'utf8')) as Record<
  string,
  unknown
>;

/** The configuration of a fresh model for an original config.json with changes. */
async function configOf(change: object) {
  const model = await AutoModelForCausalLM.fromConfig({ ...original, ...change });
  model.dispose();
  return model.config;
}

describe("state-spaces' config.json", () => {
  it.each<[string, object, number]>([
    ['up to a multiple', {}, 256],
    ['not where it is one', { vocab_size: 256 }, 256],
    ['up to another multiple', { pad_vocab_size_multiple: 100 }, 300],
    ['not by 1', { pad_vocab_size_multiple: 1 }, 253],
  ])('pads the vocabulary %s', async (_, change, vocabSize) => {
    expect((await configOf(change)).vocabSize).toBe(vocabSize);
  });

  it('is understood as transformers would say it', async () => {
    const ssm = {
      layer: 'Mamba1',
      d_state: 8,
      d_conv: 3,
      expand: 3,
      dt_rank: 5,
      bias: true,
      conv_bias: false,
    };
    expect(await configOf({ ssm_cfg: ssm, tie_embeddings: false })).toMatchObject({
      modelType: 'mamba',
      hiddenSize: 64,
      numLayers: 3,
      tieWordEmbeddings: false,
      mixer: { dInner: 192, dState: 8, dConv: 3, dtRank: 5, bias: true, convBias: false },
      json: { model_type: 'mamba', hidden_size: 64, state_size: 8, time_step_rank: 5 },
    });
    expect(await configOf({ d_model: 72, ssm_cfg: { dt_rank: 'auto' } })).toMatchObject({
      mixer: { dtRank: 5 },
    });
  });

  it('may leave out what the original has defaults for', async () => {
    expect((await configOf({ ssm_cfg: null, attn_layer_idx: null })).numLayers).toBe(3);
    const model = await AutoModelForCausalLM.fromConfig({ d_model: 16, n_layer: 1, vocab_size: 9 });
    expect(model.config).toMatchObject({
      vocabSize: 16,
      tieWordEmbeddings: true,
      mixer: { dState: 16, dConv: 4 },
    });
    model.dispose();
  });

  it.each<[object, RegExp]>([
    [{ ssm_cfg: { layer: 'Mamba2' } }, /ssm_cfg.layer is "Mamba2", expected "Mamba1"; only the first Mamba/],
    [{ ssm_cfg: { headdim: 64 } }, /ssm_cfg: there is no field headdim/],
    [{ attn_cfg: 'none' }, /attn_cfg is "none", expected an object/],
    [{ ssm_cfg: { use_fast_path: 1 } }, /ssm_cfg: use_fast_path is 1, expected true or false/],
    [{ ssm_cfg: [] }, /ssm_cfg is an array, expected an object/],
    [{ ssm_cfg: { d_state: 0 } }, /ssm_cfg: d_state is 0, expected a whole number/],
    [{ ssm_cfg: { dt_rank: 'large' } }, /ssm_cfg: dt_rank is "large"/],
    [
      { attn_layer_idx: [1, 3] },
      /attn_layer_idx is \[1,3\], expected \[\]; layers of attention are not supported/,
    ],
    [{ d_intermediate: 128 }, /d_intermediate is 128, expected 0; layers with an MLP/],
    [{ rms_norm: false }, /rms_norm is false, expected true; layers with LayerNorm/],
    [{ pad_vocab_size_multiple: 0 }, /pad_vocab_size_multiple is 0/],
    [{ n_layer: 1.5 }, /n_layer is 1.5, expected a whole number/],
    [{ tie_embeddings: 'no' }, /tie_embeddings is "no", expected true or false/],
    [{ dropout: 0.1 }, /there is no field dropout/],
    [
      { model_type: 'state-spaces' },
      /model_type is "state-spaces", expected one of: mamba.*; files of blackmamba and state-spaces have none/,
    ],
  ])('is refused by name: %p', async (change, message) => {
    const before = inUse();
    const failure = AutoModelForCausalLM.fromConfig({ ...original, ...change });
    await expect(failure).rejects.toThrow(message);
    await expect(failure).rejects.toBeInstanceOf(FormatError);
    expect(inUse()).toEqual(before);
  });
});

describe('a model of state-spaces', () => {
  it("is saved as transformers' Mamba", async () => {
    const model = await open('mamba-ssm-bin');
    await model.savePretrained(folder.path);
    const json = JSON.parse(readFileSync(folder.at('config.json'), 'utf8')) as object;
    expect(json).toMatchObject({
      architectures: ['MambaForCausalLM'],
      model_type: 'mamba',
      vocab_size: 256,
      dtype: 'float32',
    });
    expect([...model.parameters.keys()].slice(0, 2)).toEqual([
      'backbone.embeddings.weight',
      'backbone.layers.0.norm.weight',
    ]);
    const again = await AutoModelForCausalLM.fromPretrained(folder.path);
    expect(await logitsOf(again, [1, 2, 3])).toEqual(await logitsOf(model, [1, 2, 3]));
    for (const made of [model, again]) made.dispose();
  });

  it('is what examples/original-checkpoint.ts loads, runs and saves', async () => {
    const root = join(__dirname, '..', '..');
    const script = [
      join(__dirname, '..', 'typescript.cjs'),
      join(root, 'examples', 'original-checkpoint.ts'),
    ];
    const args = [join(FIXTURES, 'mamba-ssm-bin'), folder.at('made')];
    const out = execFileSync(process.execPath, ['--require', ...script, ...args], { encoding: 'utf8' });
    expect(out).toMatch(/^mamba, 114560 parameters\n(\d+ ){15}\d+\n$/);
    const model = await AutoModelForCausalLM.fromPretrained(folder.at('made'));
    expect(model.numParameters).toBe(114560);
    model.dispose();
  });

  it('is refused when its parameters are not those of its configuration', async () => {
    cpSync(join(FIXTURES, 'mamba-ssm-bin'), folder.path, { recursive: true });
    const before = inUse();
    for (const [change, message] of [
      [{ vocab_size: 300 }, /backbone.embeddings.weight is F32\[256,64\], expected \[304,64\]/],
      [{ n_layer: 4 }, /parameter backbone.layers.3.norm.weight is missing/],
      [{ n_layer: 2 }, /no layer uses backbone.layers.2/],
    ] as const) {
      writeFileSync(folder.at('config.json'), JSON.stringify({ ...original, ...change }));
      await expect(AutoModelForCausalLM.fromPretrained(folder.path)).rejects.toThrow(message);
    }
    expect(inUse()).toEqual(before);
  });
});
