"""Models of codes: how few bits hold them, and what comes next."""

from lm_head.block_coder import BlockCoder
from lm_head.coarse_first import CoarseFirstConfig, CoarseFirstLM
from lm_head.compression import CodecIdentity, compress, compress_many
from lm_head.decompression import decompress, decompress_many, open_qtn
from lm_head.ecdc import compress_ecdc, decompress_ecdc
from lm_head.encodec_lm import export_encodec_lm, load_encodec_lm
from lm_head.entropy import code_histogram, order_zero_entropy, perplexity
from lm_head.generation import generate
from lm_head.layouts import make_layout
from lm_head.lm_checkpoint import LMCard, bundled_lms, load_coder, load_lm, read_lm_card, save_lm
from lm_head.sampling import Sampling
from lm_head.token_lm import LMConfig, TokenLM
from lm_head.vocabulary import SpecialTokens, Vocabulary

__all__ = [
    "BlockCoder",
    "CoarseFirstConfig",
    "CoarseFirstLM",
    "CodecIdentity",
    "LMCard",
    "LMConfig",
    "Sampling",
    "SpecialTokens",
    "TokenLM",
    "Vocabulary",
    "bundled_lms",
    "code_histogram",
    "compress",
    "compress_ecdc",
    "compress_many",
    "decompress",
    "decompress_ecdc",
    "decompress_many",
    "export_encodec_lm",
    "generate",
    "load_coder",
    "load_encodec_lm",
    "load_lm",
    "make_layout",
    "open_qtn",
    "order_zero_entropy",
    "perplexity",
    "read_lm_card",
    "save_lm",
]
