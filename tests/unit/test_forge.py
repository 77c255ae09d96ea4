"""What the forge and the registry read (workflows, templates, metadata, pictures) agrees with the code."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10; pytest brings it there
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
FORGE = ROOT / ".github"
WORKFLOWS = sorted((FORGE / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (FORGE / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
LARGEST_FILE = 24 * 2**20  # bytes
SVG = "{http://www.w3.org/2000/svg}"
# The registry's specification (docs.comfy.org/registry/specifications): systems and makes of cards.
REGISTRY_CLASSIFIERS = {
    "Operating System :: OS Independent",
    "Operating System :: POSIX :: Linux",
    "Operating System :: Microsoft :: Windows",
    "Operating System :: MacOS",
    "Environment :: GPU :: NVIDIA CUDA",
    "Environment :: GPU :: AMD ROCm",
    "Environment :: GPU :: Intel Arc",
    "Environment :: GPU :: Apple Metal",
    "Environment :: NPU :: Huawei Ascend",
}


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def load(name: str):
    return yaml.safe_load(text(name))


def project() -> dict:
    return tomllib.loads(text("pyproject.toml"))


def tracked(*options: str) -> list[str]:
    """The files that git tracks, with further options of `git ls-files`."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    answer = subprocess.run(["git", "ls-files", *options], cwd=ROOT, capture_output=True, text=True, check=True)
    return answer.stdout.splitlines()


@pytest.fixture(scope="module")
def dev():
    """dev.py as a module."""
    spec = importlib.util.spec_from_file_location("dev_of_the_forge", ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- workflows ------------------------------------------------------------------------------------------------------


def commands_of(workflow: dict) -> list[list[str]]:
    """The words of each dev.py command of a workflow, from its name on: ["test", "tests/unit"]."""
    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    words = [shlex.split(run) for run in runs if "dev.py" in run]
    return [line[line.index("dev.py") + 1 :] for line in words]


def wrong_command(words: list[str], dev) -> str | None:
    """What is wrong with a dev.py command, or None."""
    names = re.findall(r'commands\.add_parser\("(\w+)"', text("dev.py"))
    if not words or words[0] not in names:
        return f"dev.py has no command {words[:1]}, only {names}"
    if words[0] == "check":
        return next((f"no check {name}" for name in words[1:] if name not in dev.CHECKS), None)
    if words[0] != "test":
        return None
    options, rest = dev.leading_options(words[1:], ("--comfyui", "--frontend"))
    if options.get("--comfyui", dev.NEWEST) not in dev.COMFYUIS:
        return f"dev.py has no ComfyUI {options['--comfyui']}"
    if options.get("--frontend", "each") not in {"each", *dev.FRONTENDS}:
        return f"dev.py has no page {options['--frontend']}"
    return next((f"{path} is missing" for path in rest if not (ROOT / path).exists()), None)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_names_only_commands_that_dev_has(path, dev):
    workflow = load(path.relative_to(ROOT).as_posix())
    commands = commands_of(workflow)
    assert commands
    assert [wrong_command(words, dev) for words in commands] == [None] * len(commands)
    assert all(0 < job["timeout-minutes"] <= 120 for job in workflow["jobs"].values())
    assert workflow["permissions"] == {"contents": "read"}


def test_wrong_commands_are_found(dev):
    assert wrong_command(["tests"], dev)
    assert wrong_command(["check", "spelling"], dev)
    assert wrong_command(["test", "--comfyui", "0.1.0", "tests/unit"], dev)
    assert wrong_command(["test", "tests/unit/test_no_such.py"], dev)
    assert wrong_command(["test", "--frontend", "each"], dev) is None


def test_the_unit_tests_run_on_three_systems():
    unit = load(".github/workflows/checks.yml")["jobs"]["unit"]
    systems = {name.split("-")[0] for name in unit["strategy"]["matrix"]["system"]}
    assert systems == {"ubuntu", "windows", "macos"}


def test_only_a_new_version_is_published():
    workflow = load(".github/workflows/publish.yml")
    assert workflow[True]["push"] == {"branches": ["main"], "paths": ["pyproject.toml"]}  # YAML reads "on" as true
    jobs = workflow["jobs"]
    assert jobs["test"]["if"] == "needs.version.outputs.is_new == 'true'"
    assert jobs["registry"]["needs"] == "test"
    published = [step for step in jobs["registry"]["steps"] if "publish --token" in step.get("run", "")]
    assert [step["if"] for step in published] == ["env.TOKEN != ''"]


@pytest.mark.skipif(os.name == "nt" or not shutil.which("git"), reason="the job runs on Linux, with git")
@pytest.mark.parametrize(
    ("version", "sections", "expected"),
    [
        ("0.1.0", ["Unreleased"], (0, "is_new=false\n")),  # another line of pyproject.toml was changed
        ("0.2.0", ["Unreleased"], (1, "")),  # a version that the changelog does not have
        ("0.2.0", ["Unreleased", "0.2.0"], (0, "is_new=true\n")),
        ("0.2.0", ["Unreleased", "0.2.01"], (1, "")),
    ],
)
def test_the_job_that_compares_versions(tmp_path, version, sections, expected):
    """Runs the job's own script in a repository whose version was 0.1.0 before the push."""
    steps = load(".github/workflows/publish.yml")["jobs"]["version"]["steps"]
    (script,) = [step["run"] for step in steps if step.get("id") == "compare"]
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", str(tmp_path)]
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "0.1.0"\n')
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "before"]):
        subprocess.run([*git, *command], check=True)
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "y"\nversion = "{version}"\n')
    (tmp_path / "CHANGELOG.md").write_text("".join(f"## [{section}]\n" for section in sections))
    out = tmp_path / "out"
    out.touch()
    env = {**os.environ, "BEFORE": "HEAD", "BY_HAND": "false", "GITHUB_OUTPUT": str(out)}
    done = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, out.read_text()) == expected, done.stdout + done.stderr


# --- versions and addresses -----------------------------------------------------------------------------------------


def test_versions_agree():
    # The publishing job reads the version by this pattern.
    assert re.findall(r'^version = "(.*)"$', text("pyproject.toml"), re.MULTILINE) == [project()["project"]["version"]]
    assert load("CITATION.cff")["version"] == project()["project"]["version"]


def test_the_floors_are_those_that_were_tried(dev):
    """The oldest ComfyUI is the oldest that dev.py has; the oldest page is the first that js/comfy.js names."""
    oldest = min(dev.COMFYUIS, key=lambda version: tuple(map(int, version.split("."))))
    assert project()["tool"]["comfy"]["requires-comfyui"] == f">={oldest}"
    assert f"--comfyui {oldest}" in text(".ci/run")
    page = re.search(r"each seen on the pages ([\d.]+\d)", text("js/comfy.js")).group(1)
    assert project()["project"]["dependencies"] == [f"comfyui-frontend-package>={page}"]


def test_the_address_stands_in_one_place():
    urls = project()["project"]["urls"]
    repository = urls["Repository"]
    assert all(address.startswith(repository) for address in urls.values())
    raw = repository.replace("//github.com/", "//raw.githubusercontent.com/") + "/main/"
    for picture in ("Icon", "Banner"):
        address = project()["tool"]["comfy"][picture]
        assert address.startswith(raw)
        assert (ROOT / address.removeprefix(raw)).is_file()
    name = repository.split("github.com/")[1]
    named = [
        path
        for path in tracked()
        if path.endswith((".md", ".py", ".js", ".toml", ".yml", ".yaml", ".cff", ".json")) and name in text(path)
    ]
    assert named == ["pyproject.toml"]


def test_classifiers_are_those_of_the_registry():
    own = [name for name in project()["project"]["classifiers"] if name.startswith(("Operating", "Environment"))]
    assert set(own) <= REGISTRY_CLASSIFIERS
    assert {"Operating System :: OS Independent", "Environment :: GPU :: NVIDIA CUDA"} <= set(own)


# --- pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "ratio", "widest"), [("icon", 1, 400), ("banner", 21 / 9, 2100)])
def test_a_picture_has_the_shape_that_the_registry_asks_for(name, ratio, widest):
    root = ElementTree.fromstring(text(f"docs/{name}.svg"))
    assert root.tag == f"{SVG}svg"
    width, height = float(root.get("width")), float(root.get("height"))
    assert width / height == pytest.approx(ratio, abs=1e-6)
    assert width <= widest
    assert root.get("viewBox") == f"0 0 {width:g} {height:g}"
    inside = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert inside.isdisjoint({"script", "image", "foreignObject", "use", "a"})  # nothing is loaded or run
    assert "Bespoke" in root.get("aria-label")


# --- issues and pull requests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one(path):
    """By GitHub's syntax for issue forms: each field has a type, a label, and an id of its own."""
    form = load(path.relative_to(ROOT).as_posix())
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in fields} <= {"input", "textarea", "dropdown", "checkboxes"}
    assert all(field["attributes"]["label"] and field["attributes"]["description"] for field in fields)
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids)
    assert any(field.get("validations", {}).get("required") for field in fields)


@pytest.mark.parametrize("form", ["bug", "training"])
def test_forms_ask_for_versions_and_the_record_of_a_run(form):
    fields = {field.get("id"): field for field in load(f".github/ISSUE_TEMPLATE/{form}.yml")["body"]}
    for name in ("pack", "comfyui", "machine"):
        assert fields[name]["validations"]["required"]
    store = text("nodes/bridge/runs/record_file.py")
    record = re.search(r'^RECORD = "(.+)"', store, re.MULTILINE).group(1)
    assert record in fields["record"]["attributes"]["description"]
    assert fields["record"].get("validations", {}).get("required", False) == (form == "training")
    assert record in text(".github/PULL_REQUEST_TEMPLATE.md")


@pytest.mark.parametrize("page", ["SECURITY.md", "CODE_OF_CONDUCT.md"])
def test_reports_go_to_the_forge_and_to_no_address(page):
    content = text(page)
    assert "**Security** tab" in content
    assert re.findall(r"[\w.]+@[\w.]+|https?://", content) == []


# --- files ----------------------------------------------------------------------------------------------------------


def test_hooks_are_the_pinned_ruff_and_a_limit_on_size():
    hooks = {
        hook["id"]: hook for repository in load(".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]
    }
    assert f"--maxkb={LARGEST_FILE // 1024}" in hooks["check-added-large-files"]["args"]
    pinned = re.search(r"^ruff==\S+", text("tests/requirements.txt"), re.MULTILINE).group()
    assert [hooks[name]["additional_dependencies"] for name in ("ruff-check", "ruff-format")] == [[pinned], [pinned]]


def test_no_file_is_larger_than_the_limit():
    assert [path for path in tracked() if (ROOT / path).is_file() and (ROOT / path).stat().st_size > LARGEST_FILE] == []


def test_editors_are_told_what_ruff_checks():
    section = text(".editorconfig").split("[*.py]")[1].split("[")[0]
    assert f"max_line_length = {project()['tool']['ruff']['line-length']}" in section


def test_the_package_has_all_that_a_user_needs():
    """comfy-cli leaves out what .comfyignore names, by the rules of .gitignore, which git itself applies here."""
    left_out = set(tracked("--ignored", "--cached", "--exclude-from=.comfyignore"))
    assert {"dev.py", "docs/icon.svg", "tests/conftest.py", ".github/workflows/checks.yml"} <= left_out
    shipped = ("nodes/", "training/", "js/", "locales/", "example_workflows/", "subgraphs/")
    assert [path for path in left_out if path.startswith(shipped)] == []
    root = {path for path in tracked() if "/" not in path} - left_out
    assert root == {
        "__init__.py",
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "CITATION.cff",
        "SECURITY.md",
        "CODE_OF_CONDUCT.md",
    }
