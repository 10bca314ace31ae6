"""Imports point one way: docs/architecture.md has the layers."""

import ast
from pathlib import Path

import pytest

import wm_rllib

ROOT = Path(wm_rllib.__file__).parent
LAYERS = (
    {"atomic_files", "columns", "logs", "metrics", "mixing", "seeding", "spaces"},
    {"models"},
    {"actors"},
    {"settings"},
    {"replay"},
    {"environments"},
    {"rl_modules"},
    {"acting"},
    {"env_runners"},
    {"learners"},
    {"dreamers"},
    {"training"},
    {"config", "config_rules", "config_sections", "algorithm"},
    {"former_modules"},
    {"__init__"},
    {"sweep"},
    {"runs"},
    {"look"},
    {"benchmark"},
    {"cli"},
    {"__main__"},
)
HEIGHT = {part: height for height, layer in enumerate(LAYERS) for part in layer}
"""Of packages, and of modules in the root."""

SIDE_BY_SIDE = {"env_runners", "learners", "dreamers"}
"""Three kinds of actors that do not know each other."""


def _only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _imports(node: ast.AST) -> list[str]:
    """Modules of this package that are imported below `node`, in functions too, but not for type checking alone."""
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom) and child.level:
            raise AssertionError(f"a relative import, which hides where it points: {ast.unparse(child)}")
        if isinstance(child, ast.ImportFrom) and child.module == "wm_rllib":
            found += [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom) and (child.module or "").startswith("wm_rllib."):
            found.append(str(child.module).removeprefix("wm_rllib."))
        elif isinstance(child, ast.Import):
            found += [alias.name[len("wm_rllib.") :] for alias in child.names if alias.name.startswith("wm_rllib.")]
        elif not _only_for_types(child):
            found += _imports(child)
    return found


def _part(module: str) -> str:
    """The package, or the module in the root, that `module` is in; of public names the root itself."""
    part = module.split(".")[0]
    return part if part in HEIGHT else "__init__"


def _source(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_each_part_has_a_layer():
    parts = {_source(path) for path in ROOT.rglob("*.py")}
    assert parts == set(HEIGHT)


@pytest.mark.parametrize("part", sorted(HEIGHT))
def test_imports_point_down(part):
    wrong = []
    for path in (path for path in ROOT.rglob("*.py") if _source(path) == part):
        for module in _imports(ast.parse(path.read_text())):
            other = _part(module)
            if other != part and (HEIGHT[other] > HEIGHT[part] or {part, other} <= SIDE_BY_SIDE):
                wrong.append(f"{path.relative_to(ROOT)} imports wm_rllib.{module}")
    assert not wrong


def test_an_import_that_points_up_is_found():
    tree = ast.parse("def f():\n    from wm_rllib.training.stages import Stages\n    import wm_rllib.cli.main\n")
    assert [_part(module) for module in _imports(tree)] == ["training", "cli"]
