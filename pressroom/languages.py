"""The languages that can be told apart, by their ISO 639-1 codes: those of py3langid's model.

Listed here, so that a recipe is checked where the library is not. Northern Sami (`se`) is left
out: where feeds write `se` they mean Swedish.
"""

import difflib

_NAMES = """
    af Afrikaans, am Amharic, an Aragonese, ar Arabic, as Assamese, az Azerbaijani, ba Bashkir,
    be Belarusian, bg Bulgarian, bn Bengali, br Breton, bs Bosnian, ca Catalan, cs Czech, cy Welsh,
    da Danish, de German, dz Dzongkha, el Greek, en English, eo Esperanto, es Spanish, et Estonian,
    eu Basque, fa Persian, fi Finnish, fo Faroese, fr French, fy Western Frisian, ga Irish,
    gd Scottish Gaelic, gl Galician, gu Gujarati, ha Hausa, he Hebrew, hi Hindi, hr Croatian,
    ht Haitian, hu Hungarian, hy Armenian, id Indonesian, ig Igbo, is Icelandic, it Italian,
    ja Japanese, jv Javanese, ka Georgian, kk Kazakh, km Khmer, kn Kannada, ko Korean, ku Kurdish,
    ky Kyrgyz, la Latin, lb Luxembourgish, lg Ganda, ln Lingala, lo Lao, lt Lithuanian, lv Latvian,
    mg Malagasy, mk Macedonian, ml Malayalam, mn Mongolian, mr Marathi, ms Malay, mt Maltese,
    my Burmese, ne Nepali, nl Dutch, nn Norwegian Nynorsk, no Norwegian, oc Occitan, om Oromo,
    or Odia, pa Punjabi, pl Polish, ps Pashto, pt Portuguese, qu Quechua, ro Romanian, ru Russian,
    rw Kinyarwanda, sa Sanskrit, si Sinhala, sk Slovak, sl Slovenian, sn Shona, so Somali,
    sq Albanian, sr Serbian, st Southern Sotho, sv Swedish, sw Swahili, ta Tamil, te Telugu,
    tg Tajik, th Thai, tk Turkmen, tl Tagalog, tr Turkish, tt Tatar, ug Uyghur, uk Ukrainian,
    ur Urdu, uz Uzbek, vi Vietnamese, vo Volapük, wa Walloon, xh Xhosa, yo Yoruba, zh Chinese,
    zu Zulu
"""
NAMES: dict[str, str] = dict(pair.split(maxsplit=1) for pair in _NAMES.split(","))
"""Code -> English name."""
_ELSEWHERE = """
    se sv, nb no, iw he, in id, cn zh, cz cs, dk da, gb en, gr el, jp ja, kr ko, ua uk, us en,
    deu de, ger de, spa es, fra fr, fre fr, nld nl, dut nl, por pt, swe sv, zho zh, chi zh, jpn ja,
    deutsch de, español es, français fr, italiano it, nederlands nl, norsk no, português pt,
    svenska sv
"""
_OTHERS: dict[str, str] = dict(pair.split() for pair in _ELSEWHERE.split(","))
"""What is written elsewhere -> code: MediaStack's `se`, countries, ISO 639-2, own names."""


def nearest(written: str) -> str | None:
    """The code that somebody means who wrote something else, if one can be guessed."""
    name = written.strip().lower()
    code = name.replace("_", "-").partition("-")[0]
    if code in NAMES or code in _OTHERS:
        return _OTHERS.get(code, code)
    codes = {code: code for code in NAMES} | {name.lower(): code for code, name in NAMES.items()}
    close = difflib.get_close_matches(name, codes, n=1, cutoff=0.75)
    return codes[close[0]] if close else None
