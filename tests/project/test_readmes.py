"""The pages in Chinese say what those in English say: in every section the same code, tables, figures, names, links."""

import re
from collections.abc import Callable

import pytest

from tests.project.bilingual import (
    CHECKS,
    CJK,
    ENGLISH_OF,
    ROOT,
    TWINS,
    Check,
    as_compared,
    figures,
    figures_with_words,
    in_blocks,
    in_code,
    in_figures,
    in_headings,
    in_language,
    in_links,
    in_links_to_each_other,
    in_names,
    in_pictures,
    in_spans,
    in_tables,
    in_tags,
    in_typography,
    names,
    sections,
    tags,
)

Change = Callable[[str], str]
ENGLISH, CHINESE = ("\n\n".join(map(as_compared, texts)) for texts in (TWINS, ENGLISH_OF))
"""All pages of each language, one behind the other."""


def together(*names: str) -> str:
    return "\n\n".join([*map(as_compared, names), ""])


SMALL = [(together("README.md", page), together("README.zh-CN.md", TWINS[page])) for page in [*TWINS][1:]]
"""The README with one page behind it, of each language: enough to plant a difference in."""


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_both_languages_say_the_same(check: Check):
    different = check(ENGLISH, CHINESE)
    assert not different, "\n".join(["the pages in English and those in Chinese differ", *different])


def test_every_page_is_in_both_languages():
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - {"docs/index.md"}
    assert {*TWINS} == {"README.md"} | pages


def test_there_is_something_to_compare():
    en = sections(ENGLISH)
    assert len(en) >= 40 and sum(len(of.fences) for of in en) >= 45 and sum(len(of.tables) for of in en) >= 7
    assert sum(len(of.pictures) for of in en) >= 5 and len(tags(ENGLISH)) >= 20
    assert sum(len(figures_with_words(of.prose)) for of in en) > 100
    assert {len(row) for of in en for table in of.tables for row in table} == {2, 3, 4, 5, 6}
    assert all(row for of in sections(CHINESE) for table in of.tables for row in table)


def test_a_link_is_read_from_the_root():
    assert "[README](english" not in CHINESE and "](zh-CN/" not in ENGLISH and "](../" not in CHINESE
    assert as_compared("docs/zh-CN/costs.md").startswith("# 开销\n\n[English](other-language)\n")


# ---------------------------------------------------------------------------------------------------------------------
# The checks can fail


def once(pattern: str, new: str, last: bool = False) -> Change:
    """Replaces the first match, or the last one."""

    def change(text: str) -> str:
        found = list(re.finditer(pattern, text, re.MULTILINE | re.DOTALL))
        if not found:
            return text
        match = found[-1 if last else 0]
        return text[: match.start()] + match.expand(new) + text[match.end() :]

    return change


def swapped_sections(text: str) -> str:
    head, *rest = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    return "".join([head, rest[1], rest[0], *rest[2:]])


def swapped_tables(text: str) -> str:
    rows = [line for line in text.splitlines() if re.match(r"\| \([A-Z]\d\)", line)]
    return text.replace("\n".join(rows[:2]), "\n".join(rows[1::-1]))


EITHER: dict[str, tuple[Check, Change]] = {
    "a changed figure": (in_figures, once(r"98\.6(?= ?%)", "98.61")),
    "a changed digit of an exponent": (in_figures, once(r"(from |从 )1e-3\b", r"\g<1>1e-4")),
    "a lost figure": (in_figures, once(r" 0\.73", "")),
    "a changed figure in an alt text": (in_figures, once(r'(alt="[^"]*?)\d', r"\g<1>77")),
    "a lost per cent": (in_figures, once(r"(\d) ?%", r"\1")),
    "a dropped code line": (in_code, once(r"(```python\n(?:[^`\n]*\n){3})[^`\n]*\n", r"\1")),
    "a comment in other words": (in_code, once(r"# written by hand", "# 手写")),
    "a code line's spaces": (in_code, once(r"\n    return 2", r"\n  return 2")),
    "another language of a block": (in_code, once(r"```python", "```py")),
    "a dropped code block": (in_code, once(r"```sh\n.*?```\n", "")),
    "a dropped table row": (in_tables, once(r"^\| \(B3\)[^\n]*\n", "")),
    "swapped table rows": (in_tables, swapped_tables),
    "a changed cost": (in_tables, once(r"(\| `gram` \| )[\d.]+", r"\g<1>77")),
    "a changed unit": (in_tables, once(r"(\|[^\n]*)MiB", r"\1GiB")),
    "a changed equation": (in_tables, once(r"(\| \(B2\) [^\n]*)\^T", r"\1")),
    "a changed equation beside words": (in_tables, once(r"(\| \(F3\) [^\n]*)phi", r"\1psi")),
    "a changed factor beside words": (in_tables, once(r"(\| \(J2\) [^\n]*)lambda/2", r"\1lambda")),
    "another tag in a table": (in_tables, once(r"^\| \(C6\)", "| (C7)")),
    "another function in a table": (in_tables, once(r"`noise_scale`", "`gram`")),
    "a lost column": (in_tables, once(r"(\| `gram` \| [^\n]*) [\d.]+ \|\n", "\\1\n")),
    "a lost link": (in_links, once(r"\[[^\]]*\]\(LICENSE\)", "Apache-2.0")),
    "another target": (in_links, once(r"notebooks/README\.md", "notebooks/build.py")),
    "a lost link to the other text": (in_links_to_each_other, once(r"\(other-language\)", "(LICENSE)")),
    "a lost section": (in_headings, once(r"^## [^\n]*\n((?!^## ).)*\Z", "")),
    "a lost section in the middle": (in_headings, once(r"^## [^\n]*\n((?!^## ).)*(?=^## )", "")),
    "swapped sections": (in_blocks, swapped_sections),
    "another level": (in_headings, once(r"^## ", "### ", last=True)),
    "a lost paragraph": (in_blocks, once(r"^`python -m benchmarks.experiments`.*?\n\n", "")),
    "a lost item": (in_blocks, once(r"^- `python -m benchmarks.confusion`.*?\n(?=- )", "")),
    "a picture of something else": (in_pictures, once(r"heat_map\.dark", "error_terms.dark")),
    "a picture without dark paper": (in_pictures, once(r"  <source[^\n]*\n", "")),
    "a lost picture": (in_pictures, once(r"<picture>.*?</picture>\n\n", "")),
    "another tag": (in_tags, once(r"\(B\d\)(?= (and|和) )", "(B9)")),
    "maths in other letters": (in_code, once(r"(```math\n[^`]*)boldsymbol\{W\}", r"\1boldsymbol{U}")),
    "a link to another page": (in_links, once(r"\(docs/checks\.md", "(docs/costs.md")),
    "another flag": (in_spans, once(r"`--quick`", "`--fast`")),
    "a lost flag": (in_spans, once(r"`--junit FILE`", "junit")),
    "another name": (in_names, once(r"KolenPollack", "KolenAndPollack")),
    "another dtype": (in_names, once(r"(In|在) bfloat16", r"\1 float64")),
}
IN_CHINESE: dict[str, tuple[Check, Change]] = {
    "a link to the page in English": (in_links, once(r"\(docs/checks\.md", "(english:docs/checks.md")),
    "another number word": (in_figures, once("八篇", "九篇")),
    "a changed large number": (in_figures, once(r"(\d) 万", r"\1 亿")),
    "a lost term": (in_language, lambda text: text.replace("误差项", "delta ")),
    "a paragraph in English": (in_language, once(r"^运行测试[^\n]*", "Run the tests:")),
    "a heading in English": (in_language, once(r"^# 公式$", "# The equations")),
    "a cell in English": (in_tables, once(r"用梯度更新参数", "update the parameters with the gradients")),
    "an alt text in English": (in_pictures, once(r'alt="[^"]*"', 'alt="A graph"')),
    "a half-width comma": (in_typography, once(rf"({CJK})，({CJK})", r"\1,\2")),
    "a half-width comma and a space": (in_typography, once(rf"({CJK})，({CJK})", r"\1, \2")),
    "a half-width period": (in_typography, once(rf"({CJK})。", r"\1.")),
    "emphasis that Markdown does not see": (in_typography, once(r"^\*\*([^*]*。)\*\* ", r"**\1**")),
    "half-width brackets": (in_typography, once(rf"（({CJK}+)）", r"(\1)")),
    "a missing space": (in_typography, once(rf"({CJK}) ([A-Za-z])", r"\1\2")),
    "a missing space at code": (in_typography, once(rf"({CJK}) `", r"\1`")),
    "a line that breaks a word": (in_typography, once("激活函数", "激活\n函数")),
    "a line that starts with a comma": (in_typography, once("，", "\n，")),
}
PLANTED = [pytest.param(check, change, "English", id=f"{name}, English") for name, (check, change) in EITHER.items()]
PLANTED += [
    pytest.param(check, change, "Chinese", id=f"{name}, Chinese")
    for name, (check, change) in {**EITHER, **IN_CHINESE}.items()
]


@pytest.mark.parametrize(("check", "change", "where"), PLANTED)
def test_a_planted_difference_is_seen(check: Check, change: Change, where: str):
    at = ("English", "Chinese").index(where)
    tried = ((texts, change(texts[at])) for texts in SMALL)
    texts, changed = next((texts, changed) for texts, changed in tried if changed != texts[at])
    both = (changed, texts[1]) if at == 0 else (texts[0], changed)
    assert set(check(*both)) - set(check(*texts)), "not seen"


def test_what_differs_is_named_with_its_section():
    (line, other) = in_figures("# T\n\nWords.\n\n## Two\n\nof 98.6 %.", "# 题\n\n字。\n\n## 二\n\n是 98.7%。")
    assert line == "Two: figure '98.6%' 1 more in English" and other == "Two: figure '98.7%' 1 more in Chinese"
    (line,) = in_code("# T\n\n## Two\n\n```\na\nb\n```", "# 题\n\n## 二\n\n```\na\nc\n```")
    assert line == "Two: code line 'b\\n', 'c\\n' in Chinese"


def test_figures_are_read_in_both_languages():
    assert figures("10 000 of 1 to 20, 1e-3, 98.6 %, 1.3 million") == ["10000", "1", "20", "1e-3", "98.6%", "1300000"]
    assert figures("10 000 个，1 到 20，1e-3，98.6%，130 万") == figures("10 000 of 1 to 20, 1e-3, 98.6 %, 1.3 million")
    assert figures("96 networks, 1..8, x^(1)") == ["96", "1", "8", "1"] and figures("1.00") != figures("1.0")
    assert figures_with_words("seven of a million") == figures_with_words("100 万个中的七个")
    assert figures_with_words("十二") == ["12 (as a word)"] and figures_with_words("often") == []
    assert names("two MLPs in float32, MiB, on_delta; Flax, x") == {"MLP", "float32", "MiB", "on_delta"}


def test_continuous_integration_runs_the_command_of_the_readme_and_the_evidence():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (command,) = (block for block in re.findall(r"```sh\n(.*?)```", ENGLISH, re.DOTALL) if "-m pytest" in block)
    assert f"\n{command}\n" in script
    assert re.search(r"^\.venv/bin/python -m pytest -m evidence --part .*/12", script, re.MULTILINE)
