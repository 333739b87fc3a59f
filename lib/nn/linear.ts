import { matmul, matmulAdd } from '../ops/matmul';
import type { Tensor, DType } from '../tensor';
import { linear, type Init } from './init';
import type { Weights } from './weights';

/** `y = x · Wᵀ + b`, as the parameters `weight` and `bias`. */
export class Linear {
  readonly weight: Tensor; // [outputs, inputs]
  readonly bias: Tensor | undefined; // [outputs]

  constructor(
    weights: Weights,
    inputs: number,
    outputs: number,
    {
      bias,
      init = linear(inputs),
      biasInit = linear(inputs),
    }: { bias: boolean; init?: Init; biasInit?: Init },
  ) {
    this.weight = weights.matrix('weight', [outputs, inputs], init);
    this.bias = bias ? weights.get('bias', [outputs], biasInit) : undefined;
  }

  forward(x: Tensor, dtype?: DType): Tensor {
    return matmul({ x, weight: this.weight, bias: this.bias, dtype });
  }

  /** `residual + forward(x)`, in f32. */
  addTo(residual: Tensor, x: Tensor): Tensor {
    return matmulAdd({ x, weight: this.weight, bias: this.bias, residual });
  }
}
