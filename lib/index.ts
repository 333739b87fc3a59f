/** State-space language models in Node: fused selective-scan kernels, Mamba models, generation. */
export { AutoModelForCausalLM, CausalLM, Generation } from './generation/causal-lm';
export type { Completion, ModelOptions, PretrainedOptions } from './generation/causal-lm';
export type { FinishReason, GeneratedToken } from './generation/generate';
export type { Prompt } from './generation/prompts';
export type { Drafter, GenerateOptions, PerPrompt } from './generation/options';
export type { Speculation } from './generation/speculation';
export type { ForwardInput, ForwardOutput } from './models/forward';
export type { RouterOutput } from './models/router';
export { moeMambaPresets } from './models/moe-mamba';
export { preset, presets } from './models/presets';
export type { Ids, IdsBatch } from './models/inputs';
export { State } from './models/state';
export { ByteTokenizer } from './io/bytes';
export type { Codec } from './io/codec';
export { Tokenizer } from './io/tokenizer';
export { evaluate } from './evaluation/evaluate';
export type { EvaluateOptions, Evaluation } from './evaluation/evaluate';
export { device, Device, setThreads, threads } from './device';
export type { DeviceInfo } from './device';
export { keep, scope, Tensor } from './tensor';
export type { DType, TensorLike, TypedArray } from './tensor';
export { capture, Graph } from './capture';
export { DeviceError, DisposedError, FormatError, LoadError, TrainingError } from './errors';
export { rmsNorm, addRmsNorm, normMatmul, layerNorm } from './ops/norm';
export { matmul, matmulAdd, embedding } from './ops/matmul';
export { selectiveScan } from './ops/selective-scan';
export type { SelectiveScanInput, SelectiveScanOutput } from './ops/selective-scan';
export { selectiveScanPacked, causalConv1dPacked, convMatmul, mambaStep, mambaLayerStep } from './ops/scan';
export { S4D } from './nn/s4d-layer';
export type { S4DInput, S4DOptions, S4DOutput, S4DPacked } from './nn/s4d-layer';
export type { S4DMode } from './nn/s4d-cost';
export { fftConv, s4dDiscretize, s4dKernel, s4dScan } from './ops/s4d';
export { add, cast, copySlots, negExp, takeRows, zeroSlots } from './ops/elementwise';
export { crossEntropy } from './ops/loss';
export { sample } from './ops/sample';
export {
  jitter,
  limitExperts,
  normRoute,
  routeExperts,
  routerStatistics,
  sinkhorn,
  sortExperts,
} from './ops/routing';
export { activations } from './ops/activations';
export {
  activate,
  expertCombine,
  expertDown,
  expertLayerStep,
  expertMatmul,
  expertSum,
  expertUp,
  normRouteUp,
} from './ops/experts';
export { ops } from './op';
export { verify } from './verify/verify';
export type { VerifyCheck, VerifyRow } from './verify/verify';
export { grad, noGrad } from './autograd/grad';
export type { GradOptions, Gradients } from './autograd/grad';
export { remat } from './autograd/remat';
export { Trainer } from './training/trainer';
export type { TrainerOptions, TrainingStep } from './training/trainer';
export type { TrainingOptions } from './training/options';
export type { RouterReport } from './training/routers';
export type { BatchSource, TrainingBatch } from './training/batch';
export { rowsToBatch } from './training/batch';
export { Corpus } from './training/corpus';
export type { CorpusOptions, CorpusPart, HeldOut, TokenFormat } from './training/corpus';
export { writeTokens } from './training/token-file';
export type { WrittenTokens } from './training/token-file';
export { Windows } from './training/windows';
export type { WindowOptions } from './training/windows';
export { train } from './training/train';
export type { TrainOptions, TrainResult } from './training/train-options';
export type { EvaluationRecord, StepRecord } from './training/log';
export { loadCheckpoint, saveCheckpoint } from './training/checkpoints';
