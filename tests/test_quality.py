"""What `data.quality` asks of an article: measured, told with the value and the limit."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import quality
from data_prep.articles import Article
from pressroom import languages
from pressroom.console import UserError
from pressroom.recipe import Recipe
from pressroom.sections import Quality
from pressroom.words import words

GOOD = Article(
    id="0" * 16,
    title="Council approves new bus lanes",
    description="Work on the two main streets begins in May and will take a year.",
    url=None,
    published_at=None,
    category=None,
    source=None,
    place="a.jsonl:1",
)
FEED = {  # title, description: short, as feeds have them
    "en": ("What we know about the fire", "Three people were taken to hospital."),
    "de": ("Bäckereikette schließt 40 Filialien", "Der Umsatz ging erneut zurück."),
    "fr": ("Incendie : ce que l'on sait", "Trois personnes ont été hospitalisées."),
    "es": ("Hallan huellas antiguas", "Tienen unos 20.000 años, según los científicos."),
    "it": ("Incendio, cosa sappiamo", "Tre persone sono state portate in ospedale."),
    "nl": ("Bakkersketen sluit 40 winkels", "De omzet daalde in het laatste kwartaal."),
    "pt": ("Rede de padarias fecha 40 lojas", "As vendas caíram de novo no trimestre."),
    "sv": ("Anfallaren borta sex veckor", "Lagkaptenen skadade knät på träningen."),
    "no": ("Spissen ute i seks uker", "Kapteinen skadet kneet på trening tirsdag."),
    "ru": ("Что известно о пожаре", "Три человека доставлены в больницу."),
    "ar": ("ما نعرفه عن الحريق", "نقل ثلاثة أشخاص إلى المستشفى."),
    "he": ("מה ידוע על השריפה", "שלושה בני אדם פונו לבית החולים."),
    "zh": ("关于火灾我们知道什么", "三人被送往医院。"),
}


def judge(asked: Quality, description: str = GOOD.description, **other: str) -> object:
    return quality.judge(replace(GOOD, description=description, **other), asked)


@given(st.text(min_size=1), st.text(min_size=1))
def test_nothing_is_asked_by_default(title: str, description: str) -> None:
    assert judge(Quality(), description, title=title) is None


@pytest.mark.parametrize(
    ("asked", "bad", "found"),
    [
        (Quality(min_words=4), "One, two - three!", ("too few words", "3; quality.min_words: 4")),
        (Quality(max_words=14), "It's " * 15, ("too many words", "15; quality.max_words: 14")),
        (
            Quality(min_letters=0.8),
            "1234567 abc",
            ("few letters", "0.364; quality.min_letters: 0.8"),
        ),
        (
            Quality(max_capitals=0.5),
            "BUY NOW, all",
            ("capitals", "0.667; quality.max_capitals: 0.5"),
        ),
        (
            Quality(max_repetition=0.15),
            "Rain is near the old town. RAIN is near, the old town.",
            ("repetition", "0.500; quality.max_repetition: 0.15"),
        ),
        (
            Quality(whole_sentences=True),
            "The mayor said that",
            ("no end of a sentence", "ends 'The mayor said that'; quality.whole_sentences: true"),
        ),
        (
            Quality(languages=("en", "nl")),
            "Trois personnes ont été hospitalisées mardi.",
            ("language", "French (fr); quality.languages: en, nl"),
        ),
    ],
)
def test_each_fault_is_told_with_its_value_and_limit(
    asked: Quality, bad: str, found: tuple[str, str]
) -> None:
    title = "Incendie" if asked.languages else GOOD.title
    assert judge(asked, bad, title=title) == found
    assert judge(asked) is None


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (Quality(min_words=3), "One, two - three!"),
        (Quality(max_words=3), "One, two - three!"),
        (Quality(min_letters=0.8), "abcdefg 12"),
        (Quality(max_capitals=0.25), "Abcd"),
        (Quality(max_repetition=0.5), "a b c d e a b c d e"),
    ],
)
def test_a_limit_itself_is_allowed(asked: Quality, text: str) -> None:
    assert judge(asked, text, title="abcd") is None


def test_a_title_in_capitals_is_found_beside_a_long_description() -> None:
    loud = judge(Quality(max_capitals=0.5), GOOD.description * 20, title="COUNCIL SAYS YES")
    assert loud == ("capitals", "1.000; quality.max_capitals: 0.5")


def test_a_chinese_character_is_a_word() -> None:
    assert len(words("三人被送往医院。")) == 7
    assert judge(Quality(min_words=7), "三人被送往医院。") is None


def test_accents_are_letters() -> None:
    assert quality.letters("हिन्दी समाचार") == 1


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("He went.", True),
        ('He said: "Go!"', True),
        ("Did he (really?)", True),
        ("三人被送往医院。", True),
        ("He went…", False),
        ("He went to...", False),
        ("He went to […]", False),
        ('"He went to..."', False),
        ("He went", False),
        ("", False),
    ],
)
def test_where_a_sentence_ends(text: str, whole: bool) -> None:
    assert quality.ends(text) is whole


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_repetition_is_as_a_plain_count_has_it(found: list[str]) -> None:
    runs = [tuple(found[i : i + quality.RUN]) for i in range(len(found) - quality.RUN + 1)]
    again = {
        word
        for start, run in enumerate(runs)
        if run in runs[:start]
        for word in range(start, start + quality.RUN)
    }
    assert quality.repetition(found) == len(again) / max(1, len(found))


@pytest.mark.parametrize("code", FEED)
def test_each_language_of_mediastack_is_told_from_the_others(code: str) -> None:
    title, description = FEED[code]
    assert judge(Quality(languages=(code,)), description, title=title) is None
    others = tuple(other for other in FEED if other != code)
    cause, detail = judge(Quality(languages=others), description, title=title)  # type: ignore
    assert (cause, detail[: detail.index(";")]) == (
        "language",
        f"{languages.NAMES[code]} ({code})",
    )


def test_what_is_no_language_is_none() -> None:
    fault = judge(Quality(languages=("en",)), "0x1f 3.14 2026-01-02 99", title="17:30:12")
    assert fault == ("language", "none (zxx); quality.languages: en")


def test_the_languages_are_those_of_the_library() -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    known = set(LanguageIdentifier.from_model_file(MODEL_FILE).labels)
    assert {code for code in known if len(code) == 2} == {*languages.NAMES, "se"}
    assert quality._NO_LANGUAGE in known


def test_the_library_is_loaded_only_for_languages() -> None:
    code = (
        "import sys\nfrom tests.test_quality import GOOD, Quality, quality\n"
        "quality.judge(GOOD, Quality(min_words=1, min_letters=0.5, max_capitals=0.5))\n"
        "assert 'py3langid' not in sys.modules\n"
        "quality.judge(GOOD, Quality(languages=('en',)))\n"
        "assert 'py3langid' in sys.modules\n"
    )
    root = Path(__file__).parents[1]
    run = [sys.executable, "-c", f"import sys; sys.path.insert(0, 'tests')\n{code}"]
    done = subprocess.run(run, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("se", "sv (Swedish)"),
        ("English", "en (English)"),
        ("englsh", "en (English)"),
        ("en-US", "en (English)"),
        ("EN", "en (English)"),
        ("deu", "de (German)"),
        ("Deutsch", "de (German)"),
        ("jp", "ja (Japanese)"),
    ],
)
def test_an_unknown_language_is_told_with_the_nearest(
    make_recipe, written: str, meant: str
) -> None:
    make_recipe()
    with pytest.raises(UserError) as caught:
        Recipe.load("recipe.yaml", [f"data.quality.languages=[nl, {written}]"])
    message = f"{written!r} is no language that is known here; did you mean {meant}?"
    assert str(caught.value).endswith(f": data.quality.languages: {message}")


def test_all_that_cannot_be_is_told_at_once(make_recipe) -> None:
    make_recipe()
    with pytest.raises(UserError) as caught:
        Recipe.load(
            "recipe.yaml",
            [
                "data.quality.languages=[xx, qq]",
                "data.quality.min_words=10",
                "data.quality.max_words=9",
            ],
        )
    text = str(caught.value)
    assert "'xx' is no language that is known here\n" in text
    assert "'qq' is no language" in text
    assert "data.quality.max_words: 9 is below min_words, 10: none is kept" in text


@pytest.mark.parametrize("name", ["llama2_7b", "llama2_13b", "llama2_70b"])
def test_shipped_recipes_keep_a_good_article(name: str) -> None:
    asked = Recipe.load(name).data.quality
    assert asked != Quality()
    assert judge(asked) is None
    assert judge(asked, description="Wowza!") is not None
