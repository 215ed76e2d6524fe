"""README.zh-CN.md says what README.md says: in every section the same code, tables, figures, names, links, pictures."""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from itertools import pairwise, zip_longest
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

Check = Callable[[str, str], list[str]]
Change = Callable[[str], str]
ROOT = Path(__file__).resolve().parents[2]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")

CJK = r"[\u3400-\u9fff]"
FULL = "，。、；：？！（）“”"
EACH_OTHER = {"README.md", "README.zh-CN.md"}
TERMS = ("净输入", "活性值", "误差项", "正则化项", "目标函数", "损失", "权重矩阵", "偏置", "激活函数")
TERMS += ("前向传播", "反向传播", "计算图", "局部导数", "梯度")
FORMULA_WORDS = {"delta", "lambda", "phi", "sum", "prod", "diag"}
# One and two are left out: too often they are an article, a pair, or 两.
WORDS = ["three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
HANZI = ["三", "四", "五", "六", "七", "八", "九", "十", "十一", "十二"]
SCALES = {"million": 10**6, "万": 10**4, "亿": 10**8}

# ---------------------------------------------------------------------------------------------------------------------
# A text, section by section


@dataclass(frozen=True)
class Inline:
    """A paragraph, list item's text, table cell or heading: what it says and what it holds."""

    raw: str
    prose: str  # without code spans, targets of links and marks of emphasis
    code: tuple[str, ...] = ()
    links: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """A heading and what follows it up to the next."""

    level: int
    heading: Inline
    inlines: tuple[Inline, ...]  # in paragraphs, lists and tables
    fences: tuple[tuple[str, str], ...]  # what stands behind the ```, and the block
    tables: tuple[tuple[tuple[Inline, ...], ...], ...]
    pictures: tuple[str, ...]
    blocks: tuple[str, ...]  # the kinds of block in their order

    @property
    def alts(self) -> list[str]:
        return re.findall(r'alt="([^"]*)"', "".join(self.pictures))

    @property
    def texts(self) -> tuple[Inline, ...]:
        return (self.heading, *self.inlines, *(Inline(alt, alt) for alt in self.alts))

    @property
    def prose(self) -> str:
        return "\n".join(text.prose for text in self.texts)

    @property
    def code(self) -> list[str]:
        return [span for text in self.texts for span in text.code]

    @property
    def links(self) -> list[str]:
        """Without the anchors, which follow the headings' language, and the link to the other text."""
        both = [link.partition("#")[0] or "#" for text in self.texts for link in text.links]
        return [link for link in both if link not in EACH_OTHER]


def inline(token: Token) -> Inline:
    prose, code, links = [], [], []
    for child in token.children or []:
        said = {"text": child.content, "softbreak": " ", "hardbreak": " ", "code_inline": " ` "}
        prose.append(said.get(child.type, ""))
        code += [child.content] * (child.type == "code_inline")
        links += [str(target) for name in ("href", "src") if (target := child.attrs.get(name))]
    return Inline(token.content, "".join(prose), tuple(code), tuple(links))


def tables(tokens: list[Token]) -> tuple[tuple[tuple[Inline, ...], ...], ...]:
    found: list[list[list[Inline]]] = []
    for before, token in pairwise(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif before.type in ("th_open", "td_open"):
            found[-1][-1].append(inline(token))
    return tuple(tuple(tuple(row) for row in table) for table in found)


def section(tokens: list[Token]) -> Section:
    return Section(
        level=int(tokens[0].tag[1]),
        heading=inline(tokens[1]),
        inlines=tuple(inline(token) for token in tokens[3:] if token.type == "inline"),
        fences=tuple((token.info, token.content) for token in tokens if token.type == "fence"),
        tables=tables(tokens),
        pictures=tuple(token.content for token in tokens if token.type == "html_block"),
        blocks=tuple(token.type for token in tokens if token.nesting >= 0 and token.type != "inline"),
    )


@cache
def sections(text: str) -> tuple[Section, ...]:
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    starts = [i for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert starts[:1] == [0], "the text has to start with its title"
    return tuple(section(tokens[start:end]) for start, end in pairwise([*starts, len(tokens)]))


def pairs(english: str, chinese: str) -> Iterable[tuple[str, Section, Section]]:
    """(the English heading, English section, Chinese section); a section that one lacks is an empty one there."""
    empty = Section(0, Inline("", "(no such section)"), (), (), (), (), ())
    for en, zh in zip_longest(sections(english), sections(chinese), fillvalue=empty):
        yield en.heading.prose, en, zh


# ---------------------------------------------------------------------------------------------------------------------
# What a text holds


def tags(text: str) -> list[str]:
    return re.findall(r"\([A-Z]\d\)", text)


def figures(text: str) -> list[str]:
    """Every number in digits, with its per cent; 1.3 million is 130 万, and 98.6 % is 98.6%."""
    found = []
    number = r"(\d{1,3}(?: \d{3})+(?!\d)|\d+)(\.\d+)?(e[-+]?\d+)?(?: ?(%|million|万|亿))?"
    for whole, fraction, exponent, unit in re.findall(number, text, re.ASCII):
        plain = whole.replace(" ", "") + fraction + exponent
        found.append(str(int(Decimal(plain) * SCALES[unit])) if unit in SCALES else plain + unit)
    return found


def figures_with_words(text: str) -> list[str]:
    """Likewise `a million`, and three to twelve where they are written as words."""
    text = re.sub(r"\ba million\b", "1 million", text)
    words = [str(WORDS.index(word) + 3) for word in re.findall(rf"\b({'|'.join(WORDS)})\b", text.lower())]
    words += [str(HANZI.index(word) + 3) for word in re.findall(r"[一二三四五六七八九十]+", text) if word in HANZI]
    return figures(text) + [f"{word} (as a word)" for word in words]


def names(text: str) -> set[str]:
    """Words like MiB, NTK, float32, KolenPollack and on_delta, which no language translates; MLPs is MLP."""
    words = re.findall(r"[A-Za-z][A-Za-z0-9_]*", text)
    return {re.sub(r"(?<=[A-Z]{2})s$", "", word) for word in words if re.search(r"[A-Z].*[A-Z]|[\d_]", word)}


def formulas(text: str) -> list[str]:
    """What stands between words: (lambda/2), W^(1), =."""
    return [part for part in re.split(rf"[\s,:;{FULL}]+", text) if re.search(r"[\^_/=+⊙‖\d]", part)]


def is_prose(text: str) -> bool:
    """Whether there are English words in it that could be translated."""
    return bool(
        set(re.findall(r"(?<![\w/^_.])(?:[A-Z][a-z]{2,}|[a-z]{3,})(?![\w/^_(])", text, re.ASCII)) - FORMULA_WORDS
    )


def without_alt(picture: str) -> str:
    return re.sub(r'alt="[^"]*"', 'alt=""', picture)


# ---------------------------------------------------------------------------------------------------------------------
# The comparisons: each gives its differences as lines


def more(where: str, what: str, en: Iterable[Hashable], zh: Iterable[Hashable]) -> list[str]:
    en, zh = Counter(en), Counter(zh)
    lines = [f"{where}: {what} {item!r} {n} more in English" for item, n in (en - zh).items()]
    return lines + [f"{where}: {what} {item!r} {n} more in Chinese" for item, n in (zh - en).items()]


def in_headings(english: str, chinese: str) -> list[str]:
    en, zh = sections(english), sections(chinese)
    lines = [f"{len(en)} headings in English, {len(zh)} in Chinese"] * (len(en) != len(zh))
    return lines + [
        f"{where}: of level {a.level} in English, {b.level} in Chinese ({b.heading.prose})"
        for where, a, b in pairs(english, chinese)
        if a.level != b.level or a.heading.code != b.heading.code
    ]


def in_blocks(english: str, chinese: str) -> list[str]:
    """Paragraphs, lists, items, tables, code and pictures: the same ones in the same order."""
    return [
        f"{where}: block {i + 1} is {a or 'missing'} in English, {b or 'missing'} in Chinese"
        for where, en, zh in pairs(english, chinese)
        for i, (a, b) in enumerate(zip_longest(en.blocks, zh.blocks))
        if a != b
    ]


def in_code(english: str, chinese: str) -> list[str]:
    lines = []
    for where, en, zh in pairs(english, chinese):
        n, m = len(en.fences), len(zh.fences)
        lines += [f"{where}: {n} code blocks in English, {m} in Chinese"] * (n != m)
        for (kind, a), (other, b) in zip(en.fences, zh.fences, strict=False):
            lines += [f"{where}: ```{kind} in English, ```{other} in Chinese"] * (kind != other)
            both = zip_longest(a.splitlines(keepends=True), b.splitlines(keepends=True))
            lines += [f"{where}: code line {x!r}, {y!r} in Chinese" for x, y in both if x != y][:1]
    return lines


def in_cell(where: str, en: Inline, zh: Inline) -> list[str]:
    """Of a table's cell, which is the same to the letter if there is nothing to translate."""
    if not is_prose(en.prose):
        return [f"{where}: {en.raw!r} in English, {zh.raw!r} in Chinese"] * (en != zh)
    lines = [f"{where}: not translated: {en.prose!r}"] * (not re.search(CJK, zh.prose))
    for what, of in (("code", lambda cell: cell.code), ("figure", lambda cell: figures(cell.prose))):
        lines += [f"{where}: {what} {of(en)} in English, {of(zh)} in Chinese"] * (of(en) != of(zh))
    lines += more(where, "tag", tags(en.prose), tags(zh.prose))
    lines += more(where, "formula", formulas(en.prose), formulas(zh.prose))
    new = set(re.findall(r"[A-Za-z]+", zh.prose)) - set(re.findall(r"[A-Za-z]+", en.prose))
    return lines + [f"{where}: {sorted(new)} in Chinese alone"] * bool(new)


def in_tables(english: str, chinese: str) -> list[str]:
    lines = []
    for where, en, zh in pairs(english, chinese):
        shapes = [[[len(row) for row in table] for table in of.tables] for of in (en, zh)]
        if shapes[0] != shapes[1]:
            rows = [[len(table) for table in shape] for shape in shapes]
            lines.append(f"{where}: tables of {rows[0]} rows in English, {rows[1]} in Chinese; cells {shapes}")
        for table, other in zip(en.tables, zh.tables, strict=False):
            for i, (row, same) in enumerate(zip(table, other, strict=False)):
                for a, b in zip(row, same, strict=False):
                    lines += in_cell(f"{where}, row {i} ({row[0].prose})", a, b)
    return lines


def in_pictures(english: str, chinese: str) -> list[str]:
    lines = []
    for where, en, zh in pairs(english, chinese):
        for a, b in zip_longest(map(without_alt, en.pictures), map(without_alt, zh.pictures)):
            lines += [f"{where}: picture {a!r} in English, {b!r} in Chinese"] * (a != b)
        lines += [f"{where}: not translated: {alt!r}" for alt in zh.alts if not re.search(CJK, alt)]
    return lines


def differing(what: str, held: Callable[[Section], Iterable[Hashable]]) -> Check:
    """The check that both have the same of these in every section, in any order."""

    def check(english: str, chinese: str) -> list[str]:
        return [line for at, en, zh in pairs(english, chinese) for line in more(at, what, held(en), held(zh))]

    check.__name__ = f"in_{what}s"
    return check


in_figures = differing("figure", lambda of: figures_with_words(of.prose))
in_tags = differing("tag", lambda of: tags(of.prose))
in_names = differing("name", lambda of: names(of.prose))
in_spans = differing("code span", lambda of: of.code)
in_links = differing("link", lambda of: of.links)


def in_links_to_each_other(english: str, chinese: str) -> list[str]:
    lines = []
    for text, other, name in ((english, "README.zh-CN.md", "English"), (chinese, "README.md", "Chinese")):
        top = sections(text)[0].texts
        lines += [f"the top of the {name} text has no link to {other}"] * (not any(other in at.links for at in top))
    return lines


def in_language(english: str, chinese: str) -> list[str]:
    """What is still in English, and terms of the note that are missing."""
    lines = [f"the term {term} is nowhere" for term in TERMS if term not in chinese]
    for i, (where, _, zh) in enumerate(pairs(english, chinese)):
        lines += [f"{where}: no Chinese in the whole section"] * (not re.search(CJK, zh.prose))
        lines += [f"{where}: the heading is not translated"] * (i > 0 and not re.search(CJK, zh.heading.prose))
        ours = [text.prose for text in zh.inlines if is_prose(text.prose) and not re.search(CJK, text.prose)]
        lines += [f"{where}: not translated: {prose[:60]!r}" for prose in ours]
    return lines


RULES = {
    "a half-width mark after Chinese": rf"{CJK}[,.;:?!]",
    "a half-width mark before Chinese": rf"[,.;:?!] ?{CJK}",
    "a half-width bracket at Chinese": rf"{CJK}[()]|[()]{CJK}",
    "no space between Chinese and Latin": rf"{CJK}[A-Za-z0-9`]|[A-Za-z0-9`%]{CJK}",
    "a space at a full-width mark": rf"(?<=\S) +[{FULL}]|[{FULL}] +(?![*|>])(?=\S)",
    "a line that ends between two characters": rf"{CJK} *\n *{CJK}",
    "a line that begins with a mark": r"\n *[，。、；：？！（）”]",
}


def in_typography(english: str, chinese: str) -> list[str]:
    """Of the Chinese text alone: full-width marks, spaces and line breaks."""
    lines = []
    text = re.sub(r"^```.*?^```$|<[^>]*>", "", chinese, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "`x`", text)
    text = re.sub(r"\]\([^)]*\)", "]", text).replace("。** ", "。**")
    for part in re.split(r"^(?=#)", text, flags=re.MULTILINE):
        for what, rule in RULES.items():
            for match in re.finditer(rule, part):
                around = part[max(0, match.start() - 12) : match.end() + 12]
                lines.append(f"{part.splitlines()[0]}: {what}: {around!r}")
    bare = [(of.heading.prose, text.prose) for of in sections(chinese) for text in of.texts if "*" in text.prose]
    return lines + [f"{where}: a * that emphasises nothing: {prose[:60]!r}" for where, prose in bare]


CHECKS = [in_headings, in_blocks, in_code, in_tables, in_pictures, in_figures, in_tags, in_names, in_spans, in_links]
CHECKS += [in_links_to_each_other, in_language, in_typography]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_both_readmes_say_the_same(check: Check):
    different = check(ENGLISH, CHINESE)
    assert not different, "\n".join(["README.md and README.zh-CN.md differ", *different])


def test_there_is_something_to_compare():
    en = sections(ENGLISH)
    assert len(en) >= 9 and sum(len(of.fences) for of in en) >= 9 and sum(len(of.tables) for of in en) >= 2
    assert sum(len(of.pictures) for of in en) >= 4 and len(tags(ENGLISH)) >= 20
    assert sum(len(figures_with_words(of.prose)) for of in en) > 100
    assert {len(row) for of in en for table in of.tables for row in table} == {3, 5}
    assert all(row for of in sections(CHINESE) for table in of.tables for row in table)


# ---------------------------------------------------------------------------------------------------------------------
# The checks can fail


def once(pattern: str, new: str, last: bool = False) -> Change:
    """Replaces the first match, or the last one."""

    def change(text: str) -> str:
        found = list(re.finditer(pattern, text, re.MULTILINE | re.DOTALL))
        assert found, f"nothing to change: {pattern}"
        match = found[-1 if last else 0]
        return text[: match.start()] + match.expand(new) + text[match.end() :]

    return change


def swapped_sections(text: str) -> str:
    head, *rest = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    return "".join([head, rest[1], rest[0], *rest[2:]])


def swapped_tables(text: str) -> str:
    rows = [line for line in text.splitlines() if re.match(r"\| \([A-Z]\d\)", line)]
    return text.replace(f"{rows[0]}\n{rows[1]}", f"{rows[1]}\n{rows[0]}")


EITHER: dict[str, tuple[Check, Change]] = {
    "a changed figure": (in_figures, once(r"(\d\.\d)(?= ?%)", r"\g<1>1")),
    "a changed digit of an exponent": (in_figures, once(r"(?<![`\w.])1e-3\b", "1e-4", last=True)),
    "a lost figure": (in_figures, once(r" 0\.\d+", "", last=True)),
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
    "a changed unit": (in_tables, once(r"MiB", "GiB")),
    "a changed equation": (in_tables, once(r"(\| \(B2\) [^\n]*)\^T", r"\1")),
    "a changed equation beside words": (in_tables, once(r"(\| \(F3\) [^\n]*)phi", r"\1psi")),
    "a changed factor beside words": (in_tables, once(r"(\| \(J2\) [^\n]*)lambda/2", r"\1lambda")),
    "another tag in a table": (in_tables, once(r"^\| \(C6\)", "| (C7)")),
    "another function in a table": (in_tables, once(r"`noise_scale`", "`gram`")),
    "a lost column": (in_tables, once(r"(\| `gram` \| [^\n]*) [\d.]+ \|\n", "\\1\n")),
    "a lost link": (in_links, once(r"\[[^\]]*\]\(LICENSE\)", "Apache-2.0")),
    "another target": (in_links, once(r"notebooks/README\.md", "notebooks/build.py")),
    "a lost link to the other text": (in_links_to_each_other, once(r"\(README(\.zh-CN)?\.md\)", "(LICENSE)")),
    "a lost section": (in_headings, once(r"^## [^\n]*\n((?!^## ).)*\Z", "")),
    "a lost section in the middle": (in_headings, once(r"^## [^\n]*\n((?!^## ).)*(?=^## )", "")),
    "swapped sections": (in_blocks, swapped_sections),
    "another level": (in_headings, once(r"^## ", "### ", last=True)),
    "a lost paragraph": (in_blocks, once(r"^`manual-backprop graph .*?\n\n", "")),
    "a lost item": (in_blocks, once(r"^- `python -m benchmarks.confusion`.*?\n(?=- )", "")),
    "a picture of something else": (in_pictures, once(r"heat_map\.dark", "error_terms.dark")),
    "a picture without dark paper": (in_pictures, once(r"  <source[^\n]*\n", "")),
    "a lost picture": (in_pictures, once(r"<picture>.*?</picture>\n\n", "")),
    "another tag": (in_tags, once(r"\(B\d\)(?= (and|和) )", "(B9)")),
    "another flag": (in_spans, once(r"`--quick`", "`--fast`")),
    "a lost flag": (in_spans, once(r"`--junit`", "junit")),
    "another name": (in_names, once(r"KolenPollack", "KolenAndPollack")),
    "another dtype": (in_names, once(r"bfloat16(?! on )", "float64", last=True)),
}
IN_CHINESE: dict[str, tuple[Check, Change]] = {
    "another number word": (in_figures, once("七篇", "八篇")),
    "a changed large number": (in_figures, once(r"(\d) 万", r"\1 亿")),
    "a lost term": (in_language, lambda text: text.replace("误差项", "delta ")),
    "a paragraph in English": (in_language, once(r"^运行测试[^\n]*", "Run the tests:")),
    "a heading in English": (in_language, once(r"^## 公式", "## The equations")),
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
    text = ENGLISH if where == "English" else CHINESE
    changed = change(text)
    assert changed != text, "nothing was planted"
    both = (changed, CHINESE) if where == "English" else (ENGLISH, changed)
    assert set(check(*both)) - set(check(ENGLISH, CHINESE)), "not seen"


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
