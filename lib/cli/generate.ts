import { Command, Option } from 'commander';
import { setThreads } from '../device';
import { AutoModelForCausalLM, type CausalLM } from '../generation/causal-lm';
import { rowOptions, stopStrings, type Drafter, type GenerateOptions } from '../generation/options';
import { addHubOptions, bigint, modelArgument, number, several } from './arguments';
import { continueText, type Flags } from './continue-text';
import { aboutFlag, interruption } from './exit';
import { checkOutput } from './output-file';
import { Progress } from './progress';
import { readNamed, readPrompt } from './prompt';

const examples = `
Without a sampling option the likeliest token is always taken; with one, tokens
are drawn at random.

Examples:
  $ selective-scan generate ./mamba-130m "Once upon a time"
  $ selective-scan generate state-spaces/mamba-130m-hf -f prompt.txt -t 0.8
  $ echo "The capital of France is" | selective-scan generate ./mamba-130m -n 5
  $ selective-scan generate ./mambabyte-353m --raw < in.bin > out.bin
  $ selective-scan generate ./mamba-2.8b "A long text:" --drafter ./mamba-130m
  $ selective-scan generate ./mamba-130m "Dear diary," --save-state diary.state
  $ selective-scan generate ./mamba-130m " Then" --load-state diary.state

Exit codes: 0 fine, 1 failed, 2 wrong arguments, 130 ended by Ctrl-C.`;

export function generateCommand(): Command {
  const command = new Command('generate')
    .description('Continue a text. The new text is written to stdout as it comes, everything else to stderr.')
    .argument('<model>', modelArgument)
    .argument('[prompt]', 'the text to continue; without it, or with -, it is read from stdin')
    .optionsGroup('Input and output:')
    .option('-f, --file <path>', 'read the prompt from a file')
    .option('--ids', 'the prompt is token ids (1,2,3), and ids are written: for models without a tokenizer')
    .option('--bytes', 'the tokens of this model are bytes, though its config.json does not say so')
    .addOption(
      new Option(
        '--raw',
        'read and write bytes exactly as they are, none added: for models of bytes',
      ).conflicts(['ids', 'json']),
    )
    .option('--echo', 'write the prompt too')
    .addOption(
      new Option('--json', 'write one JSON object a line: each token, then a summary').conflicts('echo'),
    )
    .option('--stats', 'write the speed to stderr at the end')
    .optionsGroup('Length:')
    .option('-n, --max-new-tokens <n>', 'at most so many tokens (default: 128)', number)
    .option('--min-new-tokens <n>', 'no end of text before so many', number)
    .option('--stop <text>', 'end before this text; can be repeated', several(String))
    .addOption(
      new Option(
        '--eos <id>',
        "a token that ends the text, instead of the model's own; can be repeated",
      ).argParser(several(number)),
    )
    .addOption(new Option('--ignore-eos', 'let no token end the text').conflicts('eos'))
    .optionsGroup('Sampling:')
    .option('-t, --temperature <t>', 'above 1 bolder, below 1 safer', number)
    .option('--top-k <k>', 'draw from the k likeliest tokens', number)
    .option('--top-p <p>', 'draw from the likeliest tokens that have probability p together', number)
    .option('--min-p <p>', 'draw no token less likely than p times the likeliest', number)
    .option('--repetition-penalty <r>', 'above 1 makes tokens that were there before less likely', number)
    .option('--seed <n>', 'the same seed gives the same text', bigint)
    .option('--sample', 'draw at random, with no other option')
    .addOption(
      new Option('--greedy', 'always take the likeliest token').conflicts([
        ...['sample', 'temperature', 'topK', 'topP', 'minP'],
      ]),
    )
    .optionsGroup('Speculative decoding:')
    .option(
      '--drafter <model>',
      'a smaller model that proposes tokens; of the same tokens, or of words for bytes',
    )
    .option('--draft-tokens <n>', 'tokens that it proposes at once (default: 4)', number)
    .addOption(
      new Option(
        '--acceptance <rule>',
        'match: the same tokens as without; rejection: as likely ones',
      ).choices(['match', 'rejection']),
    )
    .option(
      '--beta <n>',
      'accept what is among the n likeliest tokens: faster, but not the same text',
      number,
    )
    .optionsGroup('Conversations:')
    .option('--load-state <file>', 'continue what --save-state saved; the prompt may then be empty')
    .option(
      '--save-state <file>',
      'save what the model remembers, to continue later; after Ctrl-C too, unless there is a --drafter',
    )
    .optionsGroup('Where it runs:')
    .option('--device <name>', 'cpu, cuda or cuda:<index> (default: SELECTIVE_SCAN_DEVICE, or cpu)')
    .option('--dtype <name>', 'of the weights: auto, f32, bf16 or f16 (default: as stored)')
    .option('--state-dtype <name>', 'of what is remembered between tokens: f32, bf16 or f16 (default: f32)')
    .option('--threads <n>', 'CPU threads (default: SELECTIVE_SCAN_THREADS, or all cores)', number)
    .option('--no-capture', 'queue every operation of every step by itself; for debugging');
  return addHubOptions(command).addHelpText('after', examples).action(run);
}

async function run(name: string, argument: string | undefined, flags: Flags): Promise<void> {
  const signal = interruption();
  const options = generateOptions(flags);
  // The library checks again; here it is before a model is loaded, which may take minutes.
  rowOptions({ ...options, ...(flags.drafter !== undefined && { drafter: {} as Drafter }) }, 1);
  stopStrings(options.stop);
  if (flags.threads !== undefined) setThreads(flags.threads);
  const prompt = await readPrompt(
    { argument, file: flags.file, optional: flags.loadState !== undefined, raw: flags.raw === true },
    signal,
  );
  const saved = flags.loadState === undefined ? undefined : await readNamed(flags.loadState);
  if (flags.saveState !== undefined) await checkOutput('--save-state', flags.saveState);

  const model = await load(name, flags, signal);
  let drafter: CausalLM | undefined;
  try {
    if (flags.drafter !== undefined)
      drafter = await load(flags.drafter, { ...flags, bytes: undefined }, signal).catch(
        aboutFlag('--drafter'),
      );
    await continueText(model, prompt, saved, { ...options, drafter, signal }, flags);
  } finally {
    drafter?.dispose();
    model.dispose();
  }
}

function generateOptions(flags: Flags): GenerateOptions {
  const {
    maxNewTokens,
    minNewTokens,
    temperature,
    topK,
    topP,
    minP,
    repetitionPenalty,
    seed,
    stop,
    draftTokens,
    acceptance,
    beta,
    capture,
  } = flags;
  const doSample = flags.greedy ? false : flags.sample;
  const eosTokenId = flags.ignoreEos ? [] : flags.eos;
  return {
    maxNewTokens,
    minNewTokens,
    temperature,
    topK,
    topP,
    minP,
    repetitionPenalty,
    seed,
    stop,
    draftTokens,
    acceptance,
    beta,
    capture: capture === false ? false : undefined,
    doSample,
    eosTokenId,
  };
}

async function load(name: string, flags: Flags, signal: AbortSignal): Promise<CausalLM> {
  const { device, dtype, stateDtype, bytes, revision, cacheDir, offline } = flags;
  const progress = new Progress();
  try {
    return await AutoModelForCausalLM.fromPretrained(name, {
      ...{ device, dtype, stateDtype, bytes, revision, cacheDir, offline, signal },
      ...progress.callbacks,
    });
  } finally {
    progress.stop();
  }
}
