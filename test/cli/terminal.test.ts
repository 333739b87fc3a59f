import { inFlags } from '../../lib/cli/exit';
import { oneLine, print, printable, printBytes, size, table } from '../../lib/cli/terminal';

describe('printable', () => {
  it('takes out what a terminal would obey', () => {
    expect(printable('a\x1b[2Jb\x07c\x9b31md\x7f\r')).toBe('a[2Jbc31md');
  });
  it('keeps line breaks, tabs and every letter', () => {
    expect(printable('é\t日本\n👍')).toBe('é\t日本\n👍');
  });
});

describe('print', () => {
  it.each([
    ['ENOSPC', 'stdout cannot be written; the disk is full'],
    ['EIO', 'stdout cannot be written; EIO: system'],
    ['EPIPE', 'EPIPE: system'],
  ])('tells of %s', async (code, message) => {
    const write = jest
      .spyOn(process.stdout, 'write')
      .mockImplementation(((_: string, done: (error: Error) => void) =>
        done(Object.assign(new Error(`${code}: system`), { code }))) as never);
    const both = await Promise.allSettled([print('x'), printBytes(new Uint8Array(1))]);
    write.mockRestore();
    for (const each of both) expect(each).toMatchObject({ reason: { message } });
  });
});

describe('oneLine', () => {
  it('spells control characters out', () => {
    expect(oneLine('weight\n\x1b[31m')).toBe('weight\\x0a\\x1b[31m');
  });
});

describe('table', () => {
  it('puts columns under each other', () => {
    const rows = [
      ['name', 'size'],
      ['a', '10'],
    ];
    expect(table(rows, [1])).toBe('  name  size\n  a       10\n');
    expect(table([])).toBe('');
  });
});

describe('size', () => {
  it.each([
    [0, '0 bytes'],
    [1023, '1023 bytes'],
    [1536, '1.50 KiB'],
    [20 * 1024 ** 2, '20.0 MiB'],
    [5 * 1024 ** 4, '5.00 TiB'],
  ])('%d is %s', (bytes, expected) => expect(size(bytes)).toBe(expected));
});

describe('inFlags', () => {
  it.each([
    ['generate: topP is 2, expected a number above 0', '--top-p is 2, expected a number above 0'],
    [
      'generate: minNewTokens is 5, expected at most maxNewTokens, which is 3',
      '--min-new-tokens is 5, expected at most --max-new-tokens, which is 3',
    ],
    ['evaluate: stride needs context, which is missing', '--stride needs --context, which is missing'],
    [
      'evaluate: stride is 9, expected a whole number from 1 to context, which is 8',
      '--stride is 9, expected a whole number from 1 to --context, which is 8',
    ],
    ['verify: seed is 70000, expected', '--seed is 70000, expected'],
    [
      'data: sample: the logits of row 0 are not finite',
      "the model's logits are not finite; selective-scan inspect --check names weights that are not",
    ],
    [
      'Trainer.fromConfig: minimumLearningRate is 2, expected at most learningRate, which is 1',
      '--minimum-learning-rate is 2, expected at most --learning-rate, which is 1',
    ],
    ['generate: maxNewTokens is 0, expected 1', '--max-new-tokens is 0, expected 1'],
    ['generate: eosTokenId holds -1, expected token ids', '--eos holds -1, expected token ids'],
    [
      'generate: prompt is empty, expected at least one token',
      'prompt is empty, expected at least one token',
    ],
    ['setThreads: count is 0, expected 1', '--threads is 0, expected 1'],
    ["device: name is 'x', expected cpu", "--device is 'x', expected cpu"],
    ["device: SELECTIVE_SCAN_DEVICE is 'x', expected", "SELECTIVE_SCAN_DEVICE is 'x', expected"],
    ["device: 'cuda' is not available", "device 'cuda' is not available"],
    ['/models/a/config.json: file does not exist', '/models/a/config.json: file does not exist'],
  ])('%s', (message, expected) => expect(inFlags(message)).toBe(expected));
});
