import { keep, scope, Tensor, tensorsIn } from '../lib/tensor';
import { onEach } from './devices';

describe.each(onEach)('on %s', (_, device) => {
  const make = () => Tensor.empty([4], 'f32', device);

  it('disposes what was made and not returned', () => {
    const made: Tensor[] = [];
    const kept = scope(() => {
      made.push(make(), make(), make());
      return made[1]!;
    });
    expect(kept).toBe(made[1]);
    expect(made.map(({ disposed }) => disposed)).toEqual([true, false, true]);
    kept.dispose();
  });

  it('finds returned tensors in arrays and records, at any depth', () => {
    class Holder {
      constructor(readonly tensor: Tensor) {}
    }
    const { a, list, other, holder } = scope(() => ({
      a: make(),
      list: [{ b: make() }, 1, null],
      other: 'text',
      holder: new Holder(make()),
    }));
    expect(a.disposed).toBe(false);
    expect((list[0] as { b: Tensor }).b.disposed).toBe(false);
    expect(other).toBe('text');
    expect(holder.tensor.disposed).toBe(true); // objects of a class look after themselves
    expect(tensorsIn({ a, list }).length).toBe(2);
  });

  it('hands what an inner scope returns to the outer one', () => {
    let returned: Tensor | undefined;
    const before = device.memoryUsage().tensors;
    scope(() => {
      returned = scope(() => {
        make();
        return make();
      });
      expect(returned.disposed).toBe(false);
      expect(device.memoryUsage().tensors).toBe(before + 1);
    });
    expect(returned!.disposed).toBe(true);
    expect(device.memoryUsage().tensors).toBe(before);
  });

  it('leaves tensors from outside alone', () => {
    const outside = make();
    scope(() => void outside.rows(0, 2));
    expect(outside.disposed).toBe(false);
    scope(() => outside.dispose());
    expect(outside.disposed).toBe(true);
  });

  it('keep takes a tensor out of all scopes', () => {
    const kept = scope(() => scope(() => ({ tensor: () => tensor, made: void (tensor = keep(make())) })));
    expect(kept.tensor()!.disposed).toBe(false);
  });
  let tensor: Tensor | undefined;

  it('disposes everything when fn throws', () => {
    const before = device.memoryUsage();
    const failing = () =>
      scope(() => {
        make();
        scope(() => {
          make();
          throw new Error('on the way');
        });
      });
    expect(failing).toThrow('on the way');
    const { tensors, used } = device.memoryUsage();
    expect([tensors, used]).toEqual([before.tensors, before.used]);
    const after = make(); // belongs to no scope
    expect(after.disposed).toBe(false);
  });

  it('refuses async functions, and does not leave their failure unhandled', async () => {
    let made: Tensor | undefined;
    const run = () =>
      scope(async () => {
        made = make();
        await Promise.resolve();
        await made.data(); // disposed by now
      });
    expect(run).toThrow('scope: fn is async, expected a plain function');
    expect(made!.disposed).toBe(true);
    await new Promise((resolve) => setTimeout(resolve, 20));
  });
});
