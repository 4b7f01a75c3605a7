"""The sizes of a model, from its config.json: exact parameter counts for the dense families of the table.

Entered by `ModelShape.from_config`. A family that is not in the table is counted as Llama's layout where the
config has the same keys, and says so; mixtures of experts are refused: their layers are not of one kind.
Source: the `modeling_*.py` of each family in transformers, whose models the tests build and count.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")


class ShapeError(ValueError):
    """A config.json from which no sizes can be told; the message says which key is the reason."""


@dataclass(frozen=True)
class Linear:
    """One linear layer of a decoder layer.

    Attributes:
        source: what it reads; linears with one source share their input.
    """

    name: str
    in_features: int
    out_features: int
    has_bias: bool
    source: str

    @property
    def weight_count(self) -> int:
        return self.in_features * self.out_features

    @property
    def bias_count(self) -> int:
        return self.out_features if self.has_bias else 0


@dataclass(frozen=True)
class _Family:
    """What config.json does not say about an architecture.

    Attributes:
        biases: the linears with a bias; None where the config's keys decide: `attention_bias`, and `mlp_bias`
            where `has_mlp_key`.
        norms: RMS norms of hidden size in a decoder layer.
        head_norms: `head` where queries and keys are normed a head at a time, `all` where across all heads.
        is_fused: whether q, k, v are one linear and gate, up another.
    """

    biases: tuple[str, ...] | None = None
    has_mlp_key: bool = False
    norms: int = 2
    head_norms: str | None = None
    is_fused: bool = False
    is_tied: bool = False
    head_dim: int | None = None


FAMILIES: dict[str, _Family] = {
    "llama": _Family(has_mlp_key=True),
    "mistral": _Family(biases=()),
    "qwen2": _Family(biases=("q_proj", "k_proj", "v_proj")),
    "qwen3": _Family(head_norms="head", head_dim=128),
    "gemma": _Family(is_tied=True, head_dim=256),
    "gemma2": _Family(norms=4, is_tied=True, head_dim=256),
    "gemma3_text": _Family(norms=4, head_norms="head", is_tied=True, head_dim=256),
    "phi3": _Family(biases=(), is_fused=True),
    "granite": _Family(has_mlp_key=True),
    "smollm3": _Family(is_tied=True, has_mlp_key=True),
    "olmo2": _Family(head_norms="all"),
}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only model, in parameters and features.

    Attributes:
        family: `model_type` of the config.
        linears: of one decoder layer; all decoder layers are alike.
        layer_norm_count: norm parameters of one decoder layer.
        layer_norm_features: features that the norms of one decoder layer read of a token.
        is_exact: False where the family is not known and Llama's layout was assumed.
    """

    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_length: int | None
    is_tied: bool
    linears: tuple[Linear, ...]
    layer_norm_count: int
    layer_norm_features: int
    is_exact: bool = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ModelShape":
        """Read the sizes from a parsed config.json; of a multimodal one, those of its text model.

        Raises:
            ShapeError: a size is missing or is no positive whole number, or it is a mixture of experts.
        """
        if "hidden_size" not in config and isinstance(config.get("text_config"), Mapping):
            config = {"tie_word_embeddings": config.get("tie_word_embeddings")} | dict(config["text_config"])
        name = str(config.get("model_type", "unknown"))
        expert_key = next(
            (key for key in _EXPERT_KEYS if _is_count(config.get(key)) and config[key] > 1), None
        )
        if expert_key:
            raise ShapeError(
                f"{name} is a mixture of experts ({expert_key} {config[expert_key]}), whose memory cannot be "
                "told ahead: use a dense model, or try a short run"
            )
        family = FAMILIES.get(name, FAMILIES["llama"])
        hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
        kv_heads = _size(config, "num_key_value_heads", heads)
        head_dim = _size(config, "head_dim", family.head_dim or hidden // heads)
        intermediate = _size(config, "intermediate_size")
        tied = config.get("tie_word_embeddings")
        head_norms = {None: 0, "head": 2 * head_dim, "all": (heads + kv_heads) * head_dim}
        return cls(
            family=name,
            layers=_size(config, "num_hidden_layers"),
            hidden=hidden,
            intermediate=intermediate,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocabulary=_size(config, "vocab_size"),
            context_length=_size(config, "max_position_embeddings", 0) or None,
            is_tied=family.is_tied if tied is None else bool(tied),
            linears=_linears(config, family, (hidden, intermediate, heads * head_dim, kv_heads * head_dim)),
            layer_norm_count=family.norms * hidden + head_norms[family.head_norms],
            layer_norm_features=family.norms * hidden
            + ((heads + kv_heads) * head_dim if family.head_norms else 0),
            is_exact=name in FAMILIES,
        )

    @property
    def query_features(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_features(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def embedding_count(self) -> int:
        """Parameters of the input embedding."""
        return self.vocabulary * self.hidden

    @property
    def head_count(self) -> int:
        """Parameters of the output head that are its own; none where it is the embedding."""
        return 0 if self.is_tied else self.embedding_count

    @property
    def layer_linear_count(self) -> int:
        """Weights of the linears of one decoder layer, without biases."""
        return sum(linear.weight_count for linear in self.linears)

    @property
    def layer_bias_count(self) -> int:
        return sum(linear.bias_count for linear in self.linears)

    @property
    def norm_count(self) -> int:
        """Norm parameters of all decoder layers and the last norm."""
        return self.layers * self.layer_norm_count + self.hidden

    @property
    def layer_count(self) -> int:
        """All parameters of one decoder layer."""
        return self.layer_linear_count + self.layer_bias_count + self.layer_norm_count

    @property
    def parameter_count(self) -> int:
        return self.embedding_count + self.head_count + self.layers * self.layer_count + self.hidden

    def targets(self, target_modules: str | list[str]) -> tuple[Linear, ...]:
        """The linears of a decoder layer that LoRA's `target_modules` chooses; unknown names choose none."""
        if target_modules == "all-linear":
            return self.linears
        return tuple(linear for linear in self.linears if linear.name in target_modules)


def _linears(
    config: Mapping[str, Any], family: _Family, sizes: tuple[int, int, int, int]
) -> tuple[Linear, ...]:
    hidden, intermediate, queries, keys = sizes
    attention_bias = bool(config.get("attention_bias"))
    mlp_bias = family.has_mlp_key and bool(config.get("mlp_bias"))

    def make(name: str, inputs: int, outputs: int, source: str) -> Linear:
        by_key = mlp_bias if source in ("mlp", "product") else attention_bias
        has_bias = by_key if family.biases is None else name in family.biases
        return Linear(name, inputs, outputs, has_bias, source)

    if family.is_fused:
        return (
            make("qkv_proj", hidden, queries + 2 * keys, "attention"),
            make("o_proj", queries, hidden, "heads"),
            make("gate_up_proj", hidden, 2 * intermediate, "mlp"),
            make("down_proj", intermediate, hidden, "product"),
        )
    return (
        make("q_proj", hidden, queries, "attention"),
        make("k_proj", hidden, keys, "attention"),
        make("v_proj", hidden, keys, "attention"),
        make("o_proj", queries, hidden, "heads"),
        make("gate_proj", hidden, intermediate, "mlp"),
        make("up_proj", hidden, intermediate, "mlp"),
        make("down_proj", intermediate, hidden, "product"),
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not _is_count(value):
        raise ShapeError(f"config.json: {key} is {value!r} and should be a whole number above 0")
    return int(value)  # type: ignore[arg-type]
