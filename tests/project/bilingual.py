"""Two texts, English and Chinese, as what they hold section by section, and the comparisons between them.

A comparison takes both texts and returns one line for every difference.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from itertools import pairwise, zip_longest
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

Check = Callable[[str, str], list[str]]
ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.name for path in (ROOT / "docs/zh-CN").glob("*.md"))
TWINS = {"README.md": "README.zh-CN.md"} | {f"docs/{name}": f"docs/zh-CN/{name}" for name in PAGES}
ENGLISH_OF = {chinese: english for english, chinese in TWINS.items()}

CJK = r"[\u3400-\u9fff]"
FULL = "，。、；：？！（）“”"
TERMS = ("净输入", "活性值", "误差项", "正则化项", "目标函数", "损失", "权重矩阵", "偏置", "激活函数")
TERMS += ("前向传播", "反向传播", "计算图", "局部导数", "梯度")
FORMULA_WORDS = {"delta", "lambda", "phi", "sum", "prod", "diag"}
# One and two are left out: too often they are an article, a pair, or 两.
WORDS = ["three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
HANZI = ["三", "四", "五", "六", "七", "八", "九", "十", "十一", "十二"]
SCALES = {"million": 10**6, "万": 10**4, "亿": 10**8}

# ---------------------------------------------------------------------------------------------------------------------
# A page, with what a language or a folder alone makes different taken out


def as_compared(name: str) -> str:
    """A page with targets from the repository's root, those of Chinese pages by their twins, and with maths as code."""
    parts = re.split(r"(^```.*?^```$)", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r'(?<=\]\()[^)#\s]+|(?<=src=")[^"]+|(?<=srcset=")[^"]+', _from_root(name), parts[i])
        parts[i] = re.sub(r"\$\$(.*?)\$\$", r"```math\n\1\n```", parts[i], flags=re.DOTALL)
        parts[i] = re.sub(r"(?<![`\w])\$([^$]+)\$", r"`\1`", parts[i])
    return "".join(parts)


def _from_root(name: str) -> Callable[[re.Match[str]], str]:
    def target(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), match[0]))
        if ":" in match[0] or path in (TWINS.get(name), ENGLISH_OF.get(name)):
            return match[0] if ":" in match[0] else "other-language"
        in_english = name in ENGLISH_OF and path in TWINS  # where a page in Chinese stands
        return f"english:{path}" if in_english else ENGLISH_OF.get(path, path)

    return target


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
        """Without the anchors, which follow the headings' language."""
        return [link.partition("#")[0] or "#" for text in self.texts for link in text.links]


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
# The comparisons


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
        lines += [f"{where}: cells {shapes[0]} in English, {shapes[1]} in Chinese"] * (shapes[0] != shapes[1])
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
    """Whether the top of every page leads to its twin."""
    return [
        f"{of.heading.prose}: no link to the other language under the title"
        for text in (english, chinese)
        for of in sections(text)
        if of.level == 1 and "other-language" not in of.links
    ]


def in_language(english: str, chinese: str) -> list[str]:
    """What is still in English, and terms of the note that are missing."""
    lines = [f"the term {term} is nowhere" for term in TERMS if term not in chinese]
    for i, (where, _, zh) in enumerate(pairs(english, chinese)):
        lines += [f"{where}: no Chinese in the whole section"] * (not re.search(CJK, zh.prose))
        lines += [f"{where}: the heading is not translated"] * (i > 0 and not re.search(CJK, zh.heading.prose))
        ours = [text.prose for text in zh.inlines if is_prose(text.prose) and not re.search(CJK, text.prose)]
        lines += [f"{where}: not translated: {prose[:60]!r}" for prose in ours if prose != "English"]
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
