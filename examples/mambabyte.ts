// A model of bytes: text in and out, any bytes in and out, and how well it predicts a text. Argument: a folder or
// hub id; without one, a small model of random weights, which writes nonsense.
import { AutoModelForCausalLM, evaluate, preset } from '../lib'; // elsewhere: from 'selective-scan'

async function main(name?: string): Promise<void> {
  const model = name
    ? // The authors' checkpoints do not say that their tokens are bytes; bytes: true does.
      await AutoModelForCausalLM.fromPretrained(name, { bytes: true })
    : await AutoModelForCausalLM.fromConfig({
        ...preset('mambabyte-353m'),
        hidden_size: 64,
        num_hidden_layers: 2,
      });

  // Text comes in whole characters, also where they are several bytes; `bytes` are exact.
  const bytes: number[] = [];
  for await (const event of model.generate('Once upon a time ', {
    maxNewTokens: 40,
    temperature: 0.8,
    seed: 1,
  })) {
    process.stdout.write(event.text);
    bytes.push(...event.bytes!);
  }
  console.log(`\n${bytes.length} bytes`);

  // A prompt may be bytes that are no text at all.
  const header = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);
  const [completion] = await model.generate(header, { maxNewTokens: 8 }).completions();
  console.log(Buffer.from(completion!.bytes!).toString('hex'));

  const { bitsPerByte, bytes: length } = await evaluate(
    model,
    'It was the best of times, it was the worst of times.',
  );
  console.log(`${bitsPerByte.toFixed(3)} bits per byte of ${length} bytes`);
  model.dispose();
}

void main(process.argv[2]);
