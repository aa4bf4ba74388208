"""The lab's model: a Llama of two layers whose weights are written here, not trained.

A real engine loads it in no time and runs it like any other model, and still it answers in words: embedding
and output layer hold a chain (each word points at the next one), attention and MLP add the noise of random
weights. So an answer is one readable sentence that ends by itself; a request that wants a long stream says
`ignore_eos`. Closing signs come second, so that answers under a JSON schema end too. The standard library
is enough to write it, and the same bytes come out everywhere.
"""

from __future__ import annotations

import json
import random
import struct
from itertools import pairwise
from pathlib import Path

OPEN_MODEL = "lab/tiny-llama"
GATED_MODEL = "lab/tiny-gated"

# No word stands twice: each is one token and has one successor.
_SENTENCE = "Hello from your lab: I am a tiny model of two layers, served by the real SGLang."
_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_PAD, _TURN, _END = range(3)

_LAYERS, _HIDDEN, _MLP, _HEADS, _KV_HEADS, _HEAD_DIM = 2, 64, 128, 4, 2, 16
_CONTEXT_TOKENS = 4096
_NOISE = 0.02  # standard deviation of random weights: too small to break the chain
_PULL = 4.0  # how strongly a token points at the next: sampling at temperature 1 changes nothing
_CLOSING = {'"': 0.7, "}": 0.6, "]": 0.5, ",": 0.4, ":": 0.3}  # what closes a JSON value, in parts of _PULL

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Matrix = list[list[float]]


def ensure_model(cache: Path) -> Path:
    """Write the lab's models below CACHE/models; return that directory, the root of the model source.

    `lab/tiny-llama` is for everyone; `lab/tiny-gated` has the same files, and the model source asks for a
    token. Files that are already right are left alone.
    """
    root = cache / "models"
    files = model_files()
    for repo in (OPEN_MODEL, GATED_MODEL):
        directory = root / repo
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _write_if_different(directory / name, content)
    return root


def model_files() -> dict[str, bytes]:
    """The model's files by name, as SGLang and Hugging Face's libraries read them."""
    words = [word if at == 0 else f"\u0120{word}" for at, word in enumerate(_SENTENCE.split())]
    tokens = [*_SPECIAL_TOKENS, *_byte_letters(), *words]
    return {
        "config.json": _json(_config(len(tokens))),
        "generation_config.json": _json({"bos_token_id": _TURN, "eos_token_id": _END, "pad_token_id": _PAD}),
        "tokenizer.json": _json(_tokenizer(tokens)),
        "tokenizer_config.json": _json(_tokenizer_config()),
        "model.safetensors": _safetensors(_weights(tokens, words)),
    }


def _write_if_different(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _config(vocabulary: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": vocabulary,
        "hidden_size": _HIDDEN,
        "intermediate_size": _MLP,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_DIM,
        "max_position_embeddings": _CONTEXT_TOKENS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": _TURN,
        "eos_token_id": _END,
        "pad_token_id": _PAD,
    }


def _byte_letters() -> list[str]:
    """The letter of each byte in byte-level BPE: itself where printable, else the next free from U+0100."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(0x100)]


def _tokenizer(tokens: list[str]) -> dict[str, object]:
    """A byte-level BPE without merges: text is encoded byte by byte, words are only ever answered."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": at, "content": name, **special} for at, name in enumerate(_SPECIAL_TOKENS)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: at for at, token in enumerate(tokens)},
            "merges": [],
        },
    }


def _tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": _CONTEXT_TOKENS,
        "pad_token": _SPECIAL_TOKENS[_PAD],
        "bos_token": _SPECIAL_TOKENS[_TURN],
        "eos_token": _SPECIAL_TOKENS[_END],
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }


def _weights(tokens: list[str], words: list[str]) -> dict[str, Matrix]:
    """All tensors. Directions in the hidden space are random, hence nearly at right angles to each other."""
    dice = random.Random(0)  # noqa: S311 - weights, no secret

    def matrix(rows: int, columns: int, deviation: float = _NOISE) -> Matrix:
        return [[dice.gauss(0.0, deviation) for _ in range(columns)] for _ in range(rows)]

    # One direction per word, and one that every other token has in common: after any of them the sentence begins.
    directions = matrix(len(words) + 1, _HIDDEN, deviation=1.0)
    common, of_word = directions[0], dict(zip(words, directions[1:], strict=True))
    noises = matrix(len(tokens), _HIDDEN, deviation=0.1)
    embedding = [_plus(of_word.get(token, common), noise) for token, noise in zip(tokens, noises, strict=True)]
    output = matrix(len(tokens), _HIDDEN)

    def point(token: str, direction: list[float], strength: float) -> None:
        row = tokens.index(token)
        output[row] = _plus(output[row], direction, times=strength * _PULL / _HIDDEN**0.5)

    point(words[0], common, 1.0)
    for word, successor in pairwise([*words, _SPECIAL_TOKENS[_END]]):
        point(successor, of_word[word], 1.0)
    for sign, strength in _CLOSING.items():
        for direction in (common, of_word[words[-1]]):
            point(sign, direction, strength)

    tensors = {"model.embed_tokens.weight": embedding, "lm_head.weight": output, "model.norm.weight": [[1.0] * _HIDDEN]}
    for layer in (f"model.layers.{at}." for at in range(_LAYERS)):
        for name, rows, columns in (
            ("self_attn.q_proj", _HEADS * _HEAD_DIM, _HIDDEN),
            ("self_attn.k_proj", _KV_HEADS * _HEAD_DIM, _HIDDEN),
            ("self_attn.v_proj", _KV_HEADS * _HEAD_DIM, _HIDDEN),
            ("self_attn.o_proj", _HIDDEN, _HEADS * _HEAD_DIM),
            ("mlp.gate_proj", _MLP, _HIDDEN),
            ("mlp.up_proj", _MLP, _HIDDEN),
            ("mlp.down_proj", _HIDDEN, _MLP),
        ):
            tensors[f"{layer}{name}.weight"] = matrix(rows, columns)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}{norm}.weight"] = [[1.0] * _HIDDEN]
    return tensors


def _plus(one: list[float], other: list[float], *, times: float = 1.0) -> list[float]:
    return [left + times * right for left, right in zip(one, other, strict=True)]


def _safetensors(tensors: dict[str, Matrix]) -> bytes:
    """The tensors as bfloat16 in the safetensors format; a matrix of one row becomes a vector."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, rows in tensors.items():
        start = len(data)
        for row in rows:
            data += b"".join(struct.pack("<f", value)[2:] for value in row)  # bfloat16: float32's upper half
        shape = [len(rows[0])] if len(rows) == 1 else [len(rows), len(rows[0])]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, len(data)]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + bytes(data)
