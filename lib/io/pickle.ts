import { isUtf8 } from 'node:buffer';
import { FormatError } from '../errors';
import { kind } from './json';
import { describe, Dict, Global, List, Tuple, type Fail, type Value } from './pickle-value';

/** What a pickle may refer to. Nothing outside of it exists: no name is ever looked up anywhere else. */
export interface World {
  /** What stands for `module.name`; undefined refuses it. */
  find(name: string): Global | undefined;
  /** What a persistent id stands for. */
  load(id: Value, fail: Fail): Value;
}

/**
 * torch needs about 40 for each tensor. Each makes at most one value, and one that calls counts once more for
 * every item that it is given, which it may have from the memo: so this bounds time and memory.
 */
const MAX_STEPS = 1_000_000;

/** Opcodes that call what a file names, or make objects of it, and nothing else: there is nothing here to do so. */
const CALLING: ReadonlyMap<number, string> = new Map([
  [0x69, 'INST'],
  [0x6f, 'OBJ'],
  [0x81, 'NEWOBJ'],
  [0x92, 'NEWOBJ_EX'],
  [0x82, 'EXT1'],
  [0x83, 'EXT2'],
  [0x84, 'EXT4'],
]);

/**
 * Reads a pickle of protocol 2 to 5 without running anything of it: a stack machine over plain values and what
 * `world` makes. Time and memory are bounded by the pickle's length; `where` names it in messages.
 * @throws FormatError that names what the file wanted to call, or what is wrong and at which byte.
 */
export function unpickle(bytes: Uint8Array, where: string, world: World): Value {
  return new Machine(bytes, where, world).run();
}

class Machine {
  readonly #bytes: Buffer;
  readonly #where: string;
  readonly #world: World;
  readonly #stack: Value[] = [];
  readonly #marks: number[] = []; // heights of the stack
  readonly #memo = new Map<number, Value>();
  #at = 0;
  #steps = 0;
  #begin = 0; // of the opcode under way

  constructor(bytes: Uint8Array, where: string, world: World) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#where = where;
    this.#world = world;
  }

  run(): Value {
    for (;;) {
      this.#begin = this.#at;
      this.#spend(1);
      const opcode = this.#byte();
      if (opcode === 0x2e) return this.#stop();
      this.#do(opcode);
    }
  }

  #spend(steps: number): void {
    this.#steps += steps;
    if (this.#steps > MAX_STEPS)
      this.#fail(`has more than ${MAX_STEPS} instructions, which no checkpoint needs`);
  }

  readonly #fail: Fail = (what) => {
    throw new FormatError(`${this.#where}: byte ${this.#begin}: ${what}`);
  };

  #refuseCall(name: string): never {
    return this.#fail(
      `wants to call ${name}; nothing was run. Only tensors, their storages, ordered dicts and plain values are read. ` +
        'If you trust the file, save its tensors alone in Python: torch.save(model.state_dict(), path)',
    );
  }

  #stop(): Value {
    const left = this.#bytes.length - this.#at;
    if (left > 0) this.#fail(`ends here, but ${left} bytes follow`);
    if (this.#stack.length !== 1 || this.#marks.length > 0) {
      this.#fail(`ends with ${this.#stack.length} values, expected one`);
    }
    return this.#stack[0]!;
  }

  /** Goes past so many bytes, and says where they begin. */
  #take(length: number): number {
    const begin = this.#at;
    if (begin + length > this.#bytes.length) this.#fail('is cut off here; the file is truncated');
    this.#at = begin + length;
    return begin;
  }

  #byte(): number {
    return this.#bytes[this.#take(1)]!;
  }

  #u32(): number {
    return this.#bytes.readUInt32LE(this.#take(4));
  }

  #pop(): Value {
    if (this.#stack.length <= (this.#marks.at(-1) ?? 0)) this.#fail('takes a value where there is none');
    return this.#stack.pop()!;
  }

  #top(): Value {
    if (this.#stack.length <= (this.#marks.at(-1) ?? 0)) this.#fail('takes a value where there is none');
    return this.#stack.at(-1)!;
  }

  #popToMark(): Value[] {
    const mark = this.#marks.pop() ?? this.#fail('takes a mark where there is none');
    return this.#stack.splice(mark);
  }

  #do(opcode: number): void {
    // prettier-ignore
    switch (opcode) {
      case 0x80: return this.#protocol();
      case 0x95: this.#take(8); return; // FRAME: how much to read ahead
      case 0x28: this.#marks.push(this.#stack.length); return;
      case 0x4e: return this.#push(null);
      case 0x88: return this.#push(true);
      case 0x89: return this.#push(false);
      case 0x4a: return this.#push(this.#bytes.readInt32LE(this.#take(4)));
      case 0x4b: return this.#push(this.#byte());
      case 0x4d: return this.#push(this.#bytes.readUInt16LE(this.#take(2)));
      case 0x8a: return this.#push(this.#long(this.#byte()));
      case 0x47: return this.#push(this.#bytes.readDoubleBE(this.#take(8)));
      case 0x58: return this.#push(this.#text(this.#u32()));
      case 0x8c: return this.#push(this.#text(this.#byte()));
      case 0x55: return this.#push(this.#text(this.#byte())); // Python 2
      case 0x29: return this.#push(new Tuple([]));
      case 0x85: case 0x86: case 0x87: return this.#shortTuple(opcode - 0x84);
      case 0x74: return this.#push(new Tuple(this.#popToMark()));
      case 0x5d: return this.#push(new List());
      case 0x61: return this.#append([this.#pop()]);
      case 0x65: return this.#append(this.#popToMark());
      case 0x7d: return this.#push(new Dict(false));
      case 0x73: return this.#setItems([this.#pop(), this.#pop()].reverse());
      case 0x75: return this.#setItems(this.#popToMark());
      case 0x68: return this.#recall(this.#byte());
      case 0x6a: return this.#recall(this.#u32());
      case 0x71: this.#memo.set(this.#byte(), this.#top()); return;
      case 0x72: this.#memo.set(this.#u32(), this.#top()); return;
      case 0x94: this.#memo.set(this.#memo.size, this.#top()); return;
      case 0x63: return this.#push(this.#global(this.#line(), this.#line()));
      case 0x93: return this.#stackGlobal();
      case 0x52: return this.#reduce();
      case 0x62: return this.#build();
      case 0x51: return this.#push(this.#world.load(this.#pop(), this.#fail));
      default: return this.#refuse(opcode);
    }
  }

  #push(value: Value): void {
    this.#stack.push(value);
  }

  #protocol(): void {
    const version = this.#byte();
    if (version < 2 || version > 5) this.#fail(`is a pickle of protocol ${version}, expected 2 to 5`);
  }

  #long(length: number): number {
    if (length > 8) this.#fail(`holds a whole number of ${length} bytes, expected at most 8`);
    const begin = this.#take(length);
    if (length === 0) return 0;
    if (length <= 6) return this.#bytes.readIntLE(begin, length);
    const value = Number(
      BigInt.asIntN(8 * length, littleEndian(this.#bytes.subarray(begin, begin + length))),
    );
    return Number.isSafeInteger(value) ? value : this.#fail(`holds ${value}, expected less than 2^53`);
  }

  #text(length: number): string {
    const begin = this.#take(length);
    const end = begin + length;
    let at = begin;
    while (at < end && this.#bytes[at]! < 0x80) at++;
    if (at === end) return this.#bytes.toString('latin1', begin, end); // names, mostly
    if (!isUtf8(this.#bytes.subarray(begin, end))) this.#fail('holds text that is not valid UTF-8');
    return this.#bytes.toString('utf8', begin, end);
  }

  /** Up to a line break, which is how names are written. */
  #line(): string {
    const end = this.#bytes.indexOf(0x0a, this.#at);
    if (end < 0) this.#fail('is cut off here; the file is truncated');
    const text = this.#text(end - this.#at);
    this.#take(1);
    return text;
  }

  #shortTuple(length: number): void {
    const items = Array.from({ length }, () => this.#pop());
    this.#push(new Tuple(items.reverse()));
  }

  #append(values: readonly Value[]): void {
    const list = this.#top();
    if (!(list instanceof List)) return this.#fail(`appends to ${describe(list)}, expected a list`);
    for (const value of values) list.items.push(value);
  }

  #setItems(pairs: readonly Value[]): void {
    const dict = this.#top();
    if (!(dict instanceof Dict)) return this.#fail(`sets an item of ${describe(dict)}, expected a dict`);
    if (pairs.length % 2 === 1) this.#fail('sets a key without a value');
    for (let i = 0; i < pairs.length; i += 2) addTo(dict, pairs[i]!, pairs[i + 1]!, this.#fail);
  }

  #recall(index: number): void {
    const value = this.#memo.get(index);
    if (value === undefined) return this.#fail(`recalls value ${index}, which was not stored`);
    this.#push(value);
  }

  #global(module: string, name: string): Global {
    const full = `${module}.${name}`;
    const shown = /^[\w.<>]{1,200}$/.test(full) ? full : kind(full);
    return this.#world.find(full) ?? this.#refuseCall(shown);
  }

  #stackGlobal(): void {
    const [name, module] = [this.#pop(), this.#pop()];
    if (typeof module !== 'string' || typeof name !== 'string') {
      return this.#fail(`names a class by ${describe(module)} and ${describe(name)}, expected two strings`);
    }
    this.#push(this.#global(module, name));
  }

  #reduce(): void {
    const [args, callee] = [this.#pop(), this.#pop()];
    if (!(callee instanceof Global) || !callee.call) return this.#refuseCall(describe(callee));
    if (!(args instanceof Tuple)) {
      return this.#fail(`calls ${callee.name} with ${describe(args)}, expected a tuple`);
    }
    for (const arg of args.items)
      if (arg instanceof Tuple || arg instanceof List) this.#spend(arg.items.length);
    this.#spend(args.items.length);
    this.#push(callee.call(args.items, this.#fail));
  }

  /** Would set attributes of an object. Modules note their versions so, on the ordered dict that is a state dict. */
  #build(): void {
    const [state, object] = [this.#pop(), this.#top()];
    const isMetadata = state instanceof Dict && [...state.entries()].every(([key]) => key === '_metadata');
    if (!(object instanceof Dict && object.ordered && isMetadata)) {
      this.#refuseCall(`__setstate__ of ${describe(object)} with ${describe(state)}`);
    }
  }

  #refuse(opcode: number): never {
    const calling = CALLING.get(opcode);
    if (calling === undefined) {
      return this.#fail(`opcode 0x${opcode.toString(16).padStart(2, '0')} is not one that torch.save writes`);
    }
    return this.#refuseCall(`${this.#target(opcode)} (${calling})`);
  }

  /** What a calling opcode is about: its class is in its text, below its arguments, or a number of a registry. */
  #target(opcode: number): string {
    if (opcode === 0x69) return this.#global(this.#line(), this.#line()).name;
    if (opcode >= 0x82 && opcode <= 0x84) {
      const length = opcode === 0x84 ? 4 : opcode - 0x81;
      return `extension ${this.#bytes.readUIntLE(this.#take(length), length)}`;
    }
    if (opcode === 0x6f) return describe(this.#popToMark()[0]);
    const args = opcode === 0x92 ? 2 : 1;
    for (let i = 0; i < args; i++) this.#pop();
    return describe(this.#pop());
  }
}

/** Adds an item to a dict; a key that occurs twice has two meanings and is refused. */
export function addTo(dict: Dict, key: Value, value: Value, fail: Fail): void {
  if (typeof key !== 'string' && typeof key !== 'number') {
    return fail(`has a dict with ${describe(key)} for a key, expected a string or a number`);
  }
  if (!dict.add(key, value)) fail(`has a dict that holds the key ${kind(key)} twice`);
}

function littleEndian(bytes: Uint8Array): bigint {
  return bytes.reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n);
}
