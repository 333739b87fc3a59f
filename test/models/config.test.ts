import { AutoModelForCausalLM, DeviceError, FormatError } from '../../lib';
import { inUse, tinyConfig } from './checkpoints';

const build = (change: object, without: readonly string[] = []) => {
  const json = Object.fromEntries(
    Object.entries({ ...tinyConfig, ...change }).filter(([name]) => !without.includes(name)),
  );
  return AutoModelForCausalLM.fromConfig(json);
};

describe('config.json', () => {
  const refused: [object, RegExp][] = [
    [{ model_type: 'llama' }, /config\.json: model_type is "llama", expected one of: mamba/],
    [{ model_type: 7 }, /model_type is 7, expected one of/],
    ...[
      'vocab_size',
      'hidden_size',
      'num_hidden_layers',
      'state_size',
      'conv_kernel',
      'time_step_rank',
    ].flatMap((name) =>
      [0, -1, 1.5, '8', true, 2 ** 31, [8]].map((value): [object, RegExp] => [
        { [name]: value },
        new RegExp(`config\\.json: ${name} is .*, expected a whole number, 1 or more`),
      ]),
    ),
    ...[
      'expand',
      'time_step_min',
      'time_step_max',
      'time_step_floor',
      'time_step_scale',
      'initializer_range',
    ].flatMap((name) =>
      [0, -2, '2', false, Infinity].map((value): [object, RegExp] => [
        { [name]: value },
        new RegExp(`${name} is .*, expected a positive number`),
      ]),
    ),
    [{ layer_norm_epsilon: -1e-5 }, /layer_norm_epsilon is -0\.00001, expected a positive number/],
    [{ layer_norm_epsilon: 0 }, /layer_norm_epsilon is 0, expected a positive number/],
    [{ layer_norm_epsilon: 1e18 }, /layer_norm_epsilon is 1000000000000000000, expected at most 1/],
    [
      { model_type: 'moe_mamba', capacity_factor: 1e18 },
      /capacity_factor is .*, expected at most num_experts/,
    ],
    [{ expand: 0.01 }, /expand is 0\.01/],
    ...[
      'use_bias',
      'use_conv_bias',
      'tie_word_embeddings',
      'residual_in_fp32',
      'rescale_prenorm_residual',
    ].map((name): [object, RegExp] => [{ [name]: 1 }, new RegExp(`${name} is 1, expected true or false`)]),
    [{ hidden_act: 'gelu' }, /hidden_act is "gelu", expected "silu" or "swish"/],
    [
      { time_step_init_scheme: 'normal' },
      /time_step_init_scheme is "normal", expected "random" or "constant"/,
    ],
    [{ time_step_rank: 'large' }, /time_step_rank is "large"/],
    [{ eos_token_id: -1 }, /eos_token_id is -1, expected a token id or a list of them/],
    [{ eos_token_id: [1, 'x'] }, /eos_token_id is an array/],
    [{ eos_token_id: 256 }, /eos_token_id holds 256, expected token ids below the vocabulary's size, 256/],
    [{ eos_token_id: [2, 1e9] }, /eos_token_id holds 1000000000, expected token ids below/],
    [{ pad_token_id: 256 }, /pad_token_id holds 256, expected token ids below/],
    [{ pad_token_id: [1] }, /pad_token_id is an array, expected a token id/],
    [{ pad_token_id: 0.5 }, /pad_token_id is 0\.5, expected a token id/],
    [{ bos_token_id: {} }, /bos_token_id is an object, expected a token id/],
    [{ architectures: 'Mamba' }, /architectures is "Mamba", expected a list of names/],
    [{ auto_map: [] }, /auto_map is an array, expected an object/],
    [{ torch_dtype: 16 }, /torch_dtype is 16, expected a name/],
    [{ use_cache: 'yes' }, /use_cache is "yes", expected true or false/],
    [{ use_mambapy: 1 }, /use_mambapy is 1, expected true or false/],
    [{ time_step_min: 0.2 }, /time_step_min is 0\.2, expected at most time_step_max, 0\.1/],
    ...['time_step_max', 'initializer_range', 'expand'].flatMap((name) =>
      [1e308, 1e-308, NaN].map((value): [object, RegExp] => [
        { [name]: value },
        new RegExp(`${name} is .*, expected a positive number that f32 can hold`),
      ]),
    ),
    [{ initializer_range: 3e38 }, /initializer_range is 3e\+38, expected at most 1000/],
    [{ time_step_scale: 1e4 }, /time_step_scale is 10000, expected at most 1000/],
    [{ expand: 1e30 }, /expand is 1e\+30, expected 0\.015625 to 33554431\.98/],
    ...[10_001, 1e5, 1e9].map((layers): [object, RegExp] => [
      { num_hidden_layers: layers },
      new RegExp(`num_hidden_layers is ${layers}, expected at most 10000 layers`),
    ]),
    [
      { model_type: 'moe_mamba', num_hidden_layers: 1e9 },
      /num_hidden_layers is 1000000000, expected at most/,
    ],
    [{ model_type: 's4d', num_hidden_layers: 1e9 }, /num_hidden_layers is 1000000000, expected at most/],
    [
      { model_type: 'moe_mamba', num_hidden_layers: 2, num_experts: 1e9 },
      /num_experts is 1000000000, expected at most 100000 in all of the 2 layers/,
    ],
    [{ model_type: 'moe_mamba', router_jitter: 1 }, /router_jitter is 1, expected a number from 0, below 1/],
    [{ model_type: 'blackmamba' }, /expected one of: .*s4d; files of blackmamba and state-spaces have none/],
    [{ intermediate_size: 100 }, /intermediate_size is 100, expected 128/],
    [{ d_inner: 100 }, /d_inner is 100, expected 128/],
    [{ d_model: 65 }, /d_model is 65, expected 64/],
    [{ n_layer: 5 }, /n_layer is 5, expected 2/],
    [{ rms_norm: false }, /rms_norm is false, expected true/],
    [{ ssm_cfg: { layer: 'Mamba2' } }, /ssm_cfg is an object, expected \{\}/],
    [{ num_heads: 8 }, /there is no field num_heads in this kind of model/],
    [{ quantization_config: {} }, /there is no field quantization_config/],
  ];
  it.each(refused)('with %j is refused', async (change, message) => {
    const before = inUse();
    const failure = build(change);
    await expect(failure).rejects.toThrow(message);
    await expect(failure).rejects.toBeInstanceOf(FormatError);
    expect(inUse()).toEqual(before);
  });

  it('without model_type is refused', async () => {
    await expect(build({}, ['model_type'])).rejects.toThrow(/model_type is absent, expected one of: mamba/);
  });

  it('of a model that no machine holds is refused', async () => {
    const before = inUse();
    await expect(build({ vocab_size: 2 ** 31 - 1, hidden_size: 1024 })).rejects.toBeInstanceOf(DeviceError);
    await expect(build({ vocab_size: 2 ** 31 - 1, hidden_size: 2 ** 24 })).rejects.toThrow(
      /expected at most/,
    );
    expect(inUse()).toEqual(before);
  });

  const accepted: [object, readonly string[]][] = [
    [{ time_step_rank: 'auto' }, []],
    [{ hidden_act: 'swish' }, []],
    [{ residual_in_fp32: false, rescale_prenorm_residual: true }, []],
    [{ intermediate_size: 128, d_inner: 128, d_model: 64, n_layer: 2, rms_norm: true, ssm_cfg: {} }, []],
    [
      { use_mambapy: true, use_associative_scan: false, fused_add_norm: true, pad_vocab_size_multiple: 8 },
      [],
    ],
    [
      {
        architectures: ['MambaForCausalLM'],
        torch_dtype: 'float32',
        transformers_version: '4.39.0',
        use_cache: true,
      },
      [],
    ],
    [{ eos_token_id: [2, 3] }, []],
    [{ eos_token_id: null }, []],
    [{}, ['eos_token_id', 'state_size']],
  ];
  it.each(accepted)('with %j and without %j is understood', async (change, without) => {
    const model = await build(change, without);
    expect(model.parameters.get('backbone.layers.0.mixer.dt_proj.weight')!.shape).toEqual([128, 4]);
    model.dispose();
  });

  it('keeps what it does not need for saving', async () => {
    const model = await build({ bos_token_id: 9, _name_or_path: 'x' });
    expect(model.config.json).toMatchObject({ bos_token_id: 9, _name_or_path: 'x' });
    model.dispose();
  });
});
