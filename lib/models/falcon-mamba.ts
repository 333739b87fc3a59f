import type { Family } from './family';
import { Fields } from './fields';
import { mamba, type MambaConfig } from './mamba';

/** What transformers' `FalconMambaConfig` assumes where it differs from `MambaConfig`. */
const defaults = { vocab_size: 65024, hidden_size: 4096, num_hidden_layers: 64 };

/**
 * FalconMamba (Zuo et al. 2024) as transformers' `FalconMambaForCausalLM` writes it: Mamba whose mixers
 * normalise B, C and the low-rank delta, without parameters.
 */
export const falconMamba: Family<MambaConfig> = {
  type: 'falcon_mamba',
  config(json) {
    const { mixer_rms_eps, use_falcon_mambapy: _, ...shared } = json;
    const rmsEps = new Fields({ mixer_rms_eps }).positive('mixer_rms_eps', 1e-6);
    const config = mamba.config({ ...defaults, ...shared, model_type: 'mamba' });
    return { ...config, modelType: 'falcon_mamba', json, mixer: { ...config.mixer, rmsEps } };
  },
  build: (config, weights, activations) => mamba.build(config, weights, activations),
};
