import { child } from './child';
import { AutoModelForCausalLM, DeviceError, device } from '../lib';

it.each([
  ['SELECTIVE_SCAN_LEVEL', 'avx2', 'expected v4, v3 or base'],
  ['SELECTIVE_SCAN_THREADS', '0', 'expected a whole number, 1 or more'],
  ['SELECTIVE_SCAN_THREADS', 'many', 'expected a whole number, 1 or more'],
])('%s=%s is refused by name', async (name, value, wanted) => {
  const script = `try { require('./lib').device('cpu'); } catch (error) { console.log(error.message); }`;
  const { stdout } = await child(['-e', script], { [name]: value });
  expect(stdout).toBe(`device: ${name} is '${value}', ${wanted}\n`);
});

it('a state of more sequences than memory holds is a DeviceError, and the process goes on', async () => {
  const config = { model_type: 'mamba', hidden_size: 16, num_hidden_layers: 1, vocab_size: 32 };
  const model = await AutoModelForCausalLM.fromConfig(config);
  const before = device().memoryUsage().tensors;
  expect(() => model.createState(1e9)).toThrow(DeviceError);
  expect(device().memoryUsage().tensors).toBe(before);
  expect(await model.generate([1], { maxNewTokens: 2 }).completions()).toHaveLength(1);
  model.dispose();
});
