"""dev.py: checks of downloads, search for ComfyUI, locks, child processes, the command line."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import host
import pytest


def load(path: Path):
    spec = importlib.util.spec_from_file_location("dev_under_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def dev(tmp_path):
    """dev.py as a module, copied to an empty pack."""
    pack = tmp_path / "pack"
    pack.mkdir()
    return load(Path(shutil.copy(host.ROOT / "dev.py", pack)))


# --- the archive ----------------------------------------------------------------------------------------------------


def archive(path: Path, *members: tuple[str, bytes | None], link: str | None = None) -> str:
    """Write a .tar.gz (None is a folder; `link` a symbolic link's name) and return its SHA-256."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data or b""))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_the_inner_folder_is_extracted(dev, tmp_path):
    file = tmp_path / "a.tar.gz"
    sha = archive(
        file,
        ("top/vendor/ComfyUI", None),
        ("top/vendor/ComfyUI/main.py", b"main"),
        ("top/vendor/ComfyUI/comfy/sd.py", b"sd"),
        ("top/setup.py", b"outside"),
        ("top/vendor/ComfyUI2/x.py", b"outside"),
        ("../escape.py", b"outside"),
    )
    dev.extract(file, sha, "vendor/ComfyUI", tmp_path / "out")
    found = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes() for path in (tmp_path / "out").rglob("*.py")
    }
    assert found == {"main.py": b"main", "comfy/sd.py": b"sd"}
    assert not list(tmp_path.glob("**/escape.py"))


@pytest.mark.parametrize(
    "name",
    [
        "top/vendor/ComfyUI/../../../escape.py",
        "top/vendor/ComfyUI/a\\..\\b.py",
        "top/vendor/ComfyUI/C:evil.py",
        "top/vendor/ComfyUI",
    ],
)
def test_a_member_out_of_its_place_is_refused(dev, tmp_path, name):
    file = tmp_path / "a.tar.gz"
    sha = archive(file, (name, b"evil"))
    with pytest.raises(dev.StepError, match="no plain file in its place"):
        dev.extract(file, sha, "vendor/ComfyUI", tmp_path / "out")
    assert not list(tmp_path.rglob("*.py")) or [path.name for path in tmp_path.rglob("*.py")] == ["dev.py"]


def test_a_link_is_refused(dev, tmp_path):
    file = tmp_path / "a.tar.gz"
    sha = archive(file, link="top/vendor/ComfyUI/link.py")
    with pytest.raises(dev.StepError, match=r"link\.py'"):
        dev.extract(file, sha, "vendor/ComfyUI", tmp_path / "out")


def test_another_hash_is_refused_before_anything_is_read(dev, tmp_path):
    file = tmp_path / "a.tar.gz"
    file.write_bytes(b"not even an archive")
    with pytest.raises(
        dev.StepError, match=f"has the SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()} and not 00ff.*mirror"
    ):
        dev.extract(file, "00ff", "vendor/ComfyUI", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- folders -------------------------------------------------------------------------------------------------


def fake_comfyui(folder: Path) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "requirements.txt").touch()
    return folder


def test_search_order_of_comfyui(dev, tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert dev.local_comfyui() is None  # then it is downloaded

    parent = fake_comfyui(tmp_path / "parent")
    pack = parent / "custom_nodes" / "bespoke"
    pack.mkdir(parents=True)
    inside = load(Path(shutil.copy(host.ROOT / "dev.py", pack)))
    assert inside.local_comfyui() == parent

    from_variable = fake_comfyui(tmp_path / "variable")
    monkeypatch.setenv("COMFYUI_PATH", str(from_variable))
    assert inside.local_comfyui() == from_variable
    assert dev.local_comfyui() == from_variable

    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(dev.StepError, match=r"which is no ComfyUI folder\. Correct it or unset it"):
        dev.local_comfyui()


@pytest.mark.skipif(os.name == "nt", reason="links to folders need a privilege there")
def test_comfyui_of_a_linked_pack(dev, tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    parent = fake_comfyui(tmp_path / "parent")
    (parent / "custom_nodes").mkdir()
    (parent / "custom_nodes" / "bespoke").symlink_to(dev.ROOT, target_is_directory=True)
    assert load(parent / "custom_nodes" / "bespoke" / "dev.py").local_comfyui() == parent


def test_the_cache_folder(dev, monkeypatch, tmp_path):
    monkeypatch.setenv("BESPOKE_CACHE", str(tmp_path / "mine"))
    assert dev.cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("BESPOKE_CACHE")
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert dev.cache_folder() == tmp_path / "bespoke"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert dev.cache_folder() == tmp_path / ".cache" / "bespoke"


def test_children_write_under_dev(dev):
    program = "import tempfile, sys; print(tempfile.gettempdir()); print(sys.pycache_prefix)"
    env = dev.environment()
    out = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    ).stdout.split()
    assert out == [str(dev.DEV / "tmp"), str(dev.DEV / "pycache")]
    assert env["HF_HOME"].startswith(str(dev.DEV))


# --- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "advice"),
    [
        ("error: No space left on device (os error 28)", "make room"),
        ("THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "not what was pinned"),
        ("Hash mismatch for `torch`", "not what was pinned"),
        ("error: Request failed after 3 retries\n  Caused by: dns error", "The network failed"),
        ("Failed to fetch: `some index`", "The network failed"),
        ("No solution found when resolving dependencies", "has no build for this Python"),
        ("PermissionError: [Errno 13] Permission denied", "may not be written"),
        ("Segmentation fault", "Mend what it says above"),
    ],
)
def test_a_failed_step_says_what_to_do(dev, output, advice):
    with pytest.raises(dev.StepError, match=rf"Doing: failed with status 3\. .*{advice}"):
        dev.step("Doing", "a second", [sys.executable, "-c", f"print({output!r}); raise SystemExit(3)"])


def test_a_step_shows_its_lines_and_its_time(dev, capsys):
    dev.step("Doing", "a second", [sys.executable, "-c", "print('one'); print('two')"])
    assert capsys.readouterr().out == "* Doing (a second)\n    one\n    two\n    done after 0 s\n"


def test_too_little_space_is_an_error_before_the_download(dev, tmp_path):
    with pytest.raises(dev.StepError, match=r"The world needs 1e\+09 GB in .* GB free\. Make room"):
        dev.need_space(tmp_path / "not" / "there", 1e9, "The world")
    dev.need_space(tmp_path, 0, "Nothing")


def test_a_lock_is_exclusive_and_released_at_exit(dev):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import dev, time\nwith dev.lock('x', '', False):\n print('held', flush=True); time.sleep(60)",
        ],
        cwd=dev.ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(dev.StepError, match="someone else"), dev.lock("x", "someone else", wait=False):
            pass
    finally:
        holder.kill()
        holder.wait()
    with dev.lock("x", "someone else", wait=False):
        pass


@pytest.mark.skipif(os.name == "nt", reason="signals are another thing there")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_the_child(dev, sent):
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    # A background runner ignores SIGINT, and a child inherits that.
    restore_sigint = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    program = (
        f"{restore_sigint}\nimport dev, sys\ndev.test = lambda rest: dev.run([sys.executable, '-c', {child!r}], "
        f"{{}})\nsys.exit(dev.main(['test']))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=dev.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        pid = int(parent.stdout.readline())
        parent.send_signal(sent)  # to the parent alone; a terminal would signal the child too
        assert parent.wait(20) == {signal.SIGINT: 130, signal.SIGTERM: 143}[sent]
    finally:
        parent.kill()
        parent.communicate()
    for _ in range(20):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail(f"the child {pid} still runs")


# --- the command line ------------------------------------------------------------------------------------------------


def test_pytest_arguments_are_passed_on(dev, monkeypatch):
    calls = []
    monkeypatch.setattr(dev, "test", lambda arguments: calls.append(arguments) or 5)
    assert dev.main(["test", "-k", "graph", "--port", "1", "-h"]) == 5
    assert calls == [["-k", "graph", "--port", "1", "-h"]]


def test_comfyui_options_are_passed_on(dev, monkeypatch):
    calls = []
    monkeypatch.setattr(dev, "serve", lambda *arguments: calls.append(arguments) or 0)
    assert dev.main(["serve", "--port", "9000", "--lowvram"]) == 0
    assert calls == [(9000, ["--lowvram"])]


def test_commands_without_the_tests_folder_are_refused(dev, capsys):
    assert dev.main(["demo"]) == 1  # this copy of dev.py has no tests folder
    assert "clone the repository" in capsys.readouterr().err


def test_the_model_in_the_cache_is_named_by_its_recipe(dev, monkeypatch, tmp_path):
    import model

    script = dev.ROOT / "tests" / "small_model"
    script.mkdir(parents=True)
    shutil.copy(host.ROOT / "tests" / "small_model" / "model.py", script)
    monkeypatch.setenv("BESPOKE_CACHE", str(tmp_path))
    ready = tmp_path / f"bespoke-small-{model.RECIPE}.safetensors"
    ready.touch()
    (tmp_path / f"bespoke-small-{model.RECIPE}-edit.safetensors").touch()
    assert dev.small_model() == ready


def test_an_older_comfyui_has_an_environment_of_its_own(dev, monkeypatch, capsys):
    for name in ("chosen", "VENV", "PYTHON"):
        monkeypatch.setattr(dev, name, getattr(dev, name))  # restored after the test
    assert dev.main(["test", "--comfyui", "0.1"]) == 1
    assert "--comfyui is '0.1': choose one of 0.30.0, 0.27.0, 0.26.0, 0.24.1" in capsys.readouterr().err
    monkeypatch.setenv("COMFYUI_PATH", "/nowhere")  # --comfyui overrides it
    dev.choose("0.24.1")
    assert dev.local_comfyui() is None
    assert dev.VENV.name == "venv-0.24.1"
    assert dev.VENV in dev.PYTHON.parents
    assert all(len(sha) == 64 for _, sha in dev.COMFYUIS.values())


def test_the_pages_tests_run_on_the_page_that_is_named(dev, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(
        dev, "run_tests", lambda arguments, page="": calls.append((arguments, page)) or (-11 if page == "1.53.6" else 0)
    )
    assert dev.main(["test", "--frontend", "1.2.3", "-k", "js"]) == 0
    assert dev.main(["test", "--frontend=1.2.3", "tests/browser", "-q"]) == 0
    assert calls == [(["-k", "js", "tests/browser"], "1.2.3"), (["tests/browser", "-q"], "1.2.3")]
    calls.clear()
    assert dev.main(["test", "--frontend", "each"]) == -11  # the first failure is returned
    assert [page for _, page in calls] == list(dev.FRONTENDS)
    assert all(len(sha) == 64 for sha in dev.FRONTENDS.values())
    for wrong in (["--frontend", "newest"], ["--frontend"], ["--frontend", "../1.2"]):
        assert dev.main(["test", *wrong]) == 1
        assert "give a version, such as 1.53.6, 1.58.1, or each" in capsys.readouterr().err


def test_a_cached_page_is_not_fetched_again(dev, monkeypatch, tmp_path):
    monkeypatch.setenv("BESPOKE_CACHE", str(tmp_path))
    page = tmp_path / "page-1.2.3" / dev.FRONTEND_FOLDER
    page.mkdir(parents=True)
    (page / "index.html").touch()
    assert dev.fetch_frontend("/no/uv", "1.2.3") == page


def test_the_suite_runs_in_as_many_processes_as_the_machine_has_room_for(dev, monkeypatch):
    for count, cores, memory in ((1, 1, 64), (2, 2, 24), (1, 2, 7), (4, 16, 64), (3, 8, 13), (1, 8, 0)):
        monkeypatch.setattr(dev, "cores", lambda cores=cores: cores)
        monkeypatch.setattr(dev, "memory", lambda memory=memory: memory * dev.GIB)
        assert dev.workers() == count
    monkeypatch.setattr(dev, "memory", lambda: 16 * dev.GIB)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    folder = dev.ROOT / "tests" / "unit"
    folder.mkdir(parents=True)
    for name in ("test_a.py", "test_b.py"):
        (folder / name).touch()
    threads = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    four = (["-n", "4", "--dist", "loadfile", "--no-loadscope-reorder"], threads)
    for whole_files in ([], ["tests/unit", "tests/unit/test_b.py"]):
        assert dev.parallel(whole_files) == four
    for single in (
        ["tests/unit"],
        ["-k", "a"],
        ["tests/unit", "tests/unit/test_a.py", "-s"],
        ["tests/unit", "tests/unit/test_a.py::test_b"],
    ):
        assert dev.parallel(single) == ([], {})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert dev.parallel([])[1] == {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "2"}


def test_cores_and_memory_of_this_machine(dev):
    import psutil

    assert 1 <= dev.cores() <= psutil.cpu_count()
    assert 0 <= dev.memory() <= psutil.virtual_memory().total
