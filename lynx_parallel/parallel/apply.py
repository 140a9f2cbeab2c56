"""parallelize: the one verb that puts a model on a gang; ``localize`` takes it back."""

from __future__ import annotations

from lynx_parallel.model.attention import LocalTokens
from lynx_parallel.model.transformer import LynxTransformer


def parallelize(transformer: LynxTransformer, tokens: LocalTokens) -> None:
    """Splits the transformer's token axis as ``tokens`` (of ``xdit.join``) says; weights stay as they are."""
    transformer.tokens = tokens


def localize(transformer: LynxTransformer) -> None:
    """Back to one rank."""
    transformer.tokens = LocalTokens()
