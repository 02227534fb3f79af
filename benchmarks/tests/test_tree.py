"""Rules that hold for the whole tree: imports go one way, READMEs name what exists, settings are read."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.rows import PAPERS

ROOT = Path(__file__).parents[2]
FOLDERS = [name for name in (*PAPERS, "common", "benchmarks") if (ROOT / name).is_dir()]
BUILT = [name for name in PAPERS if (ROOT / name / "train.py").is_file()]
SOURCES = sorted(path for name in FOLDERS for path in (ROOT / name).rglob("*.py"))
READMES = [path for path in (ROOT / name / "README.md" for name in (".", *FOLDERS)) if path.is_file()]
PROGRAMS = {"train", "train_ac", "evaluate"}
# Folders that exist only after a run, or stand for any name.
GENERATED = ("runs/", "wheelhouse/", ".venv/", "benchmarks/report.html")


def imported(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_one_way(path: Path):
    folder = path.relative_to(ROOT).parts[0]
    allowed = {folder, "common"} - ({"benchmarks"} if folder != "benchmarks" else set())
    is_test, role = "tests" in path.parts, path.stem
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top not in (*PAPERS, "common", "benchmarks"):
            continue
        if path.parent == ROOT / "benchmarks" / "speed" and top == path.stem:
            continue
        assert top in (allowed if folder != "common" else {"common"}), f"{name}: another package"
        part = rest.split(".")[0]
        if is_test or folder not in PAPERS or top != folder or part not in PROGRAMS:
            continue
        assert (role, part) == ("train", "evaluate"), f"{name}: only train may import evaluate, none imports train"


@pytest.mark.parametrize("paper", [name for name in PAPERS if (ROOT / name / "config.py").is_file()])
def test_every_config_field_is_read_outside_of_config(paper: str):
    tree = ast.parse((ROOT / paper / "config.py").read_text(encoding="utf-8"))
    config = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config")
    fields = {
        node.target.id for node in config.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    read: set[str] = set()
    for path in (ROOT / paper).glob("*.py"):
        if path.name != "config.py":
            read |= config_attributes(path)
    inside = {
        node.attr
        for node in ast.walk(config)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    # A property of the class that reads a field stands for it.
    read |= {name for name in inside if read & {f.name for f in config.body if isinstance(f, ast.FunctionDef)}}
    assert fields - read == set()


def test_no_config_field_is_read_only_by_a_name_that_something_else_has(tmp_path: Path):
    """What counts is an attribute of something called config, or of self in the configuration's own class."""
    (tmp_path / "a.py").write_text("def f(config, other):\n    return config.used, other.unused, self.config.deep\n")
    assert config_attributes(tmp_path / "a.py") == {"used", "deep"}


def config_attributes(path: Path) -> set[str]:
    """The attributes that a file reads of a value called config, settings, or ending in _config."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            if name in ("config", "plan", "settings", "tested") or name.endswith("_config"):
                found.add(node.attr)
    return found


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_readme_names_exists(path: Path):
    text = path.read_text(encoding="utf-8")
    for module in set(re.findall(r"-m ((?:\w+\.)+\w+)", text)):
        if module.split(".")[0] in (*PAPERS, "common", "benchmarks"):
            file = ROOT / module.replace(".", "/")
            assert file.with_suffix(".py").is_file() or (file / "__main__.py").is_file(), f"python -m {module}"
    for target in set(re.findall(r"(?:^|`|\$ )make ([a-z][\w-]*)", text, flags=re.M)):
        assert target in targets(), f"make {target}"
    for name in set(re.findall(r"`([\w.-]+(?:/[\w.-]+)*/?\.?(?:py|md|csv|html|toml|json))`", text)):
        is_known = any((base / name).exists() for base in (ROOT, path.parent))
        assert is_known or name.startswith(GENERATED) or "/" not in name, name
    for file, function in set(re.findall(r"`((?:\w+/)*\w+\.py): (\w+)`", text)):
        source = next((base / file for base in (path.parent, ROOT) if (base / file).is_file()), None)
        assert source is not None, f"{file} of {file}: {function}"
        assert function in defined(source), f"{file} has no {function}"
    for link in set(re.findall(r"\]\(([^)#]+)", text)):
        assert link.startswith("https://") or (path.parent / link).exists(), link


def defined(path: Path) -> set[str]:
    """Names that a file defines: functions, classes, methods, and what it assigns at its top."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
    for node in tree.body:
        places = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names |= {place.id for place in places if isinstance(place, ast.Name)}
    return names


def targets() -> set[str]:
    """The targets of the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return {
        name for line in re.findall(r"^([\w .-]+):(?!=)", text, flags=re.M) for name in line.split()
    } | pattern_targets(text)


def pattern_targets(text: str) -> set[str]:
    """Targets made from the list of papers: their names, also behind a prefix as in `$(PAPERS:%=bench-%)`."""
    prefixes = re.findall(r"=([\w-]+)%\)", text)
    return set(PAPERS) | {prefix + name for prefix in prefixes for name in (*PAPERS, "common", "benchmarks")}


@pytest.mark.skipif(not (ROOT / "Makefile").is_file() or not shutil.which("make"), reason="no Makefile or no make")
@pytest.mark.parametrize("paper", BUILT)
def test_make_does_not_take_the_folder_of_a_paper_for_its_target(paper: str):
    done = subprocess.run(["make", "-n", paper], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "up to date" not in done.stdout
    assert paper in done.stdout


def test_no_file_names_a_folder_of_one_machine():
    folders = "home|root|tmp|opt|mnt|srv|work|data|Users|scratch"
    pattern = re.compile(rf"(?<![\w.:/<>*}}\])-])/(?:{folders})/\w")
    kept = (".py", ".md", ".toml", ".csv", ".json", ".txt", ".css", ".yml")
    paths = [path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.suffix in kept]
    paths += [path for path in ROOT.iterdir() if path.suffix in kept or path.name == "Makefile"]
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in paths
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []
