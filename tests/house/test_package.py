"""What is installed: one package, typed, that a user's own folders called probes, analysis or reports do not hide."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from house import PACKAGES, ROOT, modules

BARE = re.compile(r"^\W*(?:from|import)\s+(?:probes|analysis|reports)\b", re.MULTILINE)
TEXTS = [
    path
    for pattern in ("*.md", "docs/*.md", "*/**/*.py", "*/**/*.pyi", "*.toml")
    for path in ROOT.glob(pattern)
    if not {".venv", "build", "out"} & set(path.relative_to(ROOT).parts)
]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nobody_imports_our_folders_by_their_bare_names(path):
    assert not BARE.findall(path.read_text(encoding="utf-8")) or path == Path(__file__)


def test_a_bare_import_would_be_seen():
    assert BARE.search("x = 1\n    from probes.tasks import task\n")
    assert BARE.search(">>> import analysis\n")
    assert not BARE.search("from clsprobe.probes import errors\nfrom . import reports\n")


def test_the_questions_are_small_files_and_no_class_knows_everything():
    for module in modules():
        if "scripts" in module.path.parts:
            assert len(module.path.read_text(encoding="utf-8").splitlines()) <= 250, module
        for node in module.tree.body:
            assert node.end_lineno - node.lineno < 300, f"{module}: {getattr(node, 'name', node.lineno)}"


# ----------------------------------------------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The wheel, unpacked as it would be installed."""
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        ignored = shutil.ignore_patterns("__pycache__")
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name, **({"ignore": ignored} if copy is shutil.copytree else {}))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(wheels), str(source)], check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    unpacked = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(unpacked)
    return unpacked


@pytest.fixture
def users_folder(tmp_path) -> Path:
    """A folder as researchers have it: packages and modules of the names that our folders have."""
    (tmp_path / "analysis.py").write_text("raise RuntimeError('the analysis of a user')\n")
    for name in ("probes", "reports", "scripts"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise RuntimeError('the {name} of a user')\n")
    return tmp_path


def run(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command, env = [sys.executable, *arguments], os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_nothing_but_clsprobe_is_installed(site):
    assert {path.name.split("-")[0] for path in site.iterdir()} == {"clsprobe"}
    package = site / "clsprobe"
    assert (package / "py.typed").exists()
    assert (package / "studies.pyi").exists()
    assert (package / "reports" / "templates" / "page.html.j2").exists()
    installed = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    sources = {
        (f"{folder}/" if folder != "scripts" else "") + path.relative_to(ROOT / folder).as_posix()
        for folder in PACKAGES
        for path in (ROOT / folder).rglob("*.py")
    }
    assert installed == sources


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["-c", "import clsprobe; print(clsprobe.__file__); clsprobe.load_encoder, clsprobe.Task"], "site"),
        (["-m", "clsprobe", "list", "readouts"], "token[K]"),
        (["-m", "clsprobe", "demo", "--dry-run"], "all-MiniLM-L6-v2"),
    ],
    ids=["import", "list", "demo"],
)
def test_a_users_own_folders_do_not_hide_it(site, users_folder, arguments, printed):
    done = run(site, users_folder, *arguments)
    assert done.returncode == 0, done.stderr
    assert (str(site) if printed == "site" else printed) in done.stdout
    assert not (users_folder / "out").exists()


# ------------------------------------------------------------------------------------------------------- the types


@pytest.fixture(scope="module")
def type_report(tmp_path_factory) -> str:
    """What mypy says of the package with a use of its public names and a type error planted in probes/."""
    folder = tmp_path_factory.mktemp("types")
    without_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "scripts", folder / "clsprobe", ignore=without_caches)
    for name in ("probes", "analysis", "reports"):
        shutil.copytree(ROOT / name, folder / "clsprobe" / name, ignore=without_caches)
    use = "import clsprobe\n\nreveal_type(clsprobe.load_encoder)\nreveal_type(clsprobe.Task)\n"
    use += "reveal_type(clsprobe.studies.Poolings)\n"
    (folder / "clsprobe" / "use.py").write_text(use)
    with (folder / "clsprobe" / "probes" / "mlp.py").open("a") as file:
        file.write("\n\nPLANTED: int = 'no number'\n")
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(settings.replace("$MYPY_CONFIG_FILE_DIR/build/types", str(folder)))
    if (ROOT / ".mypy_cache").is_dir():  # most of the time goes to the libraries, which `make types` has read
        shutil.copytree(ROOT / ".mypy_cache", folder / ".mypy_cache")
    return subprocess.run([sys.executable, "-m", "mypy"], cwd=folder, capture_output=True, text=True).stdout


def test_public_names_have_their_types(type_report):
    assert "-> clsprobe.probes.encoders.encoder.Encoder" in type_report
    assert "-> clsprobe.probes.tasks.task.Task" in type_report
    assert "-> clsprobe.poolings.Poolings" in type_report


def test_a_type_error_in_any_package_is_found(type_report):
    assert "probes/mlp.py" in type_report
    assert type_report.count(" error: ") == 1
