import type { Family } from './family';
import { Fields } from './fields';
import { mamba, type MambaConfig } from './mamba';

/**
 * FalconMamba (Zuo et al. 2024) as transformers' `FalconMambaForCausalLM` writes it: Mamba whose mixers
 * normalise B, C and the low-rank delta, without parameters.
 */
export const falconMamba: Family<MambaConfig> = {
  type: 'falcon_mamba',
  config(json) {
    const { mixer_rms_eps, intermediate_size, use_falcon_mambapy: _, ...shared } = json;
    const own = new Fields({ mixer_rms_eps, intermediate_size });
    const rmsEps = own.epsilon('mixer_rms_eps', 1e-6);
    const config = mamba.config({ ...shared, model_type: 'mamba' });
    // The two may disagree, and transformers then takes intermediate_size.
    const dInner = own.whole('intermediate_size', config.mixer.dInner);
    return { ...config, modelType: 'falcon_mamba', json, mixer: { ...config.mixer, dInner, rmsEps } };
  },
  build: (config, weights, dtypes) => mamba.build(config, weights, dtypes),
};
