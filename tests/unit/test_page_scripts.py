"""Rules for the page's scripts, checked on their text: one module touches the page, none polls, all text is
translated."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "js").glob("*.js"))
PAGE = "comfy.js"
# Objects of ComfyUI's page, and fields of its graphs, nodes and widgets.
PAGE_PATTERNS = (
    r"\bapp\b",
    r"\bapi\b",
    r"\bLiteGraph\b",
    r"\bextensionManager\b",
    r"\.widgets\b",
    r"\.graph\b",
    r"\.rootGraph\b",
    r"\.inputs\b",
    r"\.outputs\b",
    r"\.subgraph\b",
    r"\.comfyClass\b",
    r"\.canvas\.",
    r"\.callback\b",
    r"\bon(?:Configure|Serialize|Removed|Added|ConnectionsChange)\b",
)


def code_and_strings(text: str) -> tuple[str, list[str]]:
    """A script without comments and strings, and its strings; `{}` replaces each value in a template."""
    code, strings, i = [], [], 0
    while i < len(text):
        two, one = text[i : i + 2], text[i]
        if two == "//":
            i = text.find("\n", i) if "\n" in text[i:] else len(text)
        elif two == "/*":
            i = text.index("*/", i) + 2
        elif one in "\"'":
            end = re.compile(rf"(?:\\.|[^{one}\\])*{one}").match(text, i + 1).end()
            strings.append(text[i + 1 : end - 1])
            code.append('""')
            i = end
        elif one == "`":
            inner, literal, i = [], "", i + 1
            while text[i] != "`":
                if text[i : i + 2] == "${":
                    depth, start = 1, i + 2
                    i += 2
                    while depth:
                        depth += {"{": 1, "}": -1}.get(text[i], 0)
                        i += 1
                    inner.append(text[start : i - 1])
                    literal += "{}"
                else:
                    literal += text[i]
                    i += 1
            i += 1
            strings.append(literal)
            code.append('"" ')
            for part in inner:
                more, found = code_and_strings(part)
                code.append(more)
                strings += found
        elif one == "/" and re.search(r"[(,=:\[!&|?{};\n]\s*$", "".join(code[-40:])):  # a regular expression
            end = re.compile(r"(?:\\.|\[(?:\\.|[^\]\\])*\]|[^/\\\n])*/[a-z]*").match(text, i + 1).end()
            code.append("REGEX")
            i = end
        else:
            code.append(one)
            i += 1
    return "".join(code), strings


def test_code_and_strings_splits_a_script():
    code, strings = code_and_strings(
        'a("x // y", \'it\\\'s\', `p ${q ? `in ${r}` : "no"} s`); // app\n/* app */ const e = /[/"]+/g;'
    )
    assert "app" not in code
    assert "REGEX" in code
    assert strings == ["x // y", "it\\'s", "p {} s", "in {}", "no"]


# In no script: polling, and writing of saved values or of the order of widgets.
CHANGE = r"(?:splice|push|pop|shift|unshift|sort|reverse|fill|copyWithin)"
FORBIDDEN = (
    r"\bsetInterval\b",
    r"\bonSerialize\b",
    r"\.serialize\s*=(?!\s*false\b)",
    r"\.widgets\s*=[^=]",
    rf"\bwidgets\s*\??\.\s*{CHANGE}\b",
    rf"\bwidgets_values\w*\s*(?:\[[^\]]*\]\s*)?(?:=[^=>]|\??\.{CHANGE}\b)",
)
FORBIDDEN_OUTSIDE_COMFY_JS = (
    *PAGE_PATTERNS,
    r"\bglobalThis\b",
    r"\bwindow\.(?!devicePixelRatio\b)",
    r"\{[^{}]*\b(?:widgets|graph|inputs|outputs)\b[^{}]*\}\s*=\s*node\b",
)
UNTRANSLATED_WORD = r"\bel\([^()]*,\s*\{[^{}]*\},\s*[\"`][^\W\d_]|\btextContent\s*=\s*[\"`][^\W\d_]"


def faults(name: str, text: str) -> list[str]:
    """The rules that a script's text breaks, as patterns."""
    code, strings = code_and_strings(text)
    broken = [pattern for pattern in FORBIDDEN if re.search(pattern, code)]
    if name != PAGE:
        broken += [pattern for pattern in FORBIDDEN_OUTSIDE_COMFY_JS if re.search(pattern, code)]
        broken += [path for path in strings if "scripts/" in path]
        if name != "dom.js":  # its nodes are those of the document
            broken += re.findall(r"\bnode\??\.\w+", code)
    if name != "repair.js" and "widgets_values" in code:
        broken.append("widgets_values")
    return broken + re.findall(UNTRANSLATED_WORD, text)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_keeps_the_rules(script):
    """Only comfy.js touches the page, nothing polls, no saved list is written. See CONTRIBUTING, "The page"."""
    assert faults(script.name, script.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("runs.js", 'import { app } from "../../scripts/app.js";'),
        ("runs.js", "node.setSize([1, 1]);"),
        ("runs.js", "const { widgets, graph } = node;"),
        ("runs.js", "node?.mode === 2;"),
        ("runs.js", "window.comfyAPI.app;"),
        ("runs.js", "globalThis.app;"),
        ("runs.js", "run.graph.add(x);"),
        ("comfy.js", "setInterval(look, 80);"),
        ("comfy.js", "node.widgets = [];"),
        ("comfy.js", "node.widgets.splice(0, 1);"),
        ("comfy.js", "const { widgets } = node; widgets.unshift(x);"),
        ("comfy.js", "data.widgets_values = [];"),
        ("repair.js", "saved.widgets_values.push(1);"),
        ("repair.js", "saved.widgets_values[0] = 1;"),
        ("comfy.js", "Object.assign(data, { widgets_values });"),
        ("comfy.js", "node.onSerialize = f;"),
        ("comfy.js", "node.serialize = function () {};"),
        ("runs_tab.js", 'el("button", {}, "Delete");'),
        ("runs_tab.js", 'note.textContent = "Missing";'),
    ],
)
def test_a_broken_rule_is_found(name, added):
    text = (ROOT / "js" / name).read_text("utf-8")
    assert faults(name, f"{text}\n{added}\n")


def test_private_fields_are_listed_with_their_page_versions():
    text = (ROOT / "js" / PAGE).read_text("utf-8")
    head, body = text.split("\nimport ", 1)
    code, strings = code_and_strings(body)
    assert "1.47.12" in head
    assert "1.58.1" in head
    uses = set(re.findall(r"\b(?:app|api|LiteGraph)\??\.(\w+)", code)) | set(re.findall(r"\bcanvas\.(\w+)", code))
    uses |= set(
        re.findall(
            r"\.(rootGraph|subgraph|outputNode|isVirtualNode|resolveVirtualOutput|vueNodesMode|computeLayoutSize|computeSize|slots|getLinks)\b",
            code,
        )
    )
    assert len(uses) > 20
    public = {
        "fetchApi",
        "apiURL",
        "addEventListener",
        "registerExtension",
        "extensionManager",
        "createNode",
        "LGraphNode",
        "canvas",
        "add",
        "graph",
    }
    assert {name for name in uses - public if name not in head} == set()
    assert "graphChanged" in head
    assert "graphChanged" in strings


# Names that the server and the records use, and text that is compared with them.
NAMES = {"textual inversion", "word and lora", "cut off", "saved as ", "(no folder yet)"}
PROSE = re.compile(r"[^\W\d_]{2,}[,.:;!?]* (?:[^\W\d_]{2,}|\{\})|\{\} [^\W\d_]{2,}")  # two words, or a word and a value
NO_PROSE = re.compile(
    r"(?:(?:pi|pi-[\w-]+|bespoke-[\w{}-]+)(?: |$))+"  # classes
    r"|(?:[\d.{}]+px )?(?:Inter|\{\})[\w, {}-]*"  # fonts
    r"|.*[\w-]+ ?:[^ ].*|[.#\[:].*|/.*|\[data-.*"  # styles, selectors, addresses
    r"|\(\?.*|\^.*"  # pieces of expressions
)


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.name != "settings.js"], ids=lambda path: path.name)
def test_every_word_that_is_shown_is_translated(script):
    """The texts of settings.js are in settings.json and commands.json, which `test_page_words.py` compares."""
    source = script.read_text("utf-8")
    known = set(json.loads((ROOT / "locales" / "en" / "main.json").read_text("utf-8"))["bespoke"]) | NAMES
    strings = code_and_strings(source)[1]
    words = [text for text in strings if PROSE.search(text) and text not in known and not NO_PROSE.fullmatch(text)]
    assert words == [], "give these words a key in locales/*/main.json and ask for it with t()"
    # A single word in an argument that is shown.
    shown = (
        r"(?:setText\([\w.\[\]]+, |new "
        r"Error\(|fillText\(|\bwrite\(|(?:title|placeholder|alt|summary|detail|label|\"aria-label\"): "
        r")([\"`])(?=[^\W\d_])"
    )
    assert [found.group(0) + source[found.end() : found.end() + 30] for found in re.finditer(shown, source)] == []


def test_untranslated_text_is_found():
    _, strings = code_and_strings('setText(note, `status ${answer.status}`); write("runs nothing: the picture stays");')
    assert [text for text in strings if PROSE.search(text) and not NO_PROSE.fullmatch(text)] == strings
