"""The house is as docs/architecture.md says: its functions exist, imports go one way, additions are registered."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from bespoke.training.config import CHOICES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
GUIDE = ROOT / "CONTRIBUTING.md"
PYTHON = sorted(path for folder in ("nodes", "training") for path in (ROOT / folder).rglob("*.py"))
LONGEST_JOURNEY, JOURNEYS = 10, 3
LONGEST_FUNCTION = 60  # lines
LISTS_OF_INPUTS = {"define_schema", "trainer_inputs"}  # may be longer

# --- what the page names ---------------------------------------------------------------------------------------------

ENTRY = re.compile(r"^(\d+)\. `([\w/.]+): ([\w.]+)` \S", re.MULTILINE)
NAMED = re.compile(r"`([\w/]+\.(?:py|js)): ([\w.]+)`")
PATH = re.compile(r"`((?:nodes|training|js|tests|docs)/[\w/]*(?:\.\w+)?)`")


def journeys(page: str) -> list[list[tuple[str, str]]]:
    """[(path, name)] of each numbered list of the page."""
    out: list[list[tuple[str, str]]] = []
    for number, path, name in ENTRY.findall(page):
        if number == "1":
            out.append([])
        assert int(number) == len(out[-1]) + 1, f"{path}: {name} has the number {number}"
        out[-1].append((path, name))
    return out


def defined_in(path: str, text: str) -> set[str]:
    """The names of functions and classes that a module defines, methods as `Class.method`.

    In a script: functions, and properties of objects that are functions.
    """
    if path.endswith(".js"):
        pairs = re.findall(r"\bfunction (\w+)|\b(\w+)(?:: | = )(?:async )?\([^()]*\) =>", text)
        return {name for pair in pairs for name in pair if name}
    return set(_definitions(ast.parse(text)))


def _definitions(tree: ast.AST, prefix: str = "") -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node, f"{prefix}{node.name}.")


def uses(path: str, name: str, text: str) -> bool:
    """Whether a module mentions a function besides where it defines it; of `Class.__x__`, the class."""
    owner, _, last = name.rpartition(".")
    word = owner if last.startswith("__") else last
    found = len(re.findall(rf"(?<!def )(?<!class )(?<!function )\b{word}\b", _code(path, text)))
    return found > (1 if path.endswith(".js") and re.search(rf"\b{word}: ", text) else 0)


def _code(path: str, text: str) -> str:
    """A module's text without comments and docstrings."""
    if path.endswith(".js"):
        return re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    return ast.unparse(_without_docstrings(ast.parse(text)))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                line for line in body if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
            ]
    return tree


def read(path: str) -> str:
    return (ROOT / path).read_text("utf-8")


def test_the_page_has_three_journeys_of_at_most_ten_functions():
    found = journeys(PAGE.read_text("utf-8"))
    assert len(found) == JOURNEYS
    assert all(3 <= len(journey) <= LONGEST_JOURNEY for journey in found)


def test_every_function_that_the_page_names_is_there():
    named = NAMED.findall(PAGE.read_text("utf-8"))
    assert len(named) >= 25
    missing = [f"{path}: {name}" for path, name in named if name not in defined_in(path, read(path))]
    assert missing == []


def unused_functions(lists: list[list[tuple[str, str]]], files: dict[str, str]) -> list[str]:
    """The functions of the lists, but for the first of each, that no file mentions besides their definition."""
    called = [entry for journey in lists for entry in journey[1:]]
    return [f"{at}: {name}" for at, name in called if not any(uses(path, name, text) for path, text in files.items())]


def test_every_function_of_a_journey_is_used_by_another_of_the_page():
    """ComfyUI and the page call the first of each list."""
    lists = journeys(PAGE.read_text("utf-8"))
    files = {path: read(path) for journey in lists for path, _ in journey}
    assert unused_functions(lists, files) == []


def test_every_path_that_the_page_names_is_there():
    named = PATH.findall(PAGE.read_text("utf-8"))
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE.read_text("utf-8")):
        assert (PAGE.parent / link).exists(), link


def unknown_names(guide: str) -> list[str]:
    """What the Python examples of a page read and neither define nor find in the module that their first line names."""
    unknown = []
    for path, code in re.findall(r"^```python\n# (\S+)\n(.*?)^```", guide, re.MULTILINE | re.DOTALL):
        known = identifiers(read(path)) | set(vars(builtins))
        known |= {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name) and _is_assigned(node)}
        known |= {node.arg for node in ast.walk(ast.parse(code)) if isinstance(node, ast.arg)}
        unknown += sorted(f"{path}: {name}" for name in names_in(ast.parse(code)) - known)
    return unknown


def _is_assigned(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def unknown_tests(guide: str) -> list[str]:
    """The test functions that a page names in `backticks` and that no test file has."""
    tests = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    return [name for name in re.findall(r"`(test_\w+)`", guide) if f"def {name}(" not in tests]


def test_the_guide_is_true_to_the_code():
    guide = GUIDE.read_text("utf-8")
    assert [path for path in PATH.findall(guide) if not (ROOT / path).exists()] == []
    assert guide.count("```python\n# ") == 2
    assert unknown_names(guide) == []
    assert unknown_tests(guide) == []
    assert (
        identifiers("\n".join(re.findall(r"^```python\n(.*?)^```", guide, re.M | re.S))) & PRIVATE_IN_THE_PACK == set()
    )


def test_a_guide_that_is_not_true_is_found():
    example = "```python\n# training/objective.py\ndef f(sigma):\n    a = snr_of(sigma)\n    return a\n```\n"
    assert unknown_names(example) == ["training/objective.py: snr_of"]
    assert unknown_names(example.replace("snr_of", "signal_to_noise")) == []
    assert unknown_tests("`test_that_nobody_wrote`") == ["test_that_nobody_wrote"]


def unnamed_choices(help_page: str, fields: Sequence[str] = tuple(CHOICES)) -> list[str]:
    """The choices of the trainers that a help page does not name."""
    return [
        name
        for field, names in CHOICES.items()
        if field != "keep" and field in fields
        for name in names
        if f"`{name}`" not in help_page
    ]


def test_the_help_pages_name_every_choice_of_the_trainers():
    page = read("js/docs/BespokeTrainLora.md")
    assert unnamed_choices(page) == []
    assert unnamed_choices(page.replace("`SGD`", "SGD")) == ["SGD"]
    page = read("js/docs/BespokeTrainTextualInversion.md")
    assert unnamed_choices(page, ["loss_weighting"]) == []
    assert unnamed_choices(page.replace("`debiased`", "debiased"), ["loss_weighting"]) == ["debiased"]


def test_the_tooltips_name_every_choice_that_does_not_explain_itself():
    tooltips = ast.literal_eval(assigned(ast.parse(read("nodes/bridge/trainer_inputs.py")))["TOOLTIPS"])
    for field in ("optimizer", "loss_weighting", "timestep_sampling"):
        words = set(re.findall(r"[\w-]+", tooltips[field]))
        assert [name for name in CHOICES[field] if name not in (tooltips[field] if " " in name else words)] == []


def test_a_wrong_page_is_found():
    page = "1. `a/b.py: f` does it.\n2. `a/b.py: C.g` goes on.\n\n1. `js/a.js: act` begins.\n"
    assert journeys(page) == [[("a/b.py", "f"), ("a/b.py", "C.g")], [("js/a.js", "act")]]
    with pytest.raises(AssertionError, match="has the number 3"):
        journeys("1. `a/b.py: f` does it.\n3. `a/b.py: g` goes on.\n")
    assert defined_in("a.py", "class C:\n    def g(self): ...\ndef f(): ...\n") == {"C", "C.g", "f"}
    script = "async function act(x) {}\nreturn { finish: (id) => 1, other: 2 };"
    assert defined_in("a.js", script) == {"act", "finish"}
    lists, files = (
        [[("a.py", "f"), ("b.py", "g"), ("b.py", "h")]],
        {"a.py": "def f(): g()", "b.py": "def g(): ...\ndef h(): ..."},
    )
    assert unused_functions(lists, files) == ["b.py: h"]
    assert not uses("a.py", "f", '"""f is here."""\ndef f(): ...  # f\n')
    assert uses("a.py", "f", "def f(): ...\nf()\n")
    assert uses("a.py", "C.__call__", "class C: ...\nC()\n")
    assert not uses("a.js", "finish", "// finish\nreturn { finish: (id) => 1 };")
    assert uses("a.js", "finish", "runs.finish(id);")


# --- imports go one way ----------------------------------------------------------------------------------------------

OF_COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "nodes", "server"}
TRAINERS_TAKE_IMAGES = "makes a set of images on the wire, as Image Batch does"
# (room, the room that it imports): why.
ROOMS_THAT_IMPORT = {
    ("compare", "images"): TRAINERS_TAKE_IMAGES,
    ("compare", "lora"): "a sweep applies LoRAs, and scores them as their trainer does",
    ("jobs", "lora"): "exports and runs LoRA trainings",
    ("jobs", "textual_inversion"): "exports and runs trainings of words",
    ("jobs", "images"): TRAINERS_TAKE_IMAGES,
    ("jobs", "word_and_lora"): "exports and runs trainings of a word and a LoRA",
    ("lora", "images"): TRAINERS_TAKE_IMAGES,
    ("lora", "textual_inversion"): "what prompts say for the words in a LoRA's file",
    ("textual_inversion", "images"): TRAINERS_TAKE_IMAGES,
    ("word_and_lora", "lora"): "one technique of two: the adapters, the loss and the file",
    ("word_and_lora", "textual_inversion"): "one technique of two: the word and its prompts",
}
LORA_ROOMS = {
    "training",
    "injection",
    "composition",
    "extraction",
    "inspection",
    "settings",
    "learning_rate",
    "slider",
    "stacks",
}
LORA_ROOMS_THAT_IMPORT = {
    ("injection", "inspection"): "the report of a load begins with the file's description",
    ("injection", "composition"): "the scoped LoRA of a stack is the sum of its LoRAs",
    ("slider", "training"): "a slider is a LoRA, with another loss",
    ("stacks", "injection"): "the limits of a strength",
    ("learning_rate", "training"): "tries the trainer's own steps",
    ("settings", "training"): "gives values for the trainer's widgets, checked as the trainer checks them",
    ("training", "injection"): "how a LoRA of a part of the schedule acts, and how a training adapter is computed",
}


def imports_of(path: str, text: str) -> Iterator[str]:
    """What a module of the pack imports, absolute: the pack's own modules begin with "."; names in `from` count."""
    package = list(Path(path).parent.parts)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield node.module or ""
                continue
            base = package[: len(package) - node.level + 1]
            parts = base + (node.module.split(".") if node.module else [])
            yield from ("." + ".".join([*parts, name.name]) for name in node.names)


def wrong_imports(path: str, text: str) -> list[str]:
    """The imports of a module that the rules of the house forbid."""
    parts, wrong = Path(path).parts, []
    for imported in imports_of(path, text):
        if not imported.startswith("."):
            if parts[0] == "training" and imported.split(".")[0] in OF_COMFYUI:
                wrong.append(imported)
            continue
        to = imported[1:].split(".")
        if to[0] == "nodes" and not _may_import(parts, to):
            wrong.append(imported)
    return wrong


def _may_import(parts: tuple[str, ...], to: list[str]) -> bool:
    """Whether the module at `parts` may import the module `to`, which lies in nodes/."""
    if parts[0] == "training":
        return False
    here, there = parts[1], to[1]
    if here == "extension.py" or there == "bridge":
        return True
    if here != there:
        return (here, there) in ROOMS_THAT_IMPORT
    if here == "lora" and {parts[2], to[2]} <= LORA_ROOMS and parts[2] != to[2]:
        return (parts[2], to[2]) in LORA_ROOMS_THAT_IMPORT
    return True


def of_root(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", PYTHON, ids=of_root)
def test_imports_go_one_way(path):
    assert wrong_imports(of_root(path), path.read_text("utf-8")) == []


def test_every_exception_is_still_needed():
    pairs, lora = set(), set()
    for path in PYTHON:
        parts = path.relative_to(ROOT).parts
        for imported in imports_of(of_root(path), path.read_text("utf-8")):
            to = imported[1:].split(".")
            if parts[0] == "nodes" and imported.startswith(".nodes."):
                pairs.add((parts[1], to[1]))
                if parts[1] == to[1] == "lora":
                    lora.add((parts[2], to[2]))
    assert set(ROOMS_THAT_IMPORT) <= pairs
    assert set(LORA_ROOMS_THAT_IMPORT) <= lora


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("training/loop.py", "import comfy.utils"),
        ("training/loop.py", "from server import PromptServer"),
        ("training/adapters/lora.py", "def f():\n    import folder_paths"),
        ("training/loop.py", "from ..nodes.bridge import web"),
        ("nodes/bridge/runs/store.py", "from ...lora.files import as_file"),
        ("nodes/bridge/trainer.py", "from .. import lora"),
        ("nodes/img2img/node.py", "from ..inpaint.mask import grow"),
        ("nodes/lora/files.py", "from ..jobs import job"),
        ("nodes/lora/inspection/node.py", "from ..injection.inject import inject"),
    ],
)
def test_an_import_against_the_rules_is_found(path, text):
    assert wrong_imports(path, text)


# --- sizes and words -------------------------------------------------------------------------------------------------

# Words of an earlier, private vocabulary; design texts and commits of that time have them.
PRIVATE = {
    *("opened_for_training", "Surroundings", "Outlets", "in_rotation", "take_finish", "Material", "names_itself"),
    *("weightless", "recast", "MEETING", "hear_all", "_Follower", "schedule_place", "LESS", "LowRankAdapters"),
    *("fit_lora", "fit_word"),
}
PRIVATE_IN_THE_PACK = PRIVATE | {"wish", "wishes", "gather", "follow", "asked", "said", "beside", "deaf", "acts"}


def long_functions(text: str) -> list[str]:
    functions = (
        node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )
    return [
        node.name
        for node in functions
        if node.name not in LISTS_OF_INPUTS and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    ]


def identifiers(text: str) -> set[str]:
    """Every name that a module defines, reads or takes as an argument, and the parts of modules that it imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, (ast.arg, ast.keyword)) and node.arg:
            found.add(node.arg)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [getattr(node, "module", None) or "", *(name.name for name in node.names)]
            found |= {part for module in modules for part in module.split(".")}
    return found


@pytest.mark.parametrize("path", PYTHON, ids=of_root)
def test_no_function_is_too_long_and_no_private_word_is_left(path):
    text = path.read_text("utf-8")
    assert long_functions(text) == []
    inputs = set(
        re.findall(r'\.Input\(\s*"(\w+)"', text)
    )  # their names are public, and execute takes them as arguments
    assert (identifiers(text) - inputs | {path.stem}) & PRIVATE_IN_THE_PACK == set()


def test_no_private_word_is_left_in_tests_and_scripts():
    for path in sorted((ROOT / "tests").rglob("*.py")):
        assert (identifiers(path.read_text("utf-8")) | {path.stem}) & PRIVATE == set(), path.name
    for path in sorted((ROOT / "js").glob("*.js")):
        code = _code("x.js", re.sub(r'"(?:\\.|[^"\\\n])*"', '""', path.read_text("utf-8")))
        assert set(re.findall(r"\b(?:acts|wish|wishes|deaf)\b", code)) == set(), path.name


def test_a_long_function_and_a_private_word_are_found():
    body = "    x = 1\n" * LONGEST_FUNCTION
    assert long_functions(
        f"def f():\n{body}\nclass A:\n    async def g(self):\n{body.replace('    ', '        ')}"
    ) == ["f", "g"]
    assert long_functions(f"def define_schema():\n{body}") == []
    assert long_functions("def f():\n" + "    x = 1\n" * (LONGEST_FUNCTION - 1)) == []
    text = "from .weightless import a\nclass Outlets: ...\ndef f(wish): g.recast(LESS, said=1)\n"
    assert identifiers(text) & PRIVATE_IN_THE_PACK == {"weightless", "Outlets", "wish", "recast", "LESS", "said"}


# --- what is added is registered -------------------------------------------------------------------------------------


def classes(folder: str) -> Iterator[tuple[Path, ast.ClassDef]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield from ((path, node) for node in ast.parse(read(of_root(path))).body if isinstance(node, ast.ClassDef))


def assigned(tree: ast.Module | ast.ClassDef) -> dict[str, ast.expr]:
    """{name: value} of the assignments of a module or class, annotated ones too."""
    out = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            out[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            out[node.target.id] = node.value
    return out


def names_in(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_every_technique_can_be_a_job_and_has_a_panel():
    """A technique is a class in nodes/ with the name `...Technique` and a `name`."""
    techniques = {
        node.name: ast.literal_eval(assigned(node)["name"])
        for _, node in classes("nodes")
        if node.name.endswith("Technique") and "name" in assigned(node)
    }
    assert len(techniques) >= 2
    table = assigned(ast.parse(read("nodes/jobs/techniques.py")))["TECHNIQUES"]
    assert set(techniques) <= names_in(table), "a technique has no row in nodes/jobs/techniques.py"
    trainers = re.search(r"TRAINERS = \{([^}]*)\}", read("js/run_values.js"))[1]
    assert set(techniques.values()) == set(re.findall(r': "([^"]+)"', trainers)), "TRAINERS of js/run_values.js"


def test_every_kind_of_lora_file_is_in_both_tuples():
    table = assigned(ast.parse(read("nodes/lora/kinds/__init__.py")))
    made = {
        name
        for path in (ROOT / "nodes" / "lora" / "kinds").glob("*.py")
        for name, value in assigned(ast.parse(read(of_root(path)))).items()
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "AdapterKind"
    }
    assert len(made) >= 8
    assert names_in(table["KINDS"]) == names_in(table["_BY_NAME"]) == made


def test_every_adapter_kind_is_in_the_table():
    kinds = {
        node.name
        for _, node in classes("training/adapters")
        if any(base.endswith("Adapter") for base in map(ast.unparse, node.bases))
    }
    assert kinds
    assert kinds == names_in(assigned(ast.parse(read("training/adapters/__init__.py")))["ADAPTERS"])


def test_every_node_is_listed():
    extension = ast.parse(read("nodes/extension.py"))
    nodes = {node.name for _, node in classes("nodes") if "io.ComfyNode" in map(ast.unparse, node.bases)}
    listed = next(node for node in ast.walk(extension) if getattr(node, "name", "") == "get_node_list")
    assert len(nodes) >= 19
    assert nodes - names_in(listed) == set()


def test_every_route_is_registered():
    extension = ast.parse(read("nodes/extension.py"))
    known = {
        ".".join([*(node.module or "").split("."), name.name])
        for node in ast.walk(extension)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    modules = {path for path in (ROOT / "nodes").rglob("*.py") if path.name == "routes.py"}
    assert len(modules) >= 4
    assert {".".join(path.relative_to(ROOT / "nodes").with_suffix("").parts) for path in modules} <= known
    assert read("nodes/extension.py").count(".register(PromptServer.instance") == len(modules)


def test_every_page_script_is_imported():
    scripts = {path.name: set(re.findall(r'from "\./(\w+\.js)"', read(of_root(path)))) for path in ROOT.glob("js/*.js")}
    reached, left = set(), {"index.js"}
    while left:
        name = left.pop()
        reached.add(name)
        left |= scripts[name] - reached
    assert set(scripts) - reached == set(), "js/index.js imports these neither directly nor through another script"


@pytest.mark.parametrize(
    ("check", "path", "old", "new"),
    [
        (test_every_technique_can_be_a_job_and_has_a_panel, "nodes/jobs/techniques.py", "LoraTechnique", "Other"),
        (test_every_technique_can_be_a_job_and_has_a_panel, "js/run_values.js", ': "lora"', ': "other"'),
        (test_every_kind_of_lora_file_is_in_both_tuples, "nodes/lora/kinds/__init__.py", "(DORA, OFT", "(OFT"),
        (test_every_kind_of_lora_file_is_in_both_tuples, "nodes/lora/kinds/oft.py", "BOFT = ", "COFT = "),
        (test_every_adapter_kind_is_in_the_table, "training/adapters/lora.py", "class LoraA", "class OtherA"),
        (test_every_node_is_listed, "nodes/extension.py", "            Compare,\n", ""),
        (test_every_route_is_registered, "nodes/extension.py", "lora_routes.register", "lora_routes.forget"),
        (
            test_every_route_is_registered,
            "nodes/extension.py",
            "from .images import routes as",
            "from .images import of as",
        ),
        (test_every_page_script_is_imported, "js/index.js", 'from "./toasts.js"', 'from "./toast.js"'),
    ],
)
def test_what_is_not_registered_is_found(monkeypatch, check, path, old, new):
    text = read(path)
    assert old in text
    plain = read
    monkeypatch.setattr(f"{__name__}.read", lambda other: text.replace(old, new) if other == path else plain(other))
    with pytest.raises((AssertionError, KeyError)):
        check()
