"""A language is told where the detector is sure of it, and only there."""

from __future__ import annotations

import polars as pl

from anven_pipelines.domain.language import languages

TEXTS = {
    "Wie viel kostet das Zimmer pro Nacht, und ist das Frühstück dabei?": "de",
    "Where is my order? I have been waiting for three weeks.": "en",
    "Où est ma commande, s'il vous plaît ? J'attends depuis trois semaines.": "fr",
    "¿Dónde está mi pedido? Llevo tres semanas esperando y nadie me ha contestado todavía.": "es",
    "注文した商品がまだ届いていません。どうなっていますか。": "ja",
}


def test_prompts_are_told_apart_by_language() -> None:
    assert languages(pl.Series(list(TEXTS))).to_list() == list(TEXTS.values())


def test_what_is_too_short_or_not_there_has_no_language() -> None:
    texts = pl.Series(["ok thanks", "", None, "4711 0815 2026-11-01 12345678901234567890", next(iter(TEXTS))])
    assert languages(texts).to_list() == [None, None, None, None, "de"]
    assert languages(texts.head(3)).to_list() == [None, None, None]
    assert languages(texts.clear()).to_list() == []
