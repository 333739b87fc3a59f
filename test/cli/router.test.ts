import { readFileSync } from 'node:fs';
import { AutoModelForCausalLM } from '../../lib';
import { temporaryFolder } from '../io/folder';
import { run, TEXT_MODEL } from './run';

const folder = temporaryFolder();

describe('inspect --router', () => {
  it('draws what each expert has seen', async () => {
    const model = await AutoModelForCausalLM.fromConfig({
      model_type: 'moe_mamba',
      vocab_size: 64,
      hidden_size: 16,
      num_hidden_layers: 4,
      num_experts: 3,
    });
    await model.savePretrained(folder.at('model'));
    model.dispose();
    const svg = folder.at('load.svg');
    const arguments_ = ['inspect', folder.at('model'), '--router', svg, '--ids'];
    const { code, stdout } = await run([...arguments_, '--prompt', '1,2,3,4,5']);
    expect(code).toBe(0);
    const rows = stdout.trim().split('\n');
    expect(rows).toHaveLength(2);
    for (const row of rows) {
      const [, ...counts] = /(\d+) (\d+) (\d+) +entropy \d+ %$/.exec(row)!;
      expect(counts.reduce((sum, count) => sum + Number(count), 0)).toBe(5);
    }
    const drawing = readFileSync(svg, 'utf8');
    expect(drawing).toMatch(/^<svg [\s\S]*<\/svg>\n$/);
    expect(drawing.match(/fill="#0072b2"/g)).toHaveLength(6);
    // The text above three experts is wider than they are.
    const [, width] = /^<svg .*? width="(\d+)"/.exec(drawing)!;
    const [, subtitle] = /y="54"[^>]*>([^<]*)</.exec(drawing)!;
    expect(Number(width)).toBeGreaterThan(24 + 7.2 * subtitle!.length);
  });

  it('says what is missing', async () => {
    const svg = folder.at('none.svg');
    const without = await run(['inspect', TEXT_MODEL, '--router', svg]);
    expect(without).toMatchObject({ code: 2 });
    expect(without.stderr).toContain('--router needs a prompt');
    const dense = await run(['inspect', TEXT_MODEL, '--router', svg, '--prompt', 'a']);
    expect(dense).toMatchObject({ code: 2 });
    expect(dense.stderr).toContain('the model has no experts');
    const late = await run(['inspect', TEXT_MODEL, '--router', folder.at('none', 'x.svg'), '--prompt', 'a']);
    expect(late).toMatchObject({ code: 2 });
    expect(late.stderr).toContain(`--router: folder ${folder.at('none')} does not exist`);
    const alone = await run(['inspect', TEXT_MODEL, '--prompt', 'a']);
    expect(alone).toMatchObject({ code: 2, stdout: '' });
    expect(alone.stderr).toContain('--prompt is for what --router runs, which is missing');
  });
});
