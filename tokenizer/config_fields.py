"""Fields of a foreign config, read by name and type; whatever nobody asked for is refused."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

Choice = TypeVar("Choice")


class ConfigFields:
    """Values of a config. Each reader names a field and the value that the format gives it when it is absent.

    Every reader raises ValueError where the value has another type.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._read: set[str] = set()

    def integer(self, name: str, default: int) -> int:
        """A whole number."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(name, value, "a whole number")
        return value

    def optional_integer(self, name: str) -> int | None:
        """A whole number or null, which is the default."""
        return None if self._get(name, None) is None else self.integer(name, 0)

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        value = self._get(name, default)
        if not _is_number(value):
            raise _wrong(name, value, "a finite number")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """A finite number or null, which is the default."""
        return None if self._get(name, None) is None else self.number(name, 0.0)

    def flag(self, name: str, *, default: bool) -> bool:
        """True or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise _wrong(name, value, "true or false")
        return value

    def choice(self, name: str, default: Choice, options: tuple[Choice, ...]) -> Choice:
        """One of some values."""
        value = self._get(name, default)
        for option in options:
            if isinstance(value, type(option)) and value == option:
                return option
        raise _wrong(name, value, f"one of {', '.join(map(repr, options))}")

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A list of whole numbers."""
        value = self._get(name, default)
        if not isinstance(value, (list, tuple)) or any(isinstance(v, bool) or not isinstance(v, int) for v in value):
            raise _wrong(name, value, "a list of whole numbers")
        return tuple(value)

    def numbers(self, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """A list of finite numbers, at least one."""
        value = self._get(name, default)
        if not isinstance(value, (list, tuple)) or not value or not all(map(_is_number, value)):
            raise _wrong(name, value, "a list of finite numbers")
        return tuple(map(float, value))

    def require(self, name: str, value: Any, wanted: Any) -> None:
        """Refuse a setting that differs from the only value that we can honour.

        Raises:
            ValueError: it differs.
        """
        if value != wanted:
            raise ValueError(f"{name} = {reprlib.repr(value)} is not supported here, only {reprlib.repr(wanted)} is")

    def refuse_others(self, irrelevant: Collection[str]) -> None:
        """Raise ValueError where a field was neither read nor is known to be irrelevant for inference."""
        unknown = sorted(name for name in self._values if name not in self._read and name not in irrelevant)
        if unknown:
            raise ValueError(f"unknown settings {reprlib.repr(unknown)}: what they would change is not known here")

    def _get(self, name: str, default: Any) -> Any:
        self._read.add(name)
        return self._values.get(name, default)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _wrong(name: str, value: Any, wanted: str) -> ValueError:
    return ValueError(f"{name} must be {wanted}, not {reprlib.repr(value)}")  # reprlib: the value may be huge


# of every PreTrainedConfig, transformers 4 and 5: bookkeeping, training, text generation; nothing that a codec computes
GENERIC_FIELDS = frozenset(
    """
    _name_or_path _commit_hash _attn_implementation_autoset add_cross_attention architectures attn_implementation
    bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id id2label is_decoder
    is_encoder_decoder label2id length_penalty max_length min_length model_type no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states output_scores
    pad_token_id prefix problem_type pruned_heads remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tie_last_hidden_states tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version typical_p use_bfloat16
    """.split()  # noqa: SIM905 - a column of sixty strings is harder to read
)
