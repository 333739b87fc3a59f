#!/usr/bin/env node
import { Command } from 'commander';
import { packageVersion } from '../loader';
import { benchCommand } from './bench';
import { convertCommand } from './convert';
import { doctorCommand } from './doctor';
import { evalCommand } from './eval';
import { report, UsageError } from './exit';
import { generateCommand } from './generate';
import { inspectCommand } from './inspect';
import { reproduceCommand } from './reproduce';
import { trainCommand } from './train';
import { verifyCommand } from './verify';

const help = `
Start here:
  $ selective-scan doctor                                      is everything in place?
  $ selective-scan inspect ./mamba-130m                        what is in a model?
  $ selective-scan generate ./mamba-130m "Once upon a time"    what does it say?

selective-scan <command> --help explains a command.`;

/** Commander's own answers to a name that it does not know with all of the help, as if nothing were wrong. */
function addHelp(command: Command): void {
  if (command.commands.length === 0) return;
  command.commands.forEach(addHelp);
  const own = [...command.commands];
  command
    .helpCommand(false)
    .command('help')
    .description('display help for command')
    .argument('[command]')
    .action(async (name?: string) => {
      const found = name === undefined ? command : own.find((each) => each.name() === name);
      // As a command it is refused in the usual words, with the name that may have been meant.
      if (!found) return void (await command.parseAsync([name!], { from: 'user' }));
      found.help();
    });
}

/** Makes commander throw where it would end the process: what was written may not be out yet. */
function throwing(command: Command): Command {
  command.exitOverride().showHelpAfterError('(--help lists all options)');
  command.commands.forEach(throwing);
  return command;
}

/** An empty path would mean the current folder, or be found wanting at the end: `--out "$UNSET"`. */
function refuseEmptyPaths(command: Command): void {
  const isPath = (text: string) => /^(data|model|file|folder|path|out)$/.test(text);
  const refuse = (name: string, value: unknown) => {
    if ([value].flat().includes('')) throw new UsageError(`${name} is empty, expected a path`);
  };
  command.registeredArguments.forEach((argument, i) => {
    if (isPath(argument.name())) refuse(argument.name(), command.processedArgs[i]);
  });
  for (const option of command.options)
    if (isPath(/<([a-z-]+)>/.exec(option.flags)?.[1] ?? ''))
      refuse(option.long!, command.getOptionValue(option.attributeName()));
}

const program = new Command('selective-scan')
  .description('Mamba language models on the CPU and on NVIDIA GPUs.')
  .version(packageVersion(), '-V, --version', 'print the version')
  .addCommand(generateCommand())
  .addCommand(evalCommand())
  .addCommand(trainCommand())
  .addCommand(inspectCommand())
  .addCommand(convertCommand())
  .addCommand(doctorCommand())
  .addCommand(verifyCommand())
  .addCommand(benchCommand())
  .addCommand(reproduceCommand())
  .addHelpText('after', help)
  .hook('preAction', (_, command) => refuseEmptyPaths(command));

// Whoever writes is told of a failed write by its callback.
process.stdout.on('error', () => undefined);

addHelp(program);
throwing(program)
  .parseAsync()
  .catch((error: unknown) => (process.exitCode = report(error)));
