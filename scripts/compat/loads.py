"""Holds folders that this package writes to Hugging Face transformers itself.

    python3 -m venv /tmp/compat && /tmp/compat/bin/pip install torch transformers
    npm run build && /tmp/compat/bin/python scripts/compat/loads.py

Folders are made in a temporary place: by `train` (of bytes, with a tokenizer, from a model, in bf16, a falcon_mamba),
by `savePretrained` and by `convert`. Each is loaded by AutoModelForCausalLM, in f32 on the CPU: no parameter may be
missing, left over or drawn anew; logits have to agree within 1e-4 of the largest, greedy tokens up to the model's end
of text all; the tokenizer, where there is one, has to give the same ids and text. Ends with 0 only if all of it does.

Where Node and transformers are on two machines: `make <folder>` on the first (it needs no package), `compare <folder>`
on the second.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

root = pathlib.Path(__file__).resolve().parents[2]
fixtures = root / "test" / "fixtures"
text = "State spaces, na\u00efve \u00fcber 42 caf\u00e9s."
new_tokens = 24
tolerance = 1e-4


def run(*args):
    done = subprocess.run([str(arg) for arg in args], cwd=root, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, args))}: {done.stderr[-2000:]}")
    return done.stdout


def cli(*args):
    run("node", "dist/cli/main.js", *args)


def train(out, *args, steps=40):
    small = ["--steps", steps, "--length", 64, "--batch", 4, "--learning-rate", 3e-3]
    cli("train", root / "README.md", "--out", out, *small, *args)


def save(out, source, dtype):
    script = (
        "import('./index.mjs').then(async ({ AutoModelForCausalLM }) => {"
        f"const model = await AutoModelForCausalLM.fromPretrained({json.dumps(str(source))}, {{ dtype: '{dtype}' }});"
        f"await model.savePretrained({json.dumps(str(out))}); }})"
    )
    run("node", "-e", script)


def falcon(out):
    config = out.parent / "falcon.json"
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "state_size": 8, "initializer_range": 0.02}
    config.write_text(json.dumps({"model_type": "falcon_mamba", **sizes}))
    train(out, "--model", config)


sizes = ["--width", 64, "--layers", 3]
saved = [
    ("mamba-tiny", "f32"),
    ("mamba-tiny", "bf16"),
    ("mamba-odd", "f32"),
    ("mamba-odd", "f16"),
    ("mamba-sharded-bf16", "bf16"),
    ("mamba-text", "f32"),
    ("falcon-mamba-tiny", "f32"),
    ("falcon-mamba-tiny", "bf16"),
    ("mamba-ssm-bin", "f32"),
]
folders = {
    "train --family mamba, of bytes": lambda out: train(out, "--family", "mamba", *sizes, steps=200),
    "train --family mamba --dtype bf16 --ema": lambda out: train(
        out, "--family", "mamba", *sizes, "--dtype", "bf16", "--ema", 0.9
    ),
    "train --tokenizer": lambda out: train(out, "--tokenizer", fixtures / "mamba-text", *sizes),
    "train --from": lambda out: train(out, "--from", fixtures / "mamba-text"),
    "train --model falcon_mamba": falcon,
    **{
        f"savePretrained of {name}, {dtype}": lambda out, name=name, dtype=dtype: save(out, fixtures / name, dtype)
        for name, dtype in saved
    },
    "convert of a state-spaces checkpoint": lambda out: cli("convert", fixtures / "mamba-ssm-bin", out),
    "convert --dtype bf16": lambda out: cli("convert", fixtures / "mamba-ssm-bin", out, "--dtype", "bf16"),
}


def make(into):
    """Makes every folder, and beside it what this package answers about it."""
    into.mkdir(exist_ok=True)
    for number, (name, write) in enumerate(folders.items()):
        out = into / str(number)
        write(out)
        answers = run("node", "scripts/compat/answers.mjs", out, text, new_tokens)
        (into / f"{number}.json").write_text(json.dumps({"name": name, **json.loads(answers)}))


def compare_one(folder, ours):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    for what, names in info.items():
        assert not names, f"{what}: {names}"
    model.eval()
    ids = torch.tensor([ours["ids"]])
    with torch.no_grad():
        logits = model(ids).logits[0]
        tokens = model.generate(ids, max_new_tokens=new_tokens, do_sample=False)[0, ids.shape[1] :].tolist()
    mine = torch.tensor(ours["logits"]).reshape(ours["shape"])[0]
    assert mine.shape == logits.shape, f"logits are {tuple(mine.shape)}, transformers' {tuple(logits.shape)}"
    error = ((mine - logits).abs().max() / logits.abs().max()).item()
    assert error < tolerance, f"logits differ by {error:.2e} of the largest"
    assert tokens == ours["tokens"], f"greedy tokens are {ours['tokens']}, transformers' {tokens}"
    said = f"{type(model).__name__}, logits within {error:.1e}, {len(tokens)} greedy tokens"
    if ours.get("decoded") is None:
        return said
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = tokenizer(text)["input_ids"]
    assert theirs == ours["ids"], f"ids are {ours['ids']}, transformers' {theirs}"
    decoded = tokenizer.decode(theirs, clean_up_tokenization_spaces=False)
    assert decoded == ours["decoded"], f"text is {ours['decoded']!r}, transformers' {decoded!r}"
    return f"{said}, tokenizer"


def compare(made):
    """Loads every folder into transformers; gives how many differ."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    print(f"transformers {transformers.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}")
    failed = 0
    for number in range(len(folders)):
        ours = json.loads((made / f"{number}.json").read_text())
        try:
            print(f"ok   {ours['name']}: {compare_one(made / str(number), ours)}", flush=True)
        except Exception as error:
            failed += 1
            print(f"FAIL {ours['name']}: {type(error).__name__}: {error}", flush=True)
    print(f"{len(folders) - failed} passed, {failed} failed")
    return failed


def main(what=None, folder=None):
    if what == "make":
        return make(pathlib.Path(folder).resolve())
    if what == "compare":
        return compare(pathlib.Path(folder).resolve()) > 0
    with tempfile.TemporaryDirectory() as own:
        make(pathlib.Path(own))
        return compare(pathlib.Path(own)) > 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
