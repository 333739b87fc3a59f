import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { AutoModelForCausalLM } from '../../lib';
import { bits, FIXTURES, inUse, logitsOf, open, randomIds, relativeError, rowsOf, take } from './checkpoints';

const json = JSON.parse(readFileSync(join(FIXTURES, 'falcon-mamba-tiny', 'config.json'), 'utf8')) as object;

describe('FalconMamba', () => {
  it('is a Mamba with norms inside', async () => {
    const model = await open('falcon-mamba-tiny');
    expect(model.config).toMatchObject({ modelType: 'falcon_mamba', mixer: { rmsEps: 1e-6 } });
    expect([...model.parameters.keys()]).not.toContainEqual(expect.stringMatching(/(b|c|dt)_?(layer)?norm/));
    model.dispose();
  });

  it('has other logits than the Mamba of the same weights', async () => {
    const { mixer_rms_eps: _, ...rest } = json as Record<string, unknown>;
    const falcon = await AutoModelForCausalLM.fromConfig(
      { ...rest, model_type: 'falcon_mamba' },
      { seed: 3 },
    );
    const mamba = await AutoModelForCausalLM.fromConfig({ ...rest, model_type: 'mamba' }, { seed: 3 });
    const ids = randomIds(9);
    const [ours, theirs] = [await logitsOf(falcon, ids), await logitsOf(mamba, ids)];
    expect(relativeError(ours, theirs)).toBeGreaterThan(1e-3);
    for (const model of [falcon, mamba]) model.dispose();
  });

  it('continues a state as if it had seen all at once, and packed sequences one by one', async () => {
    const model = await open('falcon-mamba-tiny');
    const ids = randomIds(41);
    const whole = rowsOf(await logitsOf(model, ids), 256);
    const state = model.createState();
    await take((await model.forward({ inputIds: ids.subarray(0, 17), state })).logits);
    const rest = rowsOf(await take((await model.forward({ inputIds: ids.subarray(17), state })).logits), 256);
    rest.forEach((row, i) => expect(relativeError(row, whole[17 + i]!)).toBeLessThan(1e-5));
    state.dispose();
    const both = await take((await model.forward({ inputIds: [ids, ids.subarray(5)] })).logits);
    expect(
      relativeError(
        both.subarray(0, 41 * 256),
        whole.flatMap((row) => [...row]),
      ),
    ).toBeLessThan(1e-5);
    model.dispose();
  });

  it('takes intermediate_size over expand, as transformers does', async () => {
    const change = { expand: 16, intermediate_size: 96, num_hidden_layers: 1 };
    const model = await AutoModelForCausalLM.fromConfig({ ...json, ...change });
    expect(model.config).toMatchObject({ mixer: { dInner: 96 } });
    expect(model.parameters.get('backbone.layers.0.mixer.D')!.shape).toEqual([96]);
    model.dispose();
  });

  it('leaves nothing behind', async () => {
    const before = inUse();
    const model = await open('falcon-mamba-tiny');
    expect(bits(await logitsOf(model, [1, 2]))).toBe(bits(await logitsOf(model, [1, 2])));
    model.dispose();
    expect(inUse()).toEqual(before);
  });

  it.each<[object, RegExp]>([
    [{ mixer_rms_eps: 0 }, /mixer_rms_eps is 0, expected a positive number/],
    [{ mixer_rms_eps: '1e-6' }, /mixer_rms_eps is "1e-6", expected a positive number/],
    [{ intermediate_size: 1.5 }, /intermediate_size is 1.5, expected a whole number/],
    [{ state_size: 0 }, /state_size is 0, expected a whole number/],
    [{ n_groups: 2 }, /there is no field n_groups/],
  ])('refuses %p', async (change, message) => {
    await expect(AutoModelForCausalLM.fromConfig({ ...json, ...change })).rejects.toThrow(message);
  });

  it('is not what a Mamba may be told', async () => {
    const mamba = { ...json, model_type: 'mamba' };
    await expect(AutoModelForCausalLM.fromConfig(mamba)).rejects.toThrow(/there is no field mixer_rms_eps/);
  });
});
