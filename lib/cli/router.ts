import { writeAtomically, writeFully } from '../io/atomic';
import { AutoModelForCausalLM } from '../generation/causal-lm';
import type { LoadOptions } from '../nn/weights';
import type { Tensor } from '../tensor';
import { UsageError } from './exit';
import { parseIds } from './prompt';
import { table } from './terminal';

export interface RouterFlags {
  /** Where the drawing goes. */
  readonly router: string;
  readonly prompt?: string;
  readonly ids?: boolean;
}

/** What one layer's experts saw of a prompt. */
interface Loads {
  readonly load: readonly number[];
  /** As a share of the most that it could be. */
  readonly entropy: number;
}

const cell = 34;
/** The mean width of a letter in a text of 13 pixels, on the safe side. */
const letter = 7.6;
const left = 90;
const top = 84;
const font = 'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"';

/** Runs a prompt through the model in `folder` and draws which experts its tokens went to. */
export async function showRouter(folder: string, flags: RouterFlags, options: LoadOptions): Promise<string> {
  if (flags.prompt === undefined)
    throw new UsageError('--router needs a prompt to run: give it with --prompt');
  const model = await AutoModelForCausalLM.fromPretrained(folder, options);
  try {
    if (!flags.ids && !model.tokenizer)
      throw new UsageError('the model has no tokenizer: give token ids, and --ids');
    const ids = flags.ids ? parseIds(flags.prompt) : model.tokenizer!.encode(flags.prompt);
    const { logits, router } = await model.forward({ inputIds: [ids], outputRouter: true, logitsToKeep: 1 });
    const layers: Loads[] = [];
    for (const { load, entropy } of router!) {
      const counts = [...((await load.data()) as Int32Array)];
      const [nats] = await entropy.data();
      layers.push({ load: counts, entropy: counts.length > 1 ? nats! / Math.log(counts.length) : 1 });
    }
    for (const tensor of [logits, ...router!.flatMap((each) => Object.values(each) as Tensor[])])
      tensor.dispose();
    if (layers.length === 0) throw new UsageError('the model has no experts, so no router to draw');
    const svg = draw(layers, ids.length);
    await writeAtomically(flags.router, (file) => writeFully(file, Buffer.from(svg)));
    return describe(layers);
  } finally {
    model.dispose();
  }
}

function describe(layers: readonly Loads[]): string {
  const rows = layers.map(({ load, entropy }, i) => [
    `router ${i}`,
    load.join(' '),
    `entropy ${(100 * entropy).toFixed(0)} %`,
  ]);
  return table(rows);
}

/** A square for each expert of each router: the darker, the more tokens it has seen. */
function draw(layers: readonly Loads[], tokens: number): string {
  const experts = Math.max(...layers.map(({ load }) => load.length));
  const height = top + layers.length * cell + 24;
  const text = (x: number, y: number, content: string, attributes = '') =>
    `<text x="${x}" y="${y}" fill="#222222" ${attributes}>${content}</text>`;
  const subtitle = `${tokens} tokens; at the right the load's entropy, as a share of the most`;
  // Few experts are narrower than the text above them, whose letters are at most so wide in any of the fonts.
  const width = Math.max(48 + Math.ceil(letter * subtitle.length), left + experts * cell + 110);
  const parts = [
    `<rect width="${width}" height="${height}" fill="#ffffff"/>`,
    text(24, 32, 'Tokens per expert', 'font-size="18" font-weight="600"'),
    text(24, 54, subtitle),
  ];
  for (let j = 0; j < experts; j++)
    parts.push(text(left + (j + 0.5) * cell, top - 8, String(j), 'text-anchor="middle"'));
  layers.forEach(({ load, entropy }, i) => {
    const y = top + i * cell;
    parts.push(text(left - 10, y + cell / 2 + 5, `router ${i}`, 'text-anchor="end"'));
    const most = Math.max(...load, 1);
    load.forEach((count, j) => {
      const share = count / most;
      const x = left + j * cell;
      parts.push(
        `<rect x="${x + 1}" y="${y + 1}" width="${cell - 2}" height="${cell - 2}" fill="#0072b2" fill-opacity="${(0.06 + 0.94 * share).toFixed(3)}"/>`,
        `<text x="${x + cell / 2}" y="${y + cell / 2 + 4}" font-size="11" text-anchor="middle" fill="${share > 0.5 ? '#ffffff' : '#222222'}">${count}</text>`,
      );
    });
    parts.push(text(left + experts * cell + 12, y + cell / 2 + 5, `${(100 * entropy).toFixed(0)} %`));
  });
  const size = `width="${width}" height="${height}" viewBox="0 0 ${width} ${height}"`;
  return `<svg xmlns="http://www.w3.org/2000/svg" ${size} ${font} font-size="13">\n${parts.join('\n')}\n</svg>\n`;
}
