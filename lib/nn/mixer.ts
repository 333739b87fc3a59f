import type { Tensor } from '../tensor';
import type { Routing } from './moe';

/** Which rows of a packed batch belong together, and where their states live. */
export interface Batch {
  readonly offsets: Tensor; // i32[s+1]
  readonly slots: Tensor; // i32[s]
  /** Rows that are padding in the middle of a sequence: the mixers see no input there. */
  readonly muted?: Tensor; // i32[m]
  /** Where sequences start from nothing and leave nothing: tokens of the longest one. */
  readonly longest?: number;
  /** Sees what each router did, layer by layer; disposes it. */
  readonly router?: ((routing: Routing) => void) | undefined;
  /** i32[routers, 2], for the routers' noise: says that this is training. */
  readonly seeds?: Tensor;
}

/** The sizes of a Mamba mixer, in the paper's names. */
export interface MixerConfig {
  readonly dModel: number;
  readonly dInner: number;
  readonly dState: number;
  readonly dConv: number;
  readonly dtRank: number;
  readonly bias: boolean;
  readonly convBias: boolean;
  readonly dtMin: number;
  readonly dtMax: number;
  readonly dtFloor: number;
  readonly dtScale: number;
  readonly dtInit: 'random' | 'constant';
  /** Standard deviation of `out_proj` and `in_proj` when they start afresh. */
  readonly initializerRange: number;
  /** FalconMamba: B, C and the low-rank delta are normalised (RMS, no weights) with this epsilon. */
  readonly rmsEps?: number;
}

/** What a layer is given: the residual, and what the layer before adds to it, if there is one. */
export interface LayerInput {
  readonly x: Tensor | undefined; // [t, dModel]
  readonly residual: Tensor; // f32[t, dModel]
  readonly norm: Tensor; // f32[dModel]
  readonly eps: number;
}
